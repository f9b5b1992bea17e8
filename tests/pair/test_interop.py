"""Between `pymigrate` and stock `xl` on two real Xen hosts, over ssh: there by --to-xl, back by `xl migrate`."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from pair_lab import Command, Guest, domains_of, is_running, must, run, signal_to, states_of
from xenlab.pair import Host

pytestmark = pytest.mark.usefixtures("xl_migrates")

slow = pytest.mark.slow


def from_xl(guest: Guest, to: Host, *options: str) -> list[str]:
    """`xl migrate` of a guest into our receiver. With an empty -s, xl runs its last argument as it is."""
    receiver = f"exec ssh {to.label} pymigrate receive --from-xl"
    return ["xl", "migrate", "-s", "", guest.name, " ".join([receiver, *options])]


def goes_to_xl(guest: Guest, here: Host, there: Host) -> dict[str, Any]:
    """It goes to stock xl by pymigrate: its state there."""
    before = guest.state()
    said = run(here, "pymigrate", "--to-xl", guest.name, there.label)
    assert said.returncode == 0, said.stderr
    assert domains_of(here) == {}
    assert states_of(here)[-1] == "DONE"
    guest.has_moved_to(there)
    state = guest.resumed(before)
    assert is_running(there, guest.name)
    return state


def test_a_guest_that_writes_goes_to_stock_xl_and_comes_back_from_it(a: Host, b: Host, guest: Guest) -> None:
    there = goes_to_xl(guest, a, b)
    said = run(b, *from_xl(guest, a))
    assert said.returncode == 0, said.stderr
    assert domains_of(b) == {}
    guest.has_moved_to(a)
    guest.resumed(there)
    assert is_running(a, guest.name)
    assert states_of(a)[-1] == "RUNNING"


@slow
@pytest.mark.parametrize("guest", [("pv", 1)], ids=["pv"], indirect=True)
def test_a_pv_guest_goes_to_stock_xl_and_stays_there_where_xl_cannot_log_its_dirty_pages(
    a: Host, b: Host, guest: Guest
) -> None:
    """Debian's Xen has no shadow paging: there `xl migrate` of a PV guest fails, whoever receives."""
    there = goes_to_xl(guest, a, b)
    said = run(b, *from_xl(guest, a))
    assert said.returncode == 1, said.stderr
    assert "Failed to enable logdirty" in said.stderr
    assert "no domain was left" in said.stderr
    guest.resumed(there)
    assert is_running(b, guest.name)
    assert domains_of(a) == {}
    said = run(b, "pymigrate", guest.name, a.label)
    assert said.returncode == 0, said.stderr
    guest.has_moved_to(a)
    guest.resumed(there)


@slow
def test_it_is_paused_at_either_end_where_that_is_asked_for(a: Host, b: Host, guest: Guest) -> None:
    before = guest.state()
    said = run(a, "pymigrate", "--to-xl", "-p", guest.name, b.label)
    assert said.returncode == 0, said.stderr
    assert "p" in domains_of(b)[guest.name]
    guest.has_moved_to(b)
    must(b, "xl", "unpause", guest.name)
    there = guest.resumed(before)
    said = run(b, *from_xl(guest, a, "--paused"))
    assert said.returncode == 0, said.stderr
    assert "p" in domains_of(a)[guest.name]
    guest.has_moved_to(a)
    must(a, "xl", "unpause", guest.name)
    guest.resumed(there)


def test_a_dry_run_finds_xl_there_and_changes_nothing(kept_guest: Guest) -> None:
    here, there = kept_guest.host, kept_guest.other_host
    said = run(here, "pymigrate", "--dry-run", "--to-xl", kept_guest.name, there.label)
    assert said.returncode == 0, said.stderr
    assert is_running(here, kept_guest.name)
    assert domains_of(there) == {}


def test_ctrl_c_amid_the_rounds_leaves_it_running_here_and_nothing_with_xl(kept_guest: Guest) -> None:
    here, there = kept_guest.host, kept_guest.other_host
    before = kept_guest.state()
    migration = Command(here, "pymigrate", "-v", "--to-xl", kept_guest.name, there.label)
    migration.wait_for("round 0")
    signal_to(here, f"pymigrate -v --to-xl {kept_guest.name}", signal.SIGINT)
    assert migration.finish() == 130, migration.lines
    kept_guest.resumed(before)
    assert is_running(here, kept_guest.name)
    assert domains_of(there) == {}
    assert states_of(here)[-1] == "ABORTED"


def test_a_name_that_is_taken_there_has_xl_give_the_domain_back(a: Host, b: Host, guest: Guest) -> None:
    """xl finds that out when it was granted the domain; it destroys its copy, and this host resumes its own."""
    before = guest.state()
    other = Guest(guest.pair, guest.name, guest.kind)
    other.create(b)
    try:
        said = run(a, "pymigrate", "--to-xl", guest.name, b.label)
        assert said.returncode == 5, said.stderr
        assert "could not start the domain, and gave it back" in said.stderr
        guest.resumed(before)
        assert is_running(a, guest.name)
        assert list(domains_of(b)) == [guest.name]
        assert states_of(a)[-1] == "ABORTED"
    finally:
        run(b, "xl", "destroy", guest.name)


@slow
def test_a_receiver_for_xl_that_is_killed_leaves_the_domain_with_xl(a: Host, b: Host, guest: Guest) -> None:
    before = guest.state()
    said = run(a, "pymigrate", "--to-xl", guest.name, b.label)
    assert said.returncode == 0, said.stderr
    guest.has_moved_to(b)
    there = guest.resumed(before)
    migration = Command(b, *from_xl(guest, a))
    must(a, f"timeout 120 sh -c 'until xl domid {guest.name}--incoming; do sleep 0.2; done' 2>/dev/null")
    signal_to(a, "pymigrate receive --from-xl", signal.SIGKILL)
    assert migration.finish() == 1, migration.lines
    guest.resumed(there)
    assert is_running(b, guest.name)
    must(a, "pymigrate", "recover", "--all")
    assert domains_of(a) == {}
