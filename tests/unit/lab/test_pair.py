"""The pair without QEMU: a shell script stands in for it, and for dom0 whatever a test says."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xenlab import apt, cable, cli, machine, pair, qemu, runstate
from xenlab.errors import LabError
from xenlab.pair import Host, Pair, variants_of

BOOTS = "echo LAB-DOM0-READY > {folder}/serial.log; exec sleep 600"
PANICS = "echo Kernel panic > {folder}/serial.log; exec sleep 600"


class Lab:
    """What stands in for QEMU, by host, and what was run in dom0."""

    def __init__(self) -> None:
        self.script = {"a": BOOTS, "b": BOOTS}
        self.booted: list[qemu.Boot] = []
        self.commands: list[tuple[str, Any]] = []
        self.base = "base"


@pytest.fixture
def lab(lab_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    found = Lab()

    def command_line(boot: qemu.Boot) -> list[str]:
        assert boot.member is not None
        found.booted.append(boot)
        return ["sh", "-c", found.script[boot.member.name].format(folder=boot.run_folder)]

    def build(host: Host) -> qemu.Boot:
        disk = lab_cache / found.base / "disk.img"
        return qemu.Boot(Path("/x/xen"), Path("/x/k"), Path("/x/i"), disk, host.folder, 0, 6144, 2560)

    def run_logged(argv: list[str], *_: Any, **__: Any) -> None:
        assert argv[0] == "qemu-img"
        Path(argv[-1]).write_text("fresh")

    def run(host: Host, command: Any, *_: Any, **__: Any) -> None:
        found.commands.append((host.member.name, command))

    monkeypatch.setattr(qemu, "command_line", command_line)
    monkeypatch.setattr(machine.Machine, "build", build)
    monkeypatch.setattr(machine.Machine, "run", run)
    monkeypatch.setattr(pair, "run_logged", run_logged)
    monkeypatch.setattr(apt, "missing_host_packages", lambda _: [])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield found
    for number, handler in handlers.items():  # that main() of `tools/lab` has replaced
        signal.signal(number, handler)
    Pair().down()


def test_both_are_up_with_disks_of_their_own_one_that_both_see_and_memory_of_a_pairs_host(lab: Lab) -> None:
    Pair().up()
    a, b = lab.booted
    assert a.member is not None
    assert b.member is not None
    assert (a.member.hostname, b.member.hostname) == ("hosta", "hostb")
    assert a.member.shared_disk == b.member.shared_disk
    assert a.disk != b.disk
    assert {boot.memory_mib for boot in lab.booted} == {pair.MEMORY_MIB}
    assert [host.state is not None for host in Pair().hosts] == [True, True]


def test_up_again_boots_nothing(lab: Lab) -> None:
    Pair().up()
    pids = [host.require_up().pid for host in Pair().hosts]
    Pair().up()
    Pair().up(variants_of("4.17"))
    assert [host.require_up().pid for host in Pair().hosts] == pids


def test_down_ends_all_that_runs_and_removes_what_was_written(lab: Lab) -> None:
    Pair().up()
    pids = [host.require_up().pid for host in Pair().hosts]
    assert Pair().down() is True
    assert [runstate.start_ticks(pid) for pid in pids] == [None, None]
    assert runstate.read_process("pair") is None
    left = {path.name for path in runstate.run_folder("pair").rglob("*") if path.is_file()}
    assert left <= {"lock", "cable.log", "serial.log", "qemu.log"}
    assert Pair().down() is False


def test_a_host_whose_plug_was_pulled_finds_its_disk_at_the_next_boot(lab: Lab) -> None:
    Pair().up()
    Pair().b.disk.write_text("journal")
    other = Pair().a.require_up().pid
    assert Pair().power_off("b") is True
    assert Pair().power_off("b") is False
    assert Pair().b.state is None
    Pair().power_on("b")
    assert Pair().b.state is not None
    assert Pair().b.disk.read_text() == "journal"
    assert Pair().a.require_up().pid == other


def test_of_two_hosts_that_are_off_the_one_asked_for_is_booted_with_the_memory_of_its_pair(lab: Lab) -> None:
    Pair().up(memory_mib=4000)
    Pair().power_off("a")
    Pair().power_off("b")
    Pair().power_on("b")
    assert [host.state is not None for host in Pair().hosts] == [False, True]
    assert lab.booted[-1].memory_mib == 4000


def test_a_pair_whose_record_is_torn_is_made_anew(lab: Lab) -> None:
    Pair().up()
    left = Pair().b.require_up().pid
    (runstate.run_folder("pair") / "pair.json").write_text("{torn")
    Pair().up()
    assert runstate.start_ticks(left) is None
    assert [host.state is not None for host in Pair().hosts] == [True, True]


def test_a_pair_whose_disks_cannot_be_made_leaves_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: list[str], *_: Any, **__: Any) -> None:
        if "pair/b" in argv[-1]:
            raise LabError("no space")
        Path(argv[-1]).write_text("fresh")

    with monkeypatch.context() as context:
        context.setattr(pair, "run_logged", fails)
        with pytest.raises(LabError, match="no space"):
            Pair().up()
    assert not Pair().is_there
    assert not Host("a").disk.exists()
    Pair().up()


def test_after_a_boot_that_failed_nothing_runs_nothing_is_left_and_the_next_one_goes_through(
    lab: Lab,
) -> None:
    lab.script["b"] = PANICS
    with pytest.raises(LabError, match="Kernel panic"):
        Pair().up()
    assert not Pair().is_there
    assert runstate.read("pair/a") is None
    assert runstate.read_process("pair") is None
    lab.script["b"] = BOOTS
    Pair().up()


def test_a_host_that_fails_to_come_back_leaves_the_other_one_and_both_disks(lab: Lab) -> None:
    Pair().up()
    Pair().power_off("b")
    lab.script["b"] = PANICS
    with pytest.raises(LabError, match="Kernel panic"):
        Pair().power_on("b")
    assert Pair().a.state is not None
    assert Host("b").disk.is_file()
    assert runstate.read("pair/b") is None


def test_an_interrupt_during_the_boot_ends_what_was_started(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = time.sleep
    came: list[float] = []

    def interrupted(seconds: float) -> None:
        came.append(seconds)
        if len(came) == 1:  # what is ended then is waited for by the same function
            os.kill(os.getpid(), signal.SIGINT)
        wait(seconds)

    lab.script["b"] = "exec sleep 600"
    # Not undone as a whole: the end of `lab` must not find the real pair.
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("xenlab.boot.time.sleep", interrupted)
        Pair().up()
    assert [runstate.read(f"pair/{name}") for name in "ab"] == [None, None]
    assert runstate.read_process("pair") is None


def test_what_a_killed_up_left_half_booted_is_ended_by_the_next_one(lab: Lab) -> None:
    Pair().up()
    left = Pair().b.require_up()
    runstate.write("pair/b", runstate.RunState(**{**left.__dict__, "ready": False}))
    assert Pair().b.state is None
    Pair().up()
    assert runstate.start_ticks(left.pid) is None
    assert Pair().b.require_up().pid != left.pid


def test_down_ends_a_pair_that_is_half_up(lab: Lab) -> None:
    Pair().up()
    Pair().power_off("a")
    left = Pair().b.require_up()
    runstate.write("pair/b", runstate.RunState(**{**left.__dict__, "ready": False}))
    (runstate.run_folder("pair") / "pair.json").write_text("{torn")
    assert Pair().down() is True
    assert runstate.start_ticks(left.pid) is None


def test_another_xen_than_the_pair_has_is_refused_until_it_is_down(lab: Lab) -> None:
    Pair().up(variants_of("4.17:4.20"))
    with pytest.raises(LabError, match=r"the pair is 4\.17:4\.20: run `tools/lab pair down`"):
        Pair().up(variants_of("4.17"))


def test_a_host_is_not_booted_over_another_disk_than_it_was_begun_with(lab: Lab) -> None:
    Pair().up()
    Pair().power_off("b")
    lab.base = "rebuilt"
    with pytest.raises(LabError, match="no longer there: run `tools/lab pair down`"):
        Pair().power_on("b")


def test_without_a_pair_a_command_says_how_to_make_one(lab: Lab) -> None:
    with pytest.raises(LabError, match="run `tools/lab pair up`"):
        _ = Pair().a
    Pair().up()
    Pair().power_off("a")
    with pytest.raises(LabError, match="hosta lab is down: run `tools/lab pair up`"):
        Pair().a.require_up()


def test_the_single_machine_of_the_lab_is_another_one(lab: Lab) -> None:
    Pair().up()
    assert machine.Machine("4.17").state is None
    assert machine.Machine("4.17").down() is False
    assert Pair().a.state is not None


def test_variants_are_those_of_both_or_of_each_and_of_one_architecture() -> None:
    assert variants_of("4.17") == {"a": "4.17", "b": "4.17"}
    assert variants_of("4.17:4.20") == {"a": "4.17", "b": "4.20"}
    with pytest.raises(LabError, match="two architectures"):
        variants_of("4.17:4.17-arm64")
    with pytest.raises(LabError, match=r"no variant '5\.0'"):
        variants_of("4.17:5.0")


@pytest.mark.parametrize("arguments", [["--xen", "5.0"], ["--xen", "4.17:4.17-arm64"], ["--arch", "mips"]])
def test_a_pair_that_cannot_be_is_wrong_usage(arguments: list[str], lab: Lab) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["pair", "up", *arguments])
    assert ended.value.code == 2


def test_arch_gives_both_hosts_the_xen_of_that_architecture(lab: Lab) -> None:
    assert cli.main(["pair", "up", "--arch", "arm64"]) == 0
    assert [host.variant.name for host in Pair().hosts] == ["4.17-arm64", "4.17-arm64"]


@pytest.mark.parametrize("arguments", [[], ["cut", "--rate", "1mbit"]])
def test_link_wants_an_action_or_values_and_not_both(
    arguments: list[str], lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pair", "link", *arguments]) == 1
    assert "either one of cut, heal, show" in capsys.readouterr().err


def test_a_cut_is_set_on_both_hosts_or_on_the_one_that_sends(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pair, "shown_link", lambda _: {})
    Pair().up()
    lab.commands.clear()
    cli.main(["pair", "link", "cut"])
    cli.main(["pair", "link", "cut", "--sent-by", "b"])
    cli.main(["pair", "link", "heal"])
    done = [(name, command[:2]) for name, command in lab.commands]
    cut, heal = ["lab-link", "set"], ["lab-link", "heal"]
    assert done == [("a", cut), ("b", cut), ("b", cut), ("a", heal), ("b", heal)]


def test_the_cable_is_between_the_two(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[tuple[Path, Path]] = []
    monkeypatch.setattr(cable, "ensure", lambda _, both: ends.append(both))
    Pair().up()
    assert ends == [tuple(boot.member.cable for boot in lab.booted if boot.member)]
