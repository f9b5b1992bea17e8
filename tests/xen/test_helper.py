"""`xl` on our engine: LIBXL_SAVE_HELPER names our helper, and everything else is stock."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenarios import copy_goes_on
from xen_lab import Command, Guest, domid_of, must, run, state_of

HELPER = "/usr/local/bin/pysave-helper"

kinds = pytest.mark.parametrize("guest", [("pv", 1), ("pvh", 1)], indirect=True, ids=["pv", "pvh"])
busy_kinds = pytest.mark.parametrize(
    "busy_guest",
    [pytest.param(("pv", 1), id="pv", marks=pytest.mark.slow), pytest.param(("pvh", 1), id="pvh")],
    indirect=True,
)
pv_for_xl = pytest.mark.parametrize("guest_for_xl", [("pv", 1)], indirect=True, ids=["pv"])
pv_only = pytest.mark.parametrize("guest", [("pv", 1)], indirect=True, ids=["pv"])


@pytest.fixture
def with_helper(monkeypatch):
    """For everything that this test runs: xl uses our helper."""
    monkeypatch.setenv("LIBXL_SAVE_HELPER", HELPER)


def stock(*argv: str) -> str:
    """A command that must succeed and uses libxl's own helper."""
    environment = {key: value for key, value in os.environ.items() if key != "LIBXL_SAVE_HELPER"}
    done = subprocess.run(
        argv, capture_output=True, text=True, env=environment, timeout=300, check=False, errors="replace"
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_it_says_whether_this_host_is_set_up_for_it():
    said = must(HELPER, "--check")
    assert "it can work here" in said


def test_started_by_hand_it_says_what_it_is_for():
    said = run(HELPER)
    assert said.returncode == 2
    assert "LIBXL_SAVE_HELPER" in said.stderr


@pytest.mark.parametrize(
    "guest",
    [pytest.param(("pv", 1), id="pv", marks=pytest.mark.slow), pytest.param(("pvh", 1), id="pvh")],
    indirect=True,
)
def test_xl_saves_and_restores_with_it(guest: Guest, images: Path, with_helper):
    before = guest.state()
    said = run("xl", "save", guest.name, str(images / "a.img"))
    assert said.returncode == 0, said.stderr
    assert "suspending the domain" in said.stderr
    assert "pysave-helper" in must("pyimage", "info", str(images / "a.img"))
    said = run("xl", "restore", str(images / "a.img"))
    assert said.returncode == 0, said.stderr
    assert "completing the domain" in said.stderr
    guest.goes_on(before)


@pytest.mark.slow
@kinds
def test_what_xl_saves_with_it_everybody_restores_and_the_other_way_round(
    guest: Guest, images: Path, with_helper
):
    before = guest.state()
    must("xl", "save", guest.name, str(images / "a.img"))
    stock("xl", "restore", str(images / "a.img"))
    guest.goes_on(before)
    stock("xl", "save", guest.name, str(images / "b.img"))
    must("xl", "restore", str(images / "b.img"))
    guest.goes_on(before)


@pytest.mark.slow
@pv_for_xl
def test_xl_saves_and_leaves_it_running_with_it(guest_for_xl: Guest, images: Path, with_helper):
    guest = guest_for_xl
    before = guest.state()
    must("xl", "save", "-c", guest.name, str(images / "a.img"))
    guest.goes_on(before)
    guest.destroy()
    must("pyrestore", str(images / "a.img"))
    copy_goes_on(guest, before)


@busy_kinds
def test_xl_migrates_live_with_it_at_both_ends(busy_guest: Guest, with_helper):
    """A PV guest, too, which stock xl cannot on this Xen: by digests."""
    before, domid = busy_guest.state(), busy_guest.domid
    said = run("xl", "migrate", "-s", "", busy_guest.name, "xl migrate-receive")
    assert said.returncode == 0, said.stderr
    assert "round 1" in said.stderr
    assert busy_guest.domid != domid
    busy_guest.has_arrived()
    busy_guest.goes_on(before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("busy_guest", "ours"),
    # Stock xl cannot send a PV guest live from this Xen, but it can receive one.
    [(("pv", 1), "sender"), (("pvh", 1), "sender"), (("pvh", 1), "receiver")],
    indirect=["busy_guest"],
    ids=["pv-sender", "pvh-sender", "pvh-receiver"],
)
def test_xl_migrates_with_it_at_one_end(busy_guest: Guest, ours: str):
    before, domid = busy_guest.state(), busy_guest.domid
    receive = "xl migrate-receive"
    sender = ["env", f"LIBXL_SAVE_HELPER={HELPER}"] if ours == "sender" else []
    if ours == "receiver":
        receive = f"env LIBXL_SAVE_HELPER={HELPER} {receive}"
    else:
        receive = f"env -u LIBXL_SAVE_HELPER {receive}"
    said = run(*sender, "xl", "migrate", "-s", "", busy_guest.name, receive)
    assert said.returncode == 0, said.stderr
    assert busy_guest.domid != domid
    busy_guest.has_arrived()
    busy_guest.goes_on(before)


@pytest.mark.slow
@pv_for_xl
def test_a_full_disk_is_told_by_xl_and_the_guest_goes_on(guest_for_xl: Guest, images: Path, with_helper):
    guest = guest_for_xl
    before = guest.state()
    small = images / "small"
    small.mkdir()
    must("mount", "-t", "tmpfs", "-o", "size=32m", "none", str(small))
    try:
        said = run("xl", "save", guest.name, str(small / "a.img"))
        assert said.returncode != 0
        assert "No space left" in said.stderr
    finally:
        must("umount", str(small))
    guest.goes_on(before)
    must("xl", "save", "-c", guest.name, str(images / "a.img"))
    guest.goes_on(before)


@pytest.mark.slow
@pv_only
def test_a_damaged_image_is_told_with_its_place_and_no_domain_is_left(
    guest: Guest, images: Path, with_helper
):
    before = guest.state()
    must("xl", "save", guest.name, str(images / "a.img"))
    whole = (images / "a.img").read_bytes()
    (images / "cut.img").write_bytes(whole[: len(whole) // 2])
    said = run("xl", "restore", str(images / "cut.img"))
    assert said.returncode != 0
    assert "ends after" in said.stderr
    assert domid_of(guest.name) is None
    must("xl", "restore", str(images / "a.img"))
    guest.goes_on(before)


@pytest.fixture
def as_the_hosts_default(variant: str) -> Iterator[None]:
    """Our helper where libxl looks for its own, as the README tells."""
    version = variant.split("-")[0]
    own = Path(f"/usr/lib/xen-{version}/bin/libxl-save-helper")
    must("dpkg-divert", "--local", "--rename", "--divert", f"{own}.stock", "--add", str(own))
    own.symlink_to(HELPER)
    try:
        yield
    finally:
        own.unlink()
        must("dpkg-divert", "--local", "--rename", "--remove", str(own))


@pytest.fixture
def ssh_to_itself(tmp_path: Path) -> Iterator[str]:
    """An ssh command that takes this host to itself without a question."""
    key, authorized = tmp_path / "key", Path("/root/.ssh/authorized_keys")
    must("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    before = authorized.read_text()
    authorized.write_text(before + key.with_suffix(".pub").read_text())
    try:
        yield f"ssh -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    finally:
        authorized.write_text(before)


@pytest.mark.slow
@busy_kinds
def test_as_the_hosts_default_it_serves_a_migration_over_ssh(
    busy_guest: Guest, as_the_hosts_default, ssh_to_itself: str
):
    before, domid = busy_guest.state(), busy_guest.domid
    said = run("xl", "migrate", "-s", ssh_to_itself, busy_guest.name, "localhost")
    assert said.returncode == 0, said.stderr
    assert "round 1" in said.stderr  # the sender's
    assert said.stderr.count("pysave-helper: info: completing the domain") == 1  # the receiver's
    assert busy_guest.domid != domid
    busy_guest.has_arrived()
    busy_guest.goes_on(before)


def pid_of_helper(xl: Command) -> int:
    """The helper that this xl runs."""
    return int(must("pgrep", "-P", str(xl.process.pid), "-f", "pysave-helper").split()[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guest_for_xl", "number", "moment"),
    [
        # Not while libxl waits for the guest: it then tries to resume before that has suspended, and gives up.
        (("pv", 1), signal.SIGKILL, "last round"),
        (("pvh", 1), signal.SIGKILL, "last round"),
        (("pvh", 1), signal.SIGTERM, "suspending"),
        (("pv", 1), signal.SIGTERM, "last round"),
    ],
    indirect=["guest_for_xl"],
    ids=["kill-pv", "kill-pvh", "term-pvh", "term-pv"],
)
def test_a_helper_that_is_killed_leaves_a_running_guest(
    guest_for_xl: Guest, images: Path, with_helper, number: signal.Signals, moment: str
):
    guest = guest_for_xl
    before = guest.state()
    save = Command("xl", "save", guest.name, str(images / "a.img"))
    save.wait_for(moment)
    os.kill(pid_of_helper(save), number)
    assert save.finish() != 0, save.said
    guest.goes_on(before)
    must("xl", "save", guest.name, str(images / "b.img"))
    must("xl", "restore", str(images / "b.img"))
    guest.goes_on(before)


@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_ctrl_c_of_xl_leaves_a_running_guest(guest: Guest, images: Path, with_helper):
    """As a terminal does it: to all processes of the group. xl ends without a word, and the helper tidies up."""
    before = guest.state()
    domid = guest.domid
    save = Command("xl", "save", guest.name, str(images / "a.img"))
    save.wait_for("last round")
    os.killpg(save.process.pid, signal.SIGINT)
    assert save.finish() != 0
    assert f"domain {domid} is running" in save.said
    assert "s" not in state_of(guest.name)
    guest.goes_on(before)
