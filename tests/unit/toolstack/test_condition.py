"""What is said of a domain is looked up."""

from __future__ import annotations

import errno
import os
import uuid
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc import XenError
from saverestore.errors import Advice, Remedy
from saverestore.testing.store import MemoryStore
from saverestore.toolstack import lock, userdata
from saverestore.toolstack.condition import Condition, Found, look_up

WEB, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)


def info(domid: int = 7, domain_uuid: uuid.UUID = WEB, **more: object) -> SimpleNamespace:
    state = {"dying": False, "shutdown": False, "shutdown_reason": 0, "paused": False} | more
    suspended = bool(state["shutdown"]) and state["shutdown_reason"] == 2
    return SimpleNamespace(domid=domid, uuid=domain_uuid, suspended=suspended, **state)


def handles_with(*infos: SimpleNamespace, error: XenError | None = None) -> SimpleNamespace:
    def domain(domid: int) -> SimpleNamespace:
        if error is not None:
            raise error
        for one in infos:
            if one.domid == domid:
                return one
        raise XenError("xc_domain_getinfolist", errno.ESRCH, domid=domid)

    return SimpleNamespace(
        xen=SimpleNamespace(domain=domain, domains=lambda: iter(infos)), store=MemoryStore()
    )


@pytest.mark.parametrize(
    ("state", "condition", "what", "remedies"),
    [
        ({}, Condition.RUNNING, "is running", []),
        ({"paused": True}, Condition.PAUSED, "is paused", [Remedy.UNPAUSE_NOW]),
        ({"shutdown": True, "shutdown_reason": 2}, Condition.SUSPENDED, "is suspended", [Remedy.RECOVER]),
        ({"shutdown": True, "shutdown_reason": 3}, Condition.CRASHED, "has crashed", []),
        ({"shutdown": True, "shutdown_reason": 0}, Condition.STOPPED, "has powered off", []),
        ({"shutdown": True, "shutdown_reason": 1}, Condition.STOPPED, "is rebooting", []),
        ({"dying": True, "shutdown": True, "shutdown_reason": 2}, Condition.DYING, "is being destroyed", []),
    ],
)
def test_a_domain_is_what_xen_says_and_remedies_only_where_they_help(state, condition, what, remedies):
    found = look_up(handles_with(info(**state)), 7, WEB)
    assert (found.condition, found.what) == (condition, what)
    assert [advice.remedy for advice in found.remedies] == remedies


def test_a_domain_that_is_not_there_is_gone():
    found = look_up(handles_with(), 7, WEB)
    assert (found.condition, found.what, found.remedies) == (Condition.GONE, "is gone", ())


def test_a_number_that_another_domain_has_now_is_not_the_domain():
    assert look_up(handles_with(info(7, OTHER)), 7, WEB).condition is Condition.GONE


def test_a_guest_that_rebooted_is_gone_and_named_by_its_new_number():
    found = look_up(handles_with(info(8), info(9, OTHER)), 7, WEB)
    assert found.what == "is gone (its UUID is now that of domain 8)"


def test_what_cannot_be_looked_up_is_not_taken_for_running():
    found = look_up(handles_with(error=XenError("xc_domain_getinfolist", errno.EPERM)), 7, WEB)
    assert found.condition is Condition.UNKNOWN
    assert "EPERM" in found.what


def test_a_paused_domain_that_is_being_restored_is_named_as_that(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_DIR", tmp_path)
    with lock.restoring(WEB, None):
        found = look_up(handles_with(info(paused=True)), 7, WEB)
    assert found == Found(Condition.PAUSED, f"is being restored by process {os.getpid()}")


def test_a_migrations_copy_is_for_nobody_to_unpause():
    handles = handles_with(info(paused=True))
    handles.store.write("/local/domain/7/name", "web1--incoming")
    found = look_up(handles, 7, WEB)
    assert found.what == "comes from another host, which may still run it"
    assert found.remedies == (Advice(Remedy.LOOK_FOR_OUTGOING, "web1"),)


def test_one_whose_restore_was_killed_is_for_nobody_to_unpause(tmp_path, monkeypatch):
    """Half of its memory is there, and libxl writes its record when all of it is."""
    monkeypatch.setattr(userdata, "USERDATA_DIR", tmp_path)
    handles = handles_with(info(paused=True))
    handles.store.write("/libxl/7/type", "pvh")
    found = look_up(handles, 7, WEB)
    assert found.what == "is incomplete: a program still creates or restores it, or was killed while it did"
    assert found.remedies == (Advice(Remedy.DESTROY_IF_ABANDONED, 7),)
    userdata.userdata_path(7, WEB).touch()
    assert look_up(handles, 7, WEB).what == "is paused"


def test_a_paused_domain_is_paused_also_where_xenstore_does_not_answer():
    handles = handles_with(info(paused=True))

    def refused(_path: str) -> None:
        raise XenError("xs_read", errno.EIO)

    handles.store = SimpleNamespace(read=refused)
    assert look_up(handles, 7, WEB).what == "is paused"
