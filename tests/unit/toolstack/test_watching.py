"""What the watcher does when a domain shuts down, with a libxl that plays a script."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from uuid import UUID

import pytest

try:
    import pyxc  # noqa: F401
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from pyxc._xen import ffi
from pyxc.control import ShutdownReason as Reason
from pyxc.errors import XenError
from saverestore.cli import watch as command
from saverestore.errors import DomainError, ErrorName, XenRefused
from saverestore.guest.common import handles
from saverestore.toolstack import lock, neighbours
from saverestore.toolstack import watch as watching
from saverestore.toolstack.watch import SETTLE_S, SHORTEST_LIFE_S, Action, action_for, watch

GONE = None


class ScriptedLibxl:
    """`ends`: for each time that it is watched, why the domain shuts down. Notes what it is asked for."""

    def __init__(self, *ends: int | None, dump_fails: bool = False, **config: str) -> None:
        self.config = {"c_info": {"name": "web1"}, **config}
        self.done: list[str] = []
        self.ends = list(ends)
        self.dump_fails = dump_fails
        self.next_domid = 8

    @contextmanager
    def watched(self, domid):
        self.done.append(f"watch {domid}")
        yield lambda: self.ends.pop(0)

    def domain_config(self, domid):
        return json.dumps(self.config)

    def destroy(self, domid):
        self.done.append(f"destroy {domid}")

    def preserve(self, domid, config, suffix):
        assert suffix.startswith("-20")
        self.done.append(f"preserve {domid}")

    def core_dump(self, domid, path):
        self.done.append(f"dump {domid} {path}")
        if self.dump_fails:
            raise XenError("libxl_domain_core_dump", 28, domid=domid)

    def create(self, config):
        assert json.loads(config) == self.config
        self.done.append(f"create {self.next_domid}")
        self.next_domid += 1
        return self.next_domid - 1

    def unpause(self, domid):
        self.done.append(f"unpause {domid}")


def watched(libxl: ScriptedLibxl, *, slept: list[float] | None = None) -> list[str]:
    """What is done from domain 7 on."""
    watch(
        libxl,
        7,
        undisturbed=nullcontext,
        sleep=(slept if slept is not None else []).append,
        clock=lambda: 0.0,
        dumps=Path("/dumps"),
    )
    return libxl.done


@pytest.mark.parametrize(
    ("config", "reason", "action"),
    [
        ({}, Reason.POWEROFF, Action.DESTROY),
        ({"on_reboot": "restart"}, Reason.REBOOT, Action.RESTART),
        ({"on_reboot": "restart"}, Reason.POWEROFF, Action.DESTROY),
        ({"on_crash": "coredump_restart"}, Reason.CRASH, Action.COREDUMP_RESTART),
        ({"on_watchdog": "restart_rename"}, Reason.WATCHDOG, Action.RESTART_RENAME),
        ({"on_soft_reset": "soft_reset"}, Reason.SOFT_RESET, Action.SOFT_RESET),
        ({"on_crash": "write-a-letter"}, Reason.CRASH, Action.PRESERVE),
        ({"on_crash": "restart"}, 17, Action.DESTROY),
    ],
)
def test_the_configuration_says_what_is_to_be_done(config, reason: int, action: Action):
    assert action_for(config, reason) is action


def test_a_domain_that_powers_off_is_destroyed():
    assert watched(ScriptedLibxl(Reason.POWEROFF)) == ["watch 7", "destroy 7"]


def test_one_that_reboots_is_created_anew_and_watched_on():
    libxl = ScriptedLibxl(Reason.REBOOT, Reason.POWEROFF, on_reboot="restart")
    assert watched(libxl) == ["watch 7", "destroy 7", "create 8", "unpause 8", "watch 8", "destroy 8"]


def test_nobody_can_restore_it_between_its_end_and_its_new_start():
    """There is no domain of its UUID then, for seconds: a restore would make a second one."""
    libxl = ScriptedLibxl(Reason.REBOOT, Reason.POWEROFF, on_reboot="restart")

    @contextmanager
    def alone():
        libxl.done.append("locked")
        yield
        libxl.done.append("unlocked")

    watch(libxl, 7, undisturbed=nullcontext, alone=alone, sleep=lambda _: None, clock=lambda: 0.0)
    assert libxl.done == [
        *("watch 7", "locked", "destroy 7", "create 8", "unpause 8", "unlocked"),
        *("watch 8", "locked", "destroy 8", "unlocked"),
    ]


def test_no_restore_gets_its_disks_between_its_end_and_its_new_start():
    libxl = ScriptedLibxl(Reason.REBOOT, Reason.POWEROFF, on_reboot="restart")

    @contextmanager
    def with_disks(text):
        assert json.loads(text) == libxl.config
        libxl.done.append("locked")
        yield
        libxl.done.append("unlocked")

    watch(libxl, 7, undisturbed=nullcontext, with_disks=with_disks, sleep=lambda _: None, clock=lambda: 0.0)
    assert libxl.done == [
        *("watch 7", "locked", "destroy 7", "create 8", "unpause 8", "unlocked"),
        *("watch 8", "destroy 8"),
    ]


def taken(text):
    raise DomainError("web1 would write to disks that other domains write to", name=ErrorName.DISKS_IN_USE)


def test_one_whose_disks_another_domain_has_by_now_is_not_started_again_and_libxl_keeps_its_configuration():
    """A restore finds the disks of a domain that has shut down free: nobody else looks at them then."""
    libxl = ScriptedLibxl(Reason.REBOOT, on_reboot="restart")
    with pytest.raises(DomainError, match="disks that other domains write to"):
        watch(libxl, 7, undisturbed=nullcontext, with_disks=taken, sleep=lambda _: None, clock=lambda: 0.0)
    assert libxl.done == ["watch 7"]


CONFIG = {
    "c_info": {"name": "web1", "uuid": "6b4080d7-0414-4c21-a340-e452e4b608cb", "type": "pvh"},
    "b_info": {"type": "pvh", "max_memkb": 65536},
}


def test_one_that_reboots_when_this_package_has_been_uninstalled_is_started_again(monkeypatch, caplog):
    """Its watcher runs on, and what it has not loaded is gone."""
    monkeypatch.delattr("saverestore.toolstack.neighbours")
    monkeypatch.setitem(sys.modules, "saverestore.toolstack.neighbours", None)
    libxl = ScriptedLibxl(Reason.REBOOT, GONE, on_reboot="restart", **CONFIG)
    watch(
        libxl,
        7,
        undisturbed=nullcontext,
        with_disks=watching._with_disks,
        sleep=lambda _: None,
        clock=lambda: 0.0,
    )
    assert libxl.done == ["watch 7", "destroy 7", "create 8", "unpause 8", "watch 8"]
    assert "write to its disks cannot be looked up: import of saverestore.toolstack.neighbours" in caplog.text


def test_one_whose_uuid_is_being_restored_is_left_and_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(lock, "LOCK_DIR", tmp_path)
    monkeypatch.setattr(watching, "RESTORE_S", 0.0)
    uuid = UUID(CONFIG["c_info"]["uuid"])
    with watching._alone(uuid, "web1"):
        assert lock.restored_by(uuid) is not None
    with (
        lock.restoring(uuid, None),
        pytest.raises(DomainError, match="is being restored by process") as caught,
        watching._alone(uuid, "web1"),
    ):
        pytest.fail("it was let in")
    assert caught.value.__notes__ == ["web1 has shut down, and is left so"]


def test_its_own_disks_are_taken_and_looked_at_and_the_error_says_that_it_is_left(monkeypatch):
    did = []

    @contextmanager
    def disks_kept(parsed, *, force, wait_s):
        did.append(("kept", parsed.name, force, wait_s > 0))
        yield

    def check(_handles, parsed, *, force):
        did.append(("checked", parsed.name, force))
        if len(did) > 2:
            taken("")

    monkeypatch.setattr(neighbours, "disks_kept", disks_kept)
    monkeypatch.setattr(neighbours, "check", check)
    monkeypatch.setattr(handles, "open_handles", nullcontext)
    with watching._with_disks(json.dumps(CONFIG)):
        assert did == [("kept", "web1", False, True), ("checked", "web1", False)]
    with pytest.raises(DomainError) as caught, watching._with_disks(json.dumps(CONFIG)):
        pytest.fail("it was let in")
    assert caught.value.__notes__ == [
        "web1 has shut down, and is left so: it is not started again until 'xl destroy' has removed it and "
        "'xl create' starts it"
    ]


def test_one_that_reboots_at_once_has_to_wait():
    slept: list[float] = []
    watched(ScriptedLibxl(Reason.REBOOT, GONE, on_reboot="restart"), slept=slept)
    assert slept == [SHORTEST_LIFE_S, SETTLE_S]


def test_what_ends_the_watcher_while_one_has_to_wait_leaves_that_domain_with_its_configuration():
    """Only libxl has it, as long as there is the domain: nobody could start it anew."""
    libxl = ScriptedLibxl(Reason.REBOOT, on_reboot="restart")
    disturbed = True

    @contextmanager
    def undisturbed():
        nonlocal disturbed
        disturbed = False
        yield
        disturbed = True

    def ended_by_a_signal(_seconds):
        if disturbed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(libxl, 7, undisturbed=undisturbed, sleep=ended_by_a_signal, clock=lambda: 0.0)
    assert libxl.done == ["watch 7"]


def test_one_that_is_saved_and_goes_on_is_watched_on():
    libxl = ScriptedLibxl(Reason.SUSPEND, Reason.SUSPEND, Reason.POWEROFF)
    assert watched(libxl) == ["watch 7", "watch 7", "watch 7", "destroy 7"]


def test_one_that_somebody_destroyed_is_nobodys_business_any_more():
    assert watched(ScriptedLibxl(GONE)) == ["watch 7"]


def test_one_that_is_to_be_preserved_is_left():
    assert watched(ScriptedLibxl(Reason.CRASH, on_crash="preserve")) == ["watch 7"]


def test_one_that_is_renamed_makes_room_for_a_new_one():
    libxl = ScriptedLibxl(Reason.CRASH, GONE, on_crash="restart_rename")
    assert watched(libxl) == ["watch 7", "preserve 7", "create 8", "unpause 8", "watch 8"]


@pytest.mark.parametrize("dump_fails", [False, True])
def test_a_crash_leaves_a_core_dump_where_that_is_wanted_and_possible(dump_fails: bool):
    libxl = ScriptedLibxl(Reason.CRASH, GONE, dump_fails=dump_fails, on_crash="coredump_restart")
    assert watched(libxl) == [
        "watch 7",
        "dump 7 /dumps/web1",
        "destroy 7",
        "create 8",
        "unpause 8",
        "watch 8",
    ]


def test_a_restart_that_fails_is_an_error_and_not_tried_for_ever():
    libxl = ScriptedLibxl(Reason.REBOOT, on_reboot="restart")

    def create(config):
        raise XenError("libxl_domain_create_new", 12)

    libxl.create = create
    with pytest.raises(
        XenRefused, match=r"domain 7 could not be started again: libxl_domain_create_new.*it is off"
    ):
        watched(libxl)
    assert libxl.done == ["watch 7", "destroy 7"]


def test_one_that_was_created_again_but_not_unpaused_is_not_said_to_be_off():
    libxl = ScriptedLibxl(Reason.REBOOT, on_reboot="restart")

    def unpause(domid):
        raise XenError("libxl_domain_unpause", 5)

    libxl.unpause = unpause
    with pytest.raises(XenRefused, match=r"created again as domain 8, .*'xl unpause 8' starts it") as caught:
        watched(libxl)
    assert "is off" not in str(caught.value)
    assert libxl.done == ["watch 7", "destroy 7", "create 8"]


@pytest.mark.parametrize("wanted", ["", "9" * 30])
def test_one_that_cannot_be_there_is_not_found(wanted):
    class Libxl:
        def domid_of(self, name):
            raise XenError("libxl_name_to_domid", 0)

        def domain_config(self, domid):
            return ffi.new("uint32_t *", domid)

    with pytest.raises(DomainError, match=f"there is no domain '{wanted}'"):
        watching._find(Libxl(), wanted)


def test_a_command_that_names_no_domain_does_not_end_as_if_it_had_watched_one(monkeypatch):
    wanted = []
    monkeypatch.setattr(watching, "watch_domain", lambda domain, **_: wanted.append(domain))
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    assert command.main([""]) == 0
    assert wanted == [""]
