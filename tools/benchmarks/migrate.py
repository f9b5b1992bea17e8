"""`tools/bench migrate --pair`: pymigrate against `xl migrate`, between two emulated hosts, in one boot, in turns.

One guest is moved to and fro. `benchmarks.pair_times` takes the times in both dom0s; this module runs it and puts
the results together. Both use the same ssh. For TLS the hosts get certificates of a CA that is made for the run.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenlab import certificates, ssh
from xenlab.errors import LabError, say
from xenlab.pair import Host, Pair, variants_of
from xenlab.variants import DEFAULT

from benchmarks.errors import BenchError
from benchmarks.results import Comparison, compare, table

SCRIPT = Path(__file__).with_name("pair_times.py")
THERE = "/run/pair_times.py"
PORT = 7790
CARD = "eth1"

NAME = "bench"
MIB = 128
PAGES = 2048
RATES = (200, 1000, 4000)
ATTEMPTS = 6
PATIENCE_S = 900.0

HALF = 2.0  # downtime: at most half of xl's
SHORTER = 1.0

SSH, TLS, XL = "ssh", "TLS", "xl"
COMMANDS = {
    SSH: ["pymigrate", "-q", NAME, "{host}"],
    TLS: ["pymigrate", "-q", NAME, "tls://{host}"],
    XL: ["xl", "migrate", NAME, "{host}"],
}
LISTEN = ["pymigrate", "receive", "-q", "--listen", "tls://0.0.0.0"]


@dataclass(frozen=True)
class Moved:
    """One migration. `error_s`: by how much the downtime may be wrong, as it is of two clocks."""

    tool: str
    rate: int
    turn: int
    downtime_s: float
    whole_s: float
    sent_mib: float
    error_s: float


def measure(tools: Sequence[str], rates: Sequence[int], turns: int) -> list[Moved]:
    """Run it all on the pair, which is booted unless it is there.

    A migration that fails is tried again with a new guest: under emulation one may die of the emulated processor.
    """
    found: list[Moved] = []
    with Pair().up_meanwhile(variants_of(DEFAULT)) as pair:
        for host in pair.hosts:
            host.run(f"cat > {THERE}", stdin=SCRIPT.read_bytes())
        if TLS in tools:
            certificates.give(pair.hosts)
        for rate in rates:
            say(f"{MIB} MiB, {rate} pages/s: {turns} turns of {', '.join(tools)}")
            bench = _Bench(pair.hosts, rate)
            try:
                for turn in range(turns):
                    # Who begins changes from turn to turn.
                    first = turn % len(tools)
                    for tool in (*tools[first:], *tools[:first]):
                        found.append(bench.moved(tool, turn))
            finally:
                bench.destroy()
    return found


class _Bench:
    """The guest of one rate, wherever it is."""

    def __init__(self, hosts: Sequence[Host], rate: int) -> None:
        self._hosts = tuple(hosts)
        self._rate = rate
        self._at: Host | None = None

    def moved(self, tool: str, turn: int) -> Moved:
        """Let it be moved by this tool to where it is not."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                here = self._at or self._create()
                there = next(host for host in self._hosts if host.label != here.label)
                figures = _timed(tool, here, there)
            except (LabError, BenchError) as failed:
                if attempt == ATTEMPTS:
                    raise
                say(f"tried again, with a new guest: {failed}")
                self.destroy()
            else:
                self._at = there
                return Moved(tool, self._rate, turn, **figures)
        raise AssertionError

    def _create(self) -> Host:
        host = self._hosts[0]
        # Without its ymm registers: libxc loses them when it resumes a domain.
        host.run(
            ["lab-guest", "create", NAME, "--memory", str(MIB), "--pages", str(PAGES), "--rate", str(self._rate),
             "--extra", "lab.ymm=0"]
        )  # fmt: skip
        host.run(["lab-guest", "wait", NAME, "--counter-above", "15", "--timeout", "200"])
        self._at = host
        return host

    def destroy(self) -> None:
        """On both hosts, also half of it."""
        for host in self._hosts:
            for name in (NAME, f"{NAME}--incoming"):
                host.run(["xl", "destroy", name], check=False)
        self._at = None


def _timed(tool: str, here: Host, there: Host) -> dict[str, float]:
    command = [word.format(host=there.label) for word in COMMANDS[tool]]
    with (
        _under_way(there, ["python3", THERE, "arrive", "--port", str(PORT)]) as arriving,
        _receiver(tool, there),
    ):
        assert arriving.stdout is not None
        if arriving.stdout.readline().strip() != "ready":
            raise BenchError(f"{there.label}: {THERE} did not start")
        done = here.run(
            ["python3", THERE, "leave", "--port", str(PORT), "--to", certificates.ADDRESSES[there.label],
             "--name", NAME, "--card", CARD, "--", *command],
            timeout=PATIENCE_S,
        )  # fmt: skip
        left: dict[str, Any] = json.loads(done.stdout)
        arrived: dict[str, Any] = json.loads(arriving.stdout.readline())
    return {
        "downtime_s": arrived["runs_at"] - left["suspended_at"],
        "whole_s": left["whole_s"],
        "sent_mib": left["sent_bytes"] / (1 << 20),
        "error_s": left["error_s"],
    }


@contextmanager
def _under_way(host: Host, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A command in a host's dom0, which ends when its standard input does."""
    process = subprocess.Popen(
        ssh.command(host.place, host.require_up(), command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _receiver(tool: str, host: Host) -> Iterator[None]:
    """What has to wait at the destination before the source begins."""
    if tool != TLS:
        yield
        return
    with _under_way(host, ["timeout", str(int(PATIENCE_S)), *LISTEN]):
        deadline = time.monotonic() + 60
        while host.run("ss -Hltn 'sport = :8701' | grep -q .", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise BenchError(f"{host.label}: nothing listens at port 8701")
            time.sleep(0.2)
        yield


def comparisons(found: Iterable[Moved]) -> list[Comparison]:
    """Against xl, at each rate: medians of all turns."""
    found = list(found)
    result = []
    for rate in dict.fromkeys(one.rate for one in found):
        of = {tool: [one for one in found if (one.rate, one.tool) == (rate, tool)] for tool in COMMANDS}
        for tool in (SSH, TLS):
            for figure, unit, target in (
                ("downtime_s", "s", HALF), ("whole_s", "s", SHORTER), ("sent_mib", "MiB", None)
            ):  # fmt: skip
                if of[tool] and of[XL]:
                    ours, peer = (
                        statistics.median(getattr(one, figure) for one in of[which]) for which in (tool, XL)
                    )
                    what = f"{rate} pages/s, over {tool}: {FIGURES[figure]}"
                    result.append(compare(what, ours, peer, unit, target, less_is_better=True))
    return result


FIGURES = {"downtime_s": "downtime", "whole_s": "whole command", "sent_mib": "sent over the cable"}


def spread_table(found: Iterable[Moved]) -> str:
    """How far the turns lie apart."""
    groups: dict[tuple[int, str], list[Moved]] = {}
    for one in found:
        groups.setdefault((one.rate, one.tool), []).append(one)

    def span(values: Sequence[float]) -> str:
        return f"{min(values):.2f} to {max(values):.2f}"

    rows = (
        (
            f"{rate} pages/s, {tool}",
            span([one.downtime_s for one in group]),
            span([one.whole_s for one in group]),
            span([one.sent_mib for one in group]),
            f"{max(one.error_s for one in group) * 1000:.0f} ms",
        )
        for (rate, tool), group in groups.items()
    )
    return table(("what", "downtime, s", "whole command, s", "MiB", "clocks, at most"), rows)
