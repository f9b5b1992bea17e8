"""Saves and restores during which somebody else does something to the domain, at random moments, on real Xen.

What error and `--report` say of the domain is held against what Xen says of it. The same list, at every step, on an
in-memory guest: `tests/unit/operations/test_faults_at_each_step.py`. A xenstore that is full is tried there alone, as
xenstored knows no quota for domain 0.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from test_faults import next_save_is_whole
from test_faults_met import HOLD_PAGE, HOLD_QMP, MINI_FUSE, own, somebody
from test_stress import LONGEST_SAVE_S, chance, options
from xen_lab import Command, Guest, domid_of, handles, must, no_partial_files, run

pytestmark = pytest.mark.slow
__all__ = ["chance"]

TIMES = 6
DOMAIN, XEN = 3, 6

STOPPED = {0: "has powered off", 1: "is rebooting", 2: "is suspended", 3: "has crashed"}
STAGES = ("has crashed", "has powered off", "is rebooting", "is being destroyed", "is gone")
"""Of a domain that ends, in this order or a part of it: by the time that we look it may be further."""


def truth_of(domid: int) -> str:
    """What Xen says of the domain of this number."""
    for info in handles().xen.domains():
        if info.domid != domid:
            continue
        if info.dying:
            return "is being destroyed"
        if info.shutdown:
            return STOPPED[info.shutdown_reason]
        return "is paused" if info.paused else "is running"
    return "is gone"


@contextmanager
def after(seconds: float, do: Callable[[], object]) -> Iterator[None]:
    """Meanwhile, somebody else does that."""
    timer = threading.Timer(seconds, do)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def account_is_true(said: str, report: Path, truth: str) -> None:
    """Error and report say the same of the domain, once, and that is what it is, or was a moment ago."""
    said = said.replace("the domain is suspended all the same", "")  # of the rounds, not of how it is now
    told = [what for what in (*STAGES, "is running", "is paused", "is suspended") if what in said]
    assert told, said
    ends = truth in STAGES
    assert all(what in STAGES if ends else what == truth for what in told), f"{said}: {truth}"
    assert all(said.count(what) == 1 for what in told), said
    state = json.loads(report.read_text())["domain_state"]
    words = {"is running": "running|unchanged", "is paused": "paused", "is suspended": "suspended"}
    if "so it cannot answer" in said:  # paused before the save began
        words["is paused"] = "unchanged"
    wanted = "crashed|shut down|being destroyed|gone" if ends else words[truth]
    assert re.match(wanted, state), f"{state}: {truth}"
    assert ("--recover" in said) == (truth == "is suspended"), said
    assert ("xl unpause" in said) == (truth == "is paused"), said


ENDS: dict[str, Callable[[Guest], None]] = {
    "crashed": lambda guest: must("xl", "sysrq", guest.name, "c"),
    "powered off": lambda guest: must("xl", "sysrq", guest.name, "o"),
    "rebooting": lambda guest: must("xl", "sysrq", guest.name, "b"),
    "destroyed": lambda guest: must("xl", "destroy", guest.name),
    "dying": lambda guest: must("xl", "destroy", guest.name),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_a_domain_that_ends_while_it_is_saved_is_said_to_have_ended(
    images: Path, chance: random.Random, kind: str, end: str
):
    for number in range(TIMES // 2):
        with own(f"e{number}-{kind}", kind, more=("--extra", "sysrq_always_enabled")) as guest:
            domid, seconds = guest.domid, chance.uniform(0.3, LONGEST_SAVE_S)
            report = images / "r.json"
            holds: AbstractContextManager[object] = (
                somebody(HOLD_PAGE, str(domid)) if end == "dying" and kind == "pvh" else nullcontext()
            )
            command = ["pysave", *options(chance), "--report", str(report), guest.name, str(images / "a.img")]

            def act(guest: Guest = guest) -> None:
                with suppress(AssertionError):  # it is suspended, or gone
                    ENDS[end](guest)

            with holds, after(seconds, act):
                save = Command(*command)
                code = save.finish()
                try:
                    assert "Traceback" not in save.said
                    no_partial_files(images)
                    assert (images / "a.img").exists() == (code == 0)
                    if code:
                        assert code in (DOMAIN, XEN), save.said
                    if "there is no domain" in save.said:  # it had ended before the save began
                        assert truth_of(domid) in STAGES
                    elif code:
                        account_is_true(save.said, report, truth_of(domid))
                except BaseException as error:
                    error.add_note(f"{end} after {seconds:.2f} s: {command}: {save.said}")
                    raise
            (images / "a.img").unlink(missing_ok=True)


@pytest.mark.parametrize("guest", [("pv", 1), ("pvh", 1)], indirect=True, ids=["pv", "pvh"])
def test_a_domain_that_somebody_pauses_while_it_is_saved_stays_paused_and_is_said_to_be(
    guest: Guest, images: Path, chance: random.Random
):
    before, domid = guest.state(), guest.domid
    for _ in range(TIMES):
        seconds, report = chance.uniform(0.3, LONGEST_SAVE_S), images / "r.json"
        command = [*options(chance), "--suspend-timeout", "5", "--report", str(report)]
        paused = threading.Event()

        def pause(paused: threading.Event = paused) -> None:
            handles().xen.pause(domid)
            paused.set()

        with after(seconds, pause):
            save = Command("pysave", *command, guest.name, str(images / "a.img"))
            code = save.finish()
        try:
            assert truth_of(domid) == ("is paused" if paused.is_set() else "is running"), save.said
            assert code in (0, DOMAIN), save.said
            if code:
                account_is_true(save.said, report, truth_of(domid))
        finally:
            if paused.is_set():
                handles().xen.unpause(domid)
        (images / "a.img").unlink(missing_ok=True)
    guest.goes_on(before)
    next_save_is_whole(guest, images)


def test_a_device_model_that_another_program_takes_at_some_moment_is_told_and_runs_on(
    images: Path, chance: random.Random
):
    with own("q2", "hvm") as guest:
        before, domid = guest.state(), guest.domid
        for _ in range(TIMES):
            report, held = images / "r.json", []
            done = threading.Event()

            def hold(held: list[str] = held, done: threading.Event = done) -> None:
                with somebody(HOLD_QMP, str(domid)):
                    held.append("held")
                    done.wait(120)

            with after(chance.uniform(0.3, LONGEST_SAVE_S), hold):
                save = Command(
                    "pysave", *options(chance), "--report", str(report), guest.name, str(images / "a.img")
                )
                code = save.finish()
                done.set()
            assert code in (0, DOMAIN), save.said
            if code:
                assert "device model" in save.said
                account_is_true(save.said, report, truth_of(domid))
            assert truth_of(domid) == "is running", save.said
            (images / "a.img").unlink(missing_ok=True)
        guest.goes_on(before)


ODDITIES = ("nlink0", "no-statfs", "no-link", "no-fsync", "no-truncate", "short-writes", "late-eio")


def test_whatever_a_file_system_answers_the_domain_runs_and_is_said_to(images: Path, chance: random.Random):
    run("modprobe", "fuse")
    if not Path("/dev/fuse").exists():
        pytest.skip("this dom0 has no FUSE")
    # A small guest: each write goes through Python, emulated, and a short one is a third of it.
    with own("fuse", "pvh", memory_mib=96, pages=512, rate=100) as guest:
        before = guest.state()
        for number in range(TIMES // 2):
            folder, report = images / f"fuse{number}", images / "r.json"
            folder.mkdir()
            oddities = chance.sample(ODDITIES, chance.randrange(1, 4))
            if number == 0 and "late-eio" not in oddities:
                oddities.append("late-eio")
            program = f"import runpy; runpy.run_path({str(MINI_FUSE)!r}, run_name='__main__')"
            with somebody(program, str(folder), *oddities):
                try:
                    save = Command(
                        "pysave", *options(chance), "--report", str(report), guest.name, str(folder / "a.img")
                    )
                    code = save.finish()
                    assert (code != 0) == ("late-eio" in oddities), f"{oddities}: {save.said}"
                    assert truth_of(guest.domid) == "is running"
                    if code:
                        account_is_true(save.said, report, "is running")
                        assert not (folder / "a.img").exists()
                finally:
                    run("umount", "-l", str(folder))
        guest.goes_on(before)


@pytest.mark.parametrize("toolstack", ["auto", "bare"])
@pytest.mark.parametrize("guest", [("pv", 1), ("pvh", 1)], indirect=True, ids=["pv", "pvh"])
def test_a_domain_whose_memory_is_limited_while_it_is_restored_is_left_or_not_as_is_said(
    guest: Guest, images: Path, chance: random.Random, toolstack: str
):
    """`xl mem-max` by somebody else, as soon as there is a domain of that name, or later."""
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    restored = False
    for _ in range(TIMES):
        over = threading.Event()

        def limit(over: threading.Event = over, delay_s: float = chance.uniform(0, 2)) -> None:
            while not over.wait(0.02):
                if (domid := domid_of(guest.name)) is not None:
                    over.wait(delay_s)
                    with suppress(Exception):  # it is gone, or runs
                        handles().xen.set_max_memory(domid, 8 << 10)
                    return

        with after(0, limit):
            said = run("pyrestore", "--toolstack", toolstack, str(images / "a.img"))
            over.set()
        domid = domid_of(guest.name)
        assert "Traceback" not in said.stderr
        restored = said.returncode == 0
        assert (domid is not None) == restored, said.stderr
        if restored:
            break
        assert said.stderr.count("no domain was left") == 1, said.stderr
    if not restored:
        must("pyrestore", str(images / "a.img"))
    must("xl", "mem-max", guest.name, str(guest.memory_mib))
    guest.goes_on(before)
