"""Putting a domain right that a save left behind when it was killed and could not do so itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from saverestore.errors import Advice, DomainError, ErrorName, Remedy, advise, fact_of, remedies_of
from saverestore.guest.common.handles import Handles, XenError, open_handles
from saverestore.guest.common.suspend import withdraw_request
from saverestore.guest.kinds import Architecture, this_host
from saverestore.toolstack import arriving, domains, moving, processor_cap
from saverestore.toolstack.condition import Condition, look_up
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.domains import Domain
from saverestore.toolstack.lock import locked

LOG = logging.getLogger(__name__)


def recover_domain(text: str, *, was_aborted: Callable[[Domain, str], bool]) -> list[str]:
    """Give processor time back, turn log-dirty off, take back a request to suspend, and resume a suspended domain.

    Returns what was done, for people. `was_aborted`: whether the migration of this id, which the domain is noted to
    move by, has surely ended with the domain here.

    Refused (DomainError) while a save of it is under way, by us or by xl. A domain that runs as it should is left
    alone, except that log-dirty is off afterwards. Refused, too, of one that is being restored, moves to another host
    or comes from one. That it moves may be noted of one that does not any more: such a note is removed.
    """
    with open_handles() as handles:
        domain = domains.find(handles, text)
        if domain.domid == 0:
            raise DomainError("domain 0 is the control domain itself: no save can have touched it")
        with locked(domain):
            migration = moving.noted(handles.store, domain.domid)
            is_stale = migration is not None and was_aborted(domain, migration)
            if migration is not None and not is_stale:
                raise DomainError(
                    f"{domain} moves to another host, which may run it; no changes were made",
                    name=ErrorName.DOMAIN_NEEDS_RECOVERY,
                    remedies=[Advice(Remedy.RECOVER_MIGRATION, domain.name)],
                )
            domain = domains.again(handles, domain)
            domains.check_not_saved_by_xl(domain)
            if domain.info.paused and (found := arriving.look(handles.store, domain.domid, domain.info.uuid)):
                raise DomainError(
                    f"{domain} {found.what}; no changes were made",
                    name=ErrorName.DOMAIN_BUSY,
                    remedies=found.remedies,
                )
            done = recover_locked(handles, domain, this_host())
            if is_stale:
                # The migration could not remove it, as xenstore failed just then.
                moving.forget(handles.store, domain.domid)
                done.append("a note that it moves, of a migration that was aborted, was removed")
            return done


def recover_locked(handles: Handles, domain: Domain, host: Architecture) -> list[str]:
    """See `recover_domain`, of a domain that is locked. Each step is taken also when the one before it failed.

    The processor cap comes first, as what follows waits for the domain. Of several failures the last is raised, which
    says how the domain is; its notes are the others, and what was done all the same. What the domain is afterwards is
    looked up, as somebody may have paused it: a warning, with what helps, where it does not run.
    """
    done: list[str] = []
    failures: list[BaseException] = []
    for step in (_put_cap_back, _turn_log_dirty_off, _resume):
        try:
            step(handles, domain, host, done)
        except BaseException as failure:  # raised below
            failures.append(failure)
    if failures:
        *others, error = failures
        for other in others:
            error.add_note(fact_of(other))
            for advice in remedies_of(other):
                advise(error, advice)
        if done:
            error.add_note(f"done all the same: {', '.join(done)}")
        raise error
    found = look_up(handles, domain.domid, domain.info.uuid)
    if found.condition is not Condition.RUNNING:
        LOG.warning("%s %s", domain, found.what, extra={"remedies": found.remedies})
    elif done:
        done.append(f"it {found.what}")
    return done


# Each step adds to `done`, for people, what it has done: also when it raises afterwards.


def _put_cap_back(handles: Handles, domain: Domain, host: Architecture, done: list[str]) -> None:
    if put_back := processor_cap.put_back(handles, domain):
        done.append(put_back)


def _turn_log_dirty_off(handles: Handles, domain: Domain, host: Architecture, done: list[str]) -> None:
    with contextlib.suppress(XenError):  # it has none, or it was off
        handles.xen.log_dirty_off(domain.domid)


def _resume(handles: Handles, domain: Domain, host: Architecture, done: list[str]) -> None:
    if withdraw_request(handles.store, domain.domid):
        done.append("a request to suspend was withdrawn")
    info = handles.xen.domain(domain.domid)
    if info.dying or (info.shutdown and not info.suspended):
        domains.check_can_be_saved(handles.store, Domain(info, domain.name))
    kind = host.of_domain(handles, info)
    if kind.has_device_model:
        done += _recover_device_model(handles, domain.domid)
    done += kind.recover(handles, info)


def _recover_device_model(handles: Handles, domid: int) -> list[str]:
    """What was done to it. That it does not answer keeps nobody from recovering the domain."""
    try:
        stopped = DeviceModel(handles.store, domid).recover()
    except DomainError as error:
        return [str(error)]
    return ["its device model had stopped and is running again"] if stopped else []
