"""What the tests on real Xen do with guests: boot, watch, save, restore. See conftest for where they run."""

from __future__ import annotations

import atexit
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from launcher import Popen

BOOT_TIMEOUT_S = 300
"""An HVM guest with a disk took 130 s, most of it while the device model handed its kernel over byte by byte."""
BOOT_ATTEMPTS = 4
LINE_TIMEOUT_S = 90
AWHILE_S = 90
QUIET_S = 3  # so long without a line, and a guest is looked for
COMMAND_TIMEOUT_S = 300

MEMORY_MIB = 128
HVM_MEMORY_MIB = 160
LESS_MEMORY_MIB = 104  # what it has after giving some back
DIRTY_PAGES = 2048

SEEN_BEFORE = 300
"""So many bytes of a log, a line or two with their counters, tell whether it is the one read before."""


def run(
    *argv: str, timeout_s: float = COMMAND_TIMEOUT_S, stdin: Any = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its status is for the caller to judge."""
    with Popen(
        argv,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            out, error = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, error)


def must(*argv: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run a command that must succeed: its standard output."""
    done = run(*argv, timeout_s=timeout_s)
    assert done.returncode == 0, f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def must_pipe(writer: Sequence[str], reader: Sequence[str]) -> None:
    """Run two commands with a pipe between them; both must succeed. Behind `bash`, ours would start cold."""
    with Popen(writer, stdout=subprocess.PIPE) as writing:
        with Popen(reader, stdin=writing.stdout) as reading:
            assert writing.stdout is not None
            writing.stdout.close()
            assert reading.wait(COMMAND_TIMEOUT_S) == 0
        assert writing.wait(COMMAND_TIMEOUT_S) == 0


@cache
def handles() -> Any:
    """Xen and xenstore, open until the tests end.

    A test looks at its guest some dozen times, and `xl` takes up to half a second to say anything under emulation.
    """
    from saverestore.guest.common.handles import open_handles

    opened = ExitStack()
    atexit.register(opened.close)
    return opened.enter_context(open_handles())


def domid_of(name: str) -> int | None:
    """As `xl domid` tells it."""
    for domain in handles().xen.domains():
        if handles().store.read(f"/local/domain/{domain.domid}/name") == name:
            return int(domain.domid)
    return None


def state_of(name: str) -> str:
    """The six letters of `xl list`: r b p s c d."""
    from pyxc.control import ShutdownReason

    domid = domid_of(name)
    for domain in handles().xen.domains():
        if domain.domid == domid:
            crashed = domain.shutdown and domain.shutdown_reason == ShutdownReason.CRASH
            found = (domain.running, domain.blocked, domain.paused, domain.shutdown, crashed, domain.dying)
            return "".join(letter if flag else "-" for letter, flag in zip("rbpscd", found, strict=True))
    return "gone"


SLOW_HOTPLUG = "online because of timeout"
"""What libxl prints of a script that took longer than it waits, 10 s: under emulation that happens."""

boots_repeated: list[str] = []
"""Guests that did not boot at first, by name; once for each time."""


booted_domids: set[int] = set()
"""Of guests that `lab-guest create` made: numbers are not used twice while Xen runs."""


def only_booted(domid: int) -> bool:
    """Whether no save or restore of ours has touched this domain: each takes its lock first, whose file stays."""
    return domid in booted_domids and not Path(f"/run/pysave/domain-{domid}.lock").exists()


@dataclass
class Guest:
    """One of the lab's guests, by name. Its console log goes on in one file over saves and restores."""

    name: str
    kind: str
    vcpus: int
    memory_mib: int = 0
    _told: Any = field(default=None, repr=False, compare=False)
    _at: int = field(default=0, repr=False, compare=False)
    """So much of its log has been read, in bytes."""
    _before: bytes = field(default=b"", repr=False, compare=False)
    """The end of that: other bytes there mean that the log is a new one."""

    def __post_init__(self) -> None:
        self.memory_mib = self.memory_mib or (HVM_MEMORY_MIB if self.kind == "hvm" else MEMORY_MIB)

    def create(self, *, pages: int = DIRTY_PAGES, rate: int = 0, more: tuple[str, ...] = ()) -> None:
        """Boot it and wait for its first line; again when it fails, as nothing of ours has touched it yet."""
        for attempt in range(1, BOOT_ATTEMPTS + 1):
            booted = run(
                "lab-guest", "create", self.name, "--kind", self.kind, "--vcpus", str(self.vcpus),
                "--memory", str(self.memory_mib), "--pages", str(pages), "--rate", str(rate), *more,
            )  # fmt: skip
            assert booted.returncode == 0 or SLOW_HOTPLUG in booted.stderr, booted.stderr
            if (domid := domid_of(self.name)) is not None:
                booted_domids.add(domid)
            if booted.returncode == 0:
                booted = run(
                    "lab-guest",
                    "wait",
                    self.name,
                    "--timeout",
                    str(BOOT_TIMEOUT_S),
                    timeout_s=BOOT_TIMEOUT_S + 60,
                )
            if booted.returncode == 0:
                return
            # Reported here, so that a later failure of the test is not taken for the emulator's.
            print(f"{self.name}: boot {attempt} failed: {booted.stderr}\n{run('xl', 'dmesg', '-c').stdout}")
            boots_repeated.append(self.name)
            self.destroy()
        raise AssertionError(f"{self.name} does not boot")

    @property
    def domid(self) -> int:
        found = domid_of(self.name)
        assert found is not None, f"{self.name} is not there"
        return found

    @property
    def log(self) -> Path:
        """What xenconsoled writes of its console."""
        return Path(f"/var/log/xen/console/guest-{self.name}.log")

    def state(self) -> dict[str, Any]:
        """The last line it printed, and what its whole log says: what `lab-guest state` prints.

        Read here, as starting a program for it takes a second under emulation, several times a test; and only what
        is new, as the log of a guest that lives for an hour takes as long.
        """
        from labline import GuestLog  # of the lab's dom0

        with self.log.open("rb") as file:
            file.seek(max(0, self._at - len(self._before)))
            if self._told is None or file.read(len(self._before)) != self._before:  # begun anew
                self._told, self._at = GuestLog(), 0
                file.seek(0)
            new = file.read()
        taken = self._told.take(new.decode("latin-1"))
        if taken:
            self._at += taken
            self._before = new[max(0, taken - SEEN_BEFORE) : taken]
        found: dict[str, Any] = self._told.as_dict()
        assert "counter" in found, f"{self.name} has printed no LAB line:\n{self._text()[-2000:]}"
        return found

    def _text(self) -> str:
        return self.log.read_bytes().decode("utf-8", "replace")

    def next_lines(self, count: int) -> dict[str, Any]:
        """Wait until it has printed so many more lines: its state then."""
        deadline = time.monotonic() + LINE_TIMEOUT_S
        wanted = self.state()["lines"] + count
        size, look_for_it_at = -1, 0.0
        while (now_s := time.monotonic()) < deadline:
            # A long log parsed ten times a second would take the processor from the guest.
            if (now := self.log.stat().st_size) != size:
                size, look_for_it_at = now, now_s + QUIET_S
                state = self.state()
                if state["lines"] >= wanted:
                    return state
            elif now_s > look_for_it_at:
                if domid_of(self.name) is None:
                    break  # nothing more will come
                look_for_it_at = now_s + QUIET_S
            select.select([], [], [], 0.1)
        raise AssertionError(
            f"{self.name} ({state_of(self.name)}) printed nothing new in {LINE_TIMEOUT_S} s, or since it is gone:\n"
            f"{self._text()[-2000:]}"
        )

    def goes_on(self, since: dict[str, Any]) -> dict[str, Any]:
        """Wait for lines newer than `since`: the same memory, the next counter, a later uptime, nothing wrong."""
        # Two lines from now on: `since` was taken before the command at hand, and the guest printed more until it
        # was suspended; one may be under way.
        now = self.next_lines(2)
        assert now["hash"] == since["hash"], "its memory is not what it was"
        assert now["uptime_s"] > since["uptime_s"]
        assert now["boots"] == since["boots"], "it booted again"
        assert now["vcpus"] == since["vcpus"]
        for before, after in now["gaps"][len(since["gaps"]) :]:
            # What was in the console's ring at the moment of the save may be lost: one line.
            assert before < after <= before + 2, f"its counter went from {before} to {after}"
        self.assert_clean(now)
        assert self.is_running()
        return now

    def assert_clean(self, state: dict[str, Any] | None = None) -> None:
        """The dirtier found no page, register or counter that is not what it must be, over the whole log."""
        state = state or self.state()
        assert state["corrupt"] == 0, state
        assert state["corrupt_lines"] == 0, state
        assert state["clean"], state

    def is_running(self) -> bool:
        """There, and neither paused, shut down, crashed nor dying."""
        return not set(state_of(self.name)) & set("pscd") and domid_of(self.name) is not None

    def rest(self) -> None:
        """From now on it is paused, if it was running."""
        if self.is_running():
            handles().xen.pause(self.domid)

    def wake(self) -> None:
        """From now on it runs, if it was paused."""
        if state_of(self.name)[2:3] == "p":
            handles().xen.unpause(self.domid)

    def work(self, rate: int, *, ymm: bool) -> None:
        """From now on its dirtier rewrites so many pages a second, with or without the ymm registers."""
        if self._works_as(rate, ymm, self.state()):
            return
        terminal = handles().store.read(f"/local/domain/{self.domid}/console/tty")
        assert terminal, f"{self.name} has no console"
        writing = os.open(terminal, os.O_WRONLY | os.O_NOCTTY)
        try:
            os.write(writing, f"rate={rate} ymm={int(ymm)}\n".encode())
        finally:
            os.close(writing)
        for _ in range(5 * LINE_TIMEOUT_S):
            if self._works_as(rate, ymm, self.next_lines(1)):
                return
        raise AssertionError(f"{self.name} does not take what its console says")

    @staticmethod
    def _works_as(rate: int, ymm: bool, state: dict[str, Any]) -> bool:
        return (state["rate"], state["ymm"]) == (rate, int(ymm))

    def has_arrived(self) -> None:
        """After `xl migrate` to this host: its console log goes on under its own name."""
        must("lab-guest", "adopt", self.name)

    def destroy(self) -> None:
        run("xl", "destroy", self.name)
        deadline = time.monotonic() + 30
        while domid_of(self.name) is not None and time.monotonic() < deadline:
            select.select([], [], [], 0.1)


@dataclass
class Pool:
    """Guests that stay booted; one that a test lost is booted anew for the next.

    They are paused but for the one that a test has taken: beside one that wrote as fast as it could, another guest
    took 158 s instead of 50 to be booted and saved.
    """

    guests: dict[tuple[str, int], Guest] = field(default_factory=dict)

    def take(self, kind: str, vcpus: int, rate: int, *, ymm: bool = True) -> Guest:
        """A running, healthy guest whose dirtier rewrites `rate` pages a second (0: as many as it can)."""
        self.rest()
        key = (kind, vcpus)
        guest = self.guests.get(key)
        if guest is not None:
            guest.wake()
        if guest is None or not guest.is_running() or not guest.state()["clean"]:
            guest = guest or Guest(f"{kind}{vcpus}", kind, vcpus)
            guest.destroy()
            guest.create(rate=rate)
            self.guests[key] = guest
        guest.work(rate, ymm=ymm)
        return guest

    def rest(self) -> None:
        """Pause those that run."""
        for guest in self.guests.values():
            guest.rest()

    def destroy_strays(self) -> list[str]:
        """Destroy every domain that is not of the pool: their names."""
        known = {guest.name for guest in self.guests.values()}
        strays = [line.split()[0] for line in run("xl", "list").stdout.splitlines()[1:]]
        strays = [name for name in strays if name not in known | {"Domain-0"}]
        for name in strays:
            run("xl", "destroy", name)
        return strays

    def destroy_all(self) -> None:
        for guest in self.guests.values():
            guest.destroy()
        self.guests.clear()


Found = TypeVar("Found")


def comes_true(what: str, holds: Callable[[], Found]) -> Found:
    """Wait until this returns something: that."""
    deadline = time.monotonic() + AWHILE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not in {AWHILE_S} s: {what}"
        time.sleep(0.5)
    return found


class Command:
    """A command under way, whose standard error is read line by line, to do something at a certain moment."""

    def __init__(self, *argv: str, stdout: Any = subprocess.DEVNULL) -> None:
        self.process = Popen(
            argv, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
        )
        self.lines: list[str] = []

    def wait_for(self, pattern: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Read until a line matches."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            line = self.process.stderr.readline()
            if not line:
                break
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line matches {pattern!r} in:\n{''.join(self.lines)}")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self, timeout_s: float = COMMAND_TIMEOUT_S) -> int:
        """Wait for the end: the exit status; what it said is in `lines`."""
        _, rest = self.process.communicate(timeout=timeout_s)
        self.lines += (rest or "").splitlines(keepends=True)
        return self.process.returncode

    @property
    def said(self) -> str:
        return "".join(self.lines)


_SPAWN_AND_MEASURE = """
import os, sys
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_memory_kib(*argv: str) -> int:
    """Run a command that must succeed and prints nothing: the most memory it had resident.

    A process inherits its parent's peak (getrusage(2) counts it from the fork on), and pytest's is larger than
    the command's; so a small process in between starts it.
    """
    return int(must(sys.executable, "-S", "-c", _SPAWN_AND_MEASURE, *argv, timeout_s=600).split()[-1])


def no_partial_files(folder: Path) -> None:
    left = [path.name for path in folder.iterdir() if ".partial" in path.name]
    assert left == [], f"unfinished files left: {left}"
