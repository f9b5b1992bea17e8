"""What becomes of a domain that powers off, reboots or crashes: somebody has to see to it.

Xen only says that it has happened. `xl create` leaves a process behind that does what the configuration says
(on_poweroff, on_reboot, on_crash, on_watchdog, on_soft_reset); for domains that we have restored, `pysave-watch` is
that process. What follows is its work. Actions are libxl's (libxl_types.idl, libxl_action_on_shutdown).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pyxc.control import ShutdownReason
from pyxc.errors import XenError
from saverestore.errors import Advice, DomainError, ErrorName, Remedy, SaveRestoreError, XenRefused
from saverestore.toolstack.lock import held, restoring

if TYPE_CHECKING:
    from pyxc.libxl import Libxl

LOG = logging.getLogger(__name__)

DUMP_DIR = Path("/var/lib/xen/dump")
"""Where libxl's own configuration has core dumps (XEN_DUMP_DIR)."""

SETTLE_S = 2.0
"""Between destroying a domain and creating it anew: back ends need a moment to let go of its devices."""

SHORTEST_LIFE_S = 10.0
"""A domain that reboots in a loop gets no more than one boot in so many seconds."""

LAST_WATCHER_S = 10.0
"""How long the watcher of a domain that was saved and restored may take to find that it is gone."""

RESTORE_S = 60.0
"""How long a restore of the same domain is waited for: it finds that there is one, and is refused in moments. One of
another domain that writes to the same disks may take longer: then this one stays off."""

SUSPENDED_S = 1.0
"""How often to look whether a suspended domain goes on."""


class Action(StrEnum):
    """What is to be done about it."""

    DESTROY = "destroy"
    RESTART = "restart"
    RESTART_RENAME = "restart_rename"
    PRESERVE = "preserve"
    COREDUMP_DESTROY = "coredump_destroy"
    COREDUMP_RESTART = "coredump_restart"
    SOFT_RESET = "soft_reset"


RESTARTS = frozenset({Action.RESTART, Action.RESTART_RENAME, Action.COREDUMP_RESTART})
"""After these there is a new domain."""


def action_for(config: dict[str, Any], reason: int) -> Action:
    """What a configuration says is to be done when its domain shuts down for this reason.

    Destroy, where it says nothing, as libxl has it; where it says what we do not know, the domain is left as it is.
    """
    try:
        key = f"on_{ShutdownReason(reason).name.lower()}"
    except ValueError:
        return Action.DESTROY
    try:
        return Action(config.get(key, Action.DESTROY))
    except ValueError:
        return Action.PRESERVE


def load() -> None:
    """Load what watching needs, so that `watch_domain` begins at once. ImportError where there is no libxl."""
    import pyxc.libxl  # noqa: F401


def watch_domain(
    wanted: str, *, ready: Callable[[], None], undisturbed: Callable[[], AbstractContextManager[None]]
) -> None:
    """Watch the domain of this number or name, see `watch`. DomainError when it is watched already, or not there."""
    from pyxc.libxl import Libxl

    with Libxl() as libxl:
        domid, config = _find(libxl, wanted)
        name, uuid = config["c_info"]["name"], config["c_info"]["uuid"]
        # Two would both start it anew. A UUID outlives reboots. Who watched it before it was saved ends about now.
        busy = f"{name} (domain {domid}) is being watched already,"
        with held(f"watch-{uuid}", busy, wait_s=LAST_WATCHER_S):
            watch(
                libxl,
                domid,
                ready=ready,
                undisturbed=undisturbed,
                alone=lambda: _alone(UUID(uuid), name),
                with_disks=_with_disks,
            )


@contextmanager
def _alone(domain_uuid: UUID, name: str) -> Iterator[None]:
    """Inside this block no restore of ours makes a domain of this UUID or name. DomainError when one does."""
    with ExitStack() as stack:
        try:
            stack.enter_context(restoring(domain_uuid, name, wait_s=RESTORE_S))
        except SaveRestoreError as error:
            error.add_note(f"{name} has shut down, and is left so")
            raise
        yield


@contextmanager
def _with_disks(text: str) -> Iterator[None]:
    """Inside this block no restore of ours makes a domain that writes to the disks of this configuration.

    DomainError when one does that, or when a domain that runs writes to them: a restore finds the disks of a domain
    that has shut down free, and so they may be another's by now. A warning when this package has been uninstalled or
    replaced meanwhile, so that nothing more of it can be loaded: that is no reason to leave the domain off.
    """
    # Loaded only here: a watcher may wait for years, and few ever start a domain again.
    try:
        from saverestore.guest.common.handles import open_handles
        from saverestore.toolstack import config, neighbours
    except ImportError as error:
        LOG.warning("whether other domains write to its disks cannot be looked up: %s", error)
        yield
        return

    parsed = config.parse(text.encode())
    with ExitStack() as stack:
        try:
            stack.enter_context(neighbours.disks_kept(parsed, force=False, wait_s=RESTORE_S))
            with open_handles() as handles:
                neighbours.check(handles, parsed, force=False)
        except SaveRestoreError as error:
            error.add_note(
                f"{parsed.name} has shut down, and is left so: it is not started again until 'xl destroy' has "
                "removed it and 'xl create' starts it"
            )
            raise
        yield


def _find(libxl: Libxl, wanted: str) -> tuple[int, dict[str, Any]]:
    """Its number and its configuration."""
    try:
        domid = int(wanted) if wanted.isdecimal() else libxl.domid_of(wanted)
        return domid, json.loads(libxl.domain_config(domid))
    except (OSError, OverflowError) as error:  # OverflowError: no number of a domain's
        raise DomainError(
            f"there is no domain {wanted!r} that libxl knows: {error}",
            name=ErrorName.DOMAIN_NOT_FOUND,
            remedies=[Advice(Remedy.LIST_DOMAINS)],
        ) from error


def watch(
    libxl: Libxl,
    domid: int,
    *,
    ready: Callable[[], None] = lambda: None,
    undisturbed: Callable[[], AbstractContextManager[None]],
    alone: Callable[[], AbstractContextManager[None]] = nullcontext,
    with_disks: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    dumps: Path = DUMP_DIR,
) -> None:
    """Watch a domain, and what it is restarted as, until there is nothing left to watch.

    `ready` is called whenever a domain is watched. What is done to a domain is done in `undisturbed`: half of it
    would be worse than nothing; and in `alone`: between the old domain and the new one there is none, and a restore
    would find its UUID free. It is started anew in `with_disks`, which is given its configuration, and raises when
    another domain has its disks: before the old one is destroyed, as nobody else has that configuration. An error
    leaves the domain as it then is.
    """
    since = clock()
    while True:
        with libxl.watched(domid) as wait_for_end:
            ready()
            reason = wait_for_end()
        if reason is None:
            LOG.info("domain %d is gone", domid)
            return
        if reason == ShutdownReason.SUSPEND:
            # It is being saved, and goes on perhaps. libxl tells of one shutdown only, so it is watched anew.
            sleep(SUSPENDED_S)
            continue
        with alone():
            with undisturbed():
                config, action = _looked_at(libxl, domid, reason, dumps)
                if action not in RESTARTS:
                    _end(libxl, domid, action)
                    return
            with with_disks(config):
                sleep(max(0.0, SHORTEST_LIFE_S - (clock() - since)))
                since = clock()
                with undisturbed():
                    _make_room(libxl, domid, config, action)
                    sleep(SETTLE_S)
                    domid = _start(libxl, domid, config)
        LOG.info("restarted as domain %d", domid)


def _start(libxl: Libxl, domid: int, config: str) -> int:
    """Create and start it: its new number. `domid`: what it had, for the error."""
    try:
        new = libxl.create(config)
    except XenError as error:
        raise XenRefused(
            f"what was domain {domid} could not be started again: {error}; it is off, 'xl create' starts it",
            name=ErrorName.LIBXL_FAILED,
        ) from error
    try:
        libxl.unpause(new)
    except XenError as error:
        raise XenRefused(
            f"what was domain {domid} was created again as domain {new}, but could not be unpaused: {error}; "
            f"'xl unpause {new}' starts it, and nobody watches it",
            name=ErrorName.LIBXL_FAILED,
        ) from error
    return new


def _looked_at(libxl: Libxl, domid: int, reason: int, dumps: Path) -> tuple[str, Action]:
    """Its configuration, and what is to be done about its end. A core dump, where one is wanted, is written."""
    text = libxl.domain_config(domid)
    config = json.loads(text)
    name = config["c_info"]["name"]
    action = action_for(config, reason)
    why = ShutdownReason(reason).name.lower() if reason in list(ShutdownReason) else f"reason {reason}"
    LOG.info("%s (domain %d) has shut down: %s; to be done: %s", name, domid, why, action)
    if action in (Action.COREDUMP_DESTROY, Action.COREDUMP_RESTART):
        _dump(libxl, domid, dumps / name.replace("/", "_"))
    if action is Action.SOFT_RESET:
        LOG.warning("soft resets are not done here: %s is left as it is", name)
    return text, action


def _end(libxl: Libxl, domid: int, action: Action) -> None:
    """Destroy a domain that is not started again, or leave it."""
    if action in (Action.DESTROY, Action.COREDUMP_DESTROY):
        libxl.destroy(domid)


def _make_room(libxl: Libxl, domid: int, config: str, action: Action) -> None:
    """For the new domain, which has the old one's name and UUID."""
    if action is Action.RESTART_RENAME:
        libxl.preserve(domid, config, f"{datetime.now(UTC):-%Y%m%dT%H%MZ}")
    else:
        libxl.destroy(domid)


def _dump(libxl: Libxl, domid: int, path: Path) -> None:
    """A dump that fails must not keep the domain down."""
    try:
        libxl.core_dump(domid, str(path))
        LOG.info("its memory is in %s", path)
    except OSError as error:
        LOG.warning("%s: no core dump: %s", path, error)
