"""What the tests on the pair do with its hosts and guests. They run on the lab's machine, and see both by ssh."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from xenlab import ssh
from xenlab.labline import GuestLog, parse_log
from xenlab.pair import Host, Pair

MEMORY_MIB = 128
BOOT_TIMEOUT_S = 120
BOOT_ATTEMPTS = 4
LINE_TIMEOUT_S = 90
COMMAND_TIMEOUT_S = 300
LOOK_S = 0.5
MODERATE_RATE = 300  # pages a second: more takes the processor from both dom0s under emulation
FREED_IS_ZERO = ("--extra", "init_on_free=1")
"""What the guest's kernel has freed is sent as zeroes: a migration takes half the time."""

QUIET_S = 10  # so often a guest that prints too little is looked for

CONSOLES = "/var/log/xen/console"

SLOW_HOTPLUG = "online because of timeout"
"""What libxl prints of a script that took longer than it waits, 10 s."""

boots_repeated: list[str] = []
"""Guests that did not boot at first, by name; once for each time."""

booted: set[tuple[str, int]] = set()
"""(host, domid) of guests that `lab-guest create` made: numbers are not used twice while Xen runs."""


def run(host: Host, *command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run a command (one word: a line for the shell) in a host's dom0 to its end; its status is for the caller."""
    done = host.run(list(command), timeout=timeout_s, check=False)
    return subprocess.CompletedProcess(
        done.args,
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )


def must(host: Host, *command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run a command that must succeed: its standard output."""
    done = run(host, *command, timeout_s=timeout_s)
    assert done.returncode == 0, (
        f"{host.label}: {' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def domains_of(host: Host) -> dict[str, str]:
    """The domains of a host besides dom0: name to the six letters of `xl list`."""
    lines = (line.split() for line in must(host, "xl", "list").splitlines()[1:])
    return {words[0]: words[4] for words in lines if words[0] != "Domain-0"}


def states_of(host: Host) -> list[str]:
    """How the migrations that this host has taken part in stand, the latest last."""
    return [one["state"] for one in json.loads(must(host, "pymigrate", "status", "--json"))]


def is_running(host: Host, name: str) -> bool:
    return not set(domains_of(host).get(name, "-----p")) & set("pscd")


def signal_to(host: Host, what: str, number: signal.Signals) -> None:
    """To the one process in that dom0 whose command line begins like this."""
    must(host, f"kill -{int(number)} $(pgrep -f '^[^ ]*python3 [^ ]*{what}')")


def domid_of(host: Host, name: str) -> int | None:
    done = run(host, "xl", "domid", name)
    return int(done.stdout) if done.returncode == 0 else None


def only_booted(host: Host, domid: int) -> bool:
    """Whether nothing of ours has touched this domain: whatever does takes its lock first, whose file stays."""
    return (host.label, domid) in booted and run(
        host, "test", "-e", f"/run/pysave/domain-{domid}.lock"
    ).returncode != 0


def need_kind(pair: Pair, kind: str) -> None:
    """Skip a test of a kind of guests that these hosts do not have: of arm64 there is one, which xl calls PVH."""
    if pair.a.variant.is_arm64 and kind != "pvh":
        pytest.skip("arm64 guests are of one kind")


@dataclass
class _Stay:
    """A guest's time on one host: which part of its console log there is of it."""

    host: Host
    begin: int
    end: int | None = None


@dataclass
class Guest:
    """One of the lab's guests, wherever it is. Its console log is what each host has of it, one after the other."""

    pair: Pair
    name: str
    kind: str = "pvh"
    vcpus: int = 1
    memory_mib: int = MEMORY_MIB
    _stays: list[_Stay] = field(default_factory=list, repr=False)

    @property
    def host(self) -> Host:
        """Where it is."""
        return self._stays[-1].host

    @property
    def other_host(self) -> Host:
        """Where it is not."""
        return next(host for host in self.pair.hosts if host.label != self.host.label)

    def create(
        self, host: Host, *, pages: int = 2048, rate: int = MODERATE_RATE, more: tuple[str, ...] = ()
    ) -> None:
        """Boot it and wait for its first line; again when it fails, as nothing of ours has touched it yet."""
        self._stays = [_Stay(host, 0)]
        for other in self.pair.hosts:  # from a guest of that name that was never adopted
            run(other, "rm", "-f", f"{CONSOLES}/guest-{self.name}--incoming.log")
        for attempt in range(1, BOOT_ATTEMPTS + 1):
            done = run(
                host, "lab-guest", "create", self.name, "--kind", self.kind, "--vcpus", str(self.vcpus),
                "--memory", str(self.memory_mib), "--pages", str(pages), "--rate", str(rate), *more,
            )  # fmt: skip
            assert done.returncode == 0 or SLOW_HOTPLUG in done.stderr, done.stderr
            if (domid := domid_of(host, self.name)) is not None:
                booted.add((host.label, domid))
            if done.returncode == 0:
                words = ("lab-guest", "wait", self.name, "--timeout", str(BOOT_TIMEOUT_S))
                done = run(host, *words, timeout_s=BOOT_TIMEOUT_S + 60)
            if done.returncode == 0:
                return
            # Reported here, so that a later failure of the test is not taken for the emulator's.
            print(
                f"{self.name}: boot {attempt} failed: {done.stderr}\n{run(host, 'xl', 'dmesg', '-c').stdout}"
            )
            boots_repeated.append(self.name)
            self.destroy()
        raise AssertionError(f"{self.name} does not boot")

    def has_moved_to(self, host: Host) -> None:
        """After a migration: from now on it is looked for there, where its log gets its own name."""
        have_moved_to(host, [self])

    def log(self) -> str:
        """All that it has printed."""
        parts = []
        for stay in self._stays:
            data = stay.host.run(["cat", self._log_file], check=False).stdout
            parts.append(data[stay.begin : stay.end])
        return b"".join(parts).decode("utf-8", "replace")

    def state(self) -> dict[str, Any]:
        """The last line it printed, and what its whole log says: as `lab-guest state` has it for one host."""
        told: GuestLog = parse_log(self.log())
        found: dict[str, Any] = told.as_dict()
        assert "counter" in found, f"{self.name} has printed no LAB line:\n{self.log()[-2000:]}"
        return found

    def next_lines(self, count: int) -> dict[str, Any]:
        """Wait until it has printed so many more lines: its state then."""
        wanted = self.state()["lines"] + count
        deadline = time.monotonic() + LINE_TIMEOUT_S
        look_for_it_at = time.monotonic() + QUIET_S
        while time.monotonic() < deadline:
            state = self.state()
            if state["lines"] >= wanted:
                return state
            if (now_s := time.monotonic()) > look_for_it_at:
                if domid_of(self.host, self.name) is None:
                    break  # nothing more will come
                look_for_it_at = now_s + QUIET_S
            threading.Event().wait(LOOK_S)
        raise AssertionError(
            f"{self.name} on {self.host.label} ({domains_of(self.host)}) printed nothing new in {LINE_TIMEOUT_S} s, "
            "or since it is gone:\n"
            f"{self.log()[-2000:]}"
        )

    def resumed(self, since: dict[str, Any]) -> dict[str, Any]:
        """Wait for lines newer than `since`: the same memory, the next counter, a later uptime, nothing wrong."""
        now = self.next_lines(2)
        assert now["hash"] == since["hash"], "its memory is not what it was"
        assert now["uptime_s"] > since["uptime_s"]
        assert now["boots"] == since["boots"], "it booted again"
        for before, after in now["gaps"][len(since["gaps"]) :]:
            # What was in the console's ring at the moment of the move may be lost: one line.
            assert before < after <= before + 2, f"its counter went from {before} to {after}"
        self.assert_clean(now)
        return now

    def assert_clean(self, state: dict[str, Any] | None = None) -> None:
        """The dirtier found no page, register or counter that is not what it must be, over the whole log."""
        state = state or self.state()
        assert state["corrupt"] == 0, state
        assert state["corrupt_lines"] == 0, state
        assert state["clean"], state

    def destroy(self) -> None:
        """Wherever it was, by this name."""
        for host in {stay.host.label: stay.host for stay in self._stays}.values():
            if host.state is not None:
                run(host, "xl", "destroy", self.name)

    @property
    def _log_file(self) -> str:
        return f"{CONSOLES}/guest-{self.name}.log"

    def _length_on(self, host: Host) -> int:
        """So many bytes its log has there; 0 when there is none."""
        return int(run(host, "stat", "-c", "%s", self._log_file).stdout or 0)


def have_moved_to(host: Host, guests: Sequence[Guest]) -> None:
    """See `Guest.has_moved_to`, of several that are there by now: each other's logs would be cut otherwise."""
    left_by_others = [guest._length_on(host) for guest in guests]
    must(host, "lab-guest", "adopt", *(guest.name for guest in guests))
    for guest, length in zip(guests, left_by_others, strict=True):
        guest._stays[-1].end = guest._length_on(guest.host)
        guest._stays.append(_Stay(host, length))


class Command:
    """A command under way in a host's dom0, whose standard error is read line by line, to act at a certain moment."""

    def __init__(self, host: Host, *command: str) -> None:
        self._process = subprocess.Popen(
            ssh.command(host.place, host.require_up(), command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.lines: list[str] = []

    def wait_for(self, pattern: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Read until a line matches."""
        assert self._process.stderr is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and (line := self._process.stderr.readline()):
            self.lines.append(line)
            if re.search(pattern, line):
                return line
        raise AssertionError(f"no line matches {pattern!r} in:\n{''.join(self.lines)}")

    def finish(self, timeout_s: float = COMMAND_TIMEOUT_S) -> int:
        """Wait for the end: the exit status; 255 where the connection to the host broke."""
        _, rest = self._process.communicate(timeout=timeout_s)
        self.lines += rest.splitlines(keepends=True)
        return self._process.returncode

    def abandon(self) -> None:
        """End the connection; the command may still run in dom0."""
        self._process.kill()
        self._process.wait()


def wait_for_line(host: Host, guest: str, pattern: str, timeout_s: float = LINE_TIMEOUT_S) -> str:
    """Wait until a guest's console log on this host, under this name, has a line that matches."""
    deadline = time.monotonic() + timeout_s
    while True:
        text = run(host, "cat", f"{CONSOLES}/guest-{guest}.log").stdout
        if found := re.search(f"^.*(?:{pattern}).*$", text, flags=re.MULTILINE):
            return found[0]
        if time.monotonic() > deadline:
            raise AssertionError(f"{guest} on {host.label}: no line matches {pattern!r} in:\n{text[-2000:]}")
        threading.Event().wait(LOOK_S)


kept: list[Guest] = []
"""At most one: a guest that stays from test to test, as booting takes long (fixture `kept_guest`)."""


QUICK = ("python3", "-IS", "/root/pysave/tests/pair/quick.py")
"""Starts a script of ours in dom0 in an instant, see there."""

COMMANDS = ("pymigrate",)
"""What a word on its own starts so."""

BEFORE = "/usr/local/sbin"
"""Earlier in PATH than where the commands are."""


@contextmanager
def quick_commands(pair: Pair) -> Iterator[None]:
    """Inside this block each dom0 has a server that starts our commands. A host that was switched off has none."""
    with ExitStack() as servers:
        for host in pair.hosts:
            serve = ssh.command(host.place, host.require_up(), [QUICK[0], QUICK[-1], "--serve"])
            server = servers.enter_context(subprocess.Popen(serve, stdin=subprocess.PIPE))
            assert server.stdin is not None
            servers.callback(server.stdin.close)
        _make_quick(pair)
        try:
            yield
        finally:
            _make_cold(pair)


@contextmanager
def cold_commands(pair: Pair) -> Iterator[None]:
    """Inside this block commands are started as a user starts them."""
    _make_cold(pair)
    try:
        yield
    finally:
        _make_quick(pair)


def _make_quick(pair: Pair) -> None:
    for host in pair.hosts:
        must(host, "mkdir", "-p", BEFORE)
        for name in COMMANDS:
            must(host, "ln", "-sf", QUICK[-1], f"{BEFORE}/{name}")


def _make_cold(pair: Pair) -> None:
    for host in pair.hosts:
        if host.state is not None:
            run(host, "rm", "-f", *(f"{BEFORE}/{name}" for name in COMMANDS))


@contextmanager
def cut_link(pair: Pair, sent_by: str | None = None) -> Iterator[None]:
    """Inside this block nothing arrives, in both directions or in one."""
    from xenlab.link import CUT

    pair.link(CUT, sent_by=sent_by)
    try:
        yield
    finally:
        pair.heal(sent_by=sent_by)
