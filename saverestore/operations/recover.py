"""Putting a domain right that a save left behind when it was killed and could not do so itself."""

from __future__ import annotations

import contextlib

from saverestore.errors import DomainError
from saverestore.guest.arm64.going_on import recover as recover_arm64
from saverestore.guest.arm64.host import is_arm64_host
from saverestore.guest.common.handles import Handles, XenError, open_handles
from saverestore.guest.common.suspend import resume_suspended, withdraw_request
from saverestore.toolstack import domains, processor_cap
from saverestore.toolstack.device_model import DeviceModel
from saverestore.toolstack.lock import locked


def recover_domain(text: str) -> list[str]:
    """Turn log-dirty off, give processor time back, take back a request to suspend, and let a suspended domain go on.

    Returns what was done, for people.

    Refused (DomainError) while a save of it is under way. A domain that runs as it should is left alone,
    except that log-dirty is off afterwards.
    """
    done = []
    with open_handles() as handles:
        domain = domains.find(handles, text)
        if domain.domid == 0:
            raise DomainError("domain 0 is the control domain itself: no save can have touched it")
        with locked(domain):
            with contextlib.suppress(XenError):  # it has none, or it was off
                handles.xen.log_dirty_off(domain.domid)
            if withdraw_request(handles.store, domain.domid):
                done.append("a request to suspend was taken back")
            info = handles.xen.domain(domain.domid)
            if info.shutdown and not info.suspended:
                domains.check_can_be_saved(domains.Domain(info, domain.name))
            if domains.kind_of(handles, info) == "hvm":
                done += _recover_device_model(handles, domain.domid)
            if is_arm64_host():
                return done + recover_arm64(handles, info)
            if info.suspended:
                resume_suspended(handles.xen, handles.store, domain.domid)
                done.append("it was suspended and goes on")
            if put_back := processor_cap.put_back(handles, domain):
                done.append(put_back)
    return done


def _recover_device_model(handles: Handles, domid: int) -> list[str]:
    """What was done to it. That it does not answer keeps nobody from recovering the domain."""
    try:
        stopped = DeviceModel(handles.store, domid).recover()
    except DomainError as error:
        return [str(error)]
    return ["its device model had stopped and goes on"] if stopped else []
