"""The engine on a domain in this process's memory, next to QEMU, dd and cat on the same bytes.

    domain ─► save ─► /dev/null, pipe, file on tmpfs, TCP ─► restore ─► another domain
    ram: a file with the same bytes ─► dd, cat | cat, QEMU's migration

Each round runs everything once; what is told are medians. Saves and restores are those of the commands: with a
digest, with zero pages as holes in files. What is timed is `save` and `restore` from the first call to the last byte,
and the end of whoever reads. Peers are processes, timed from outside; QEMU's figures are its own.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import qemu
from benchmarks.content import fill
from benchmarks.errors import BenchError
from benchmarks.results import Comparison, compare, table
from benchmarks.running import run, usable_cores
from saverestore.engine.policy import Limits
from saverestore.engine.restore import restore
from saverestore.engine.save import save
from saverestore.engine.settings import SaveSettings
from saverestore.guest.ports import Channels
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.layout import PAGE_SIZE
from saverestore.stream.reader import LibxcReader
from saverestore.testing.domain import INVALID, MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.transport import FdSink, FdSource
from saverestore.transport.newfile import NewFile
from saverestore.transport.pipe import sink_of

MB = 1e6
PAGES_A_MIB = 256
LEGACY_HOLE = range(0xA0, 0x100)
RUN_PAGES = 512
"""Frames of a PV-like domain lie in runs of this many: as on a host that is not short of memory."""

CHUNK_PAGES = 65536
DIRTY_SHARE = 0.01
CHANNELS = Channels(store_port=1, console_port=2)
KINDS = ("pvh", "pv")
MEMORY_TIMES = 4.5
"""How many times the domain must fit into memory: itself, a copy, the image, the peers' bytes and their output."""
MEMORY_TIMES_ALONE = 2.7
"""The same without peers: itself, the image, a copy."""
KEPT_FREE_BYTES = 1 << 30
"""Of the machine's memory, what is not touched beforehand."""

PIPE_AGAINST_EXEC, FILE_AGAINST_MULTIFD, RESTORE_AGAINST_DD = 1.5, 1.0, 0.8
DIRTY_ROUND = 1 / 1.5
LINEAR = 1 / 1.15


def make_domain(kind: str, mib: int) -> MemoryDomain:
    """A domain of so many MiB, filled."""
    nr_pfns = mib * PAGES_A_MIB
    domain = (
        MemoryDomain.pv(nr_pfns, run_pages=RUN_PAGES)
        if kind == "pv"
        else MemoryDomain.pvh(nr_pfns, hole=LEGACY_HOLE)
    )
    fill(domain)
    return domain


def settings(workers: int, *, live: bool = False) -> SaveSettings:
    """As a command saves."""
    limits = Limits(max_rounds=2, few_pages=0) if live else Limits()
    dirty = "log" if live else "auto"
    return SaveSettings(live=live, dirty=dirty, limits=limits, digest=DigestAlgorithm.XXH3, workers=workers)


# ---- where a stream goes to, and comes from -----------------------------------------------------------


@contextmanager
def _reader_of(stdin: int | socket.socket) -> Iterator[None]:
    """A process that reads all that comes, until its end."""
    number = stdin if isinstance(stdin, int) else stdin.detach()
    with subprocess.Popen(["cat"], stdin=number, stdout=subprocess.DEVNULL) as process:
        os.close(number)
        yield
    if process.returncode != 0:
        raise BenchError(f"cat: exit {process.returncode}")


def _connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = socket.create_connection(server.getsockname())
        second, _ = server.accept()
    return first, second


def _save_to_null(domain: MemoryDomain, workers: int) -> None:
    with FdSink(os.open(os.devnull, os.O_WRONLY), os.devnull) as sink:
        save(MemorySave(domain), sink, settings(workers))


def _save_to_pipe(domain: MemoryDomain, workers: int) -> None:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    with _reader_of(read_end), sink_of(write_end, "pipe") as sink:
        save(MemorySave(domain), sink, settings(workers))


def _save_to_tcp(domain: MemoryDomain, workers: int) -> None:
    ours, theirs = _connected()
    with _reader_of(theirs), FdSink(ours.detach(), "connection") as sink:
        save(MemorySave(domain), sink, settings(workers))


def save_to_file(domain: MemoryDomain, workers: int, path: Path) -> None:
    with NewFile(path, overwrite=True) as file:
        save(MemorySave(domain), file.sink, settings(workers))
        file.publish()


def _restore(source: FdSource, target: MemoryDomain) -> None:
    restore(LibxcReader(source), source, MemoryRestore(target), CHANNELS)


def _restore_from_file(path: Path, target: MemoryDomain) -> None:
    with FdSource.open(str(path)) as source:
        _restore(source, target)


def _restore_from_pipe(path: Path, target: MemoryDomain) -> None:
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with FdSource(os.dup(process.stdout.fileno()), "pipe") as source:
            _restore(source, target)


def _restore_from_tcp(path: Path, target: MemoryDomain) -> None:
    ours, theirs = _connected()
    number = theirs.detach()
    with subprocess.Popen(["cat", str(path)], stdout=number):
        os.close(number)
        with FdSource(ours.detach(), "connection") as source:
            _restore(source, target)


# ---- one kind of domain, all ways -----------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One thing that is timed. `run` returns seconds."""

    name: str
    is_ours: bool
    run: Callable[[], float]


@dataclass
class Measured:
    """Seconds of each way, by name, in the order of the table; `guest_bytes` that each of them moved."""

    kind: str
    mib: int
    guest_bytes: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    ours: set[str] = field(default_factory=set)
    left_out: list[str] = field(default_factory=list)
    dirty_share: float = 0.0

    def rate(self, name: str) -> float | None:
        """MB/s, of the median; None for what was not run."""
        found = self.seconds.get(name)
        return self.guest_bytes / median(found) / MB if found else None


def measure(
    kind: str,
    mib: int,
    *,
    rounds: int,
    folder: Path,
    qemu_root: Callable[[], Path] | None,
    with_peers: bool = True,
    say: Callable[[str], None],
) -> Measured:
    """All ways with a domain of one kind. BenchError for whatever fails; nothing stays in the folder.

    `qemu_root` makes the root file system with QEMU in it (`qemu.root_file_system`), or None leaves QEMU out.
    """
    check_memory(mib, MEMORY_TIMES if with_peers else MEMORY_TIMES_ALONE)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as inside, ExitStack() as stack:
        say(f"a {kind} domain of {mib} MiB")
        domain = make_domain(kind, mib)
        stack.callback(domain.close)
        ram, image = Path(inside) / "ram", Path(inside) / "image"
        save_to_file(domain, 2, image)
        check_restored(domain, image)
        done = Measured(kind, mib, len(domain.populated()) * PAGE_SIZE)
        ways = _our_ways(domain, image, Path(inside))
        if with_peers:
            write_ram(domain, ram)
            ways += _plain_peers(ram, image, Path(inside))
        if not with_peers:
            done.left_out.append("all peers: left out with --no-peers")
        elif qemu_root is not None:
            try:
                root = qemu_root()
                guest = stack.enter_context(qemu.stopped_guest(root, Path(inside), ram))
                ways += [Way(name, False, partial(guest.migrate, name)) for name in qemu.WAYS]
            except BenchError as error:
                done.left_out.append(str(error))
        else:
            done.left_out.append("QEMU: left out with --no-qemu")
        done.ours = {way.name for way in ways if way.is_ours}
        for number in range(rounds):
            for way in ways if number % 2 == 0 else ways[::-1]:
                say(f"round {number + 1} of {rounds}: {way.name}")
                touch_memory(2 * done.guest_bytes)
                done.seconds.setdefault(way.name, []).append(way.run())
        done.seconds = {way.name: done.seconds[way.name] for way in ways}
        done.dirty_share = median(_dirty_round(domain) for _ in range(max(3, rounds)))
        return done


def touch_memory(nr_bytes: int) -> None:
    """Have so much free memory in the machine's own hands.

    A virtual machine may have given what is free to its host, and gets it back bit by bit when it is touched: that
    takes several times as long as what is to be timed.
    """
    nr_bytes = max(mmap.PAGESIZE, min(nr_bytes, (free_mib() << 20) - KEPT_FREE_BYTES))
    with mmap.mmap(-1, nr_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def free_mib() -> int:
    """What the kernel could give out."""
    return next(
        int(line.split()[1]) >> 10
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )


def check_memory(mib: int, times: float = MEMORY_TIMES) -> None:
    """BenchError where there is too little memory for a domain of this size and all that is made of it."""
    if (free := free_mib()) < mib * times:
        raise BenchError(
            f"{free} MiB of memory are free, a domain of {mib} MiB takes {mib * times:.0f} here: "
            "give a smaller --mib, or leave the peers out (--no-peers)"
        )


def _timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _our_ways(domain: MemoryDomain, image: Path, folder: Path) -> list[Way]:
    out = folder / "out"

    def save_file(workers: int) -> float:
        try:
            return _timed(lambda: save_to_file(domain, workers, out))
        finally:
            out.unlink(missing_ok=True)

    def restoring(how: Callable[[Path, MemoryDomain], None]) -> float:
        target = empty_like(domain, run_pages=RUN_PAGES if domain.is_pv else 1)
        try:
            return _timed(lambda: how(image, target))
        finally:
            target.close()

    def saving(how: Callable[[MemoryDomain, int], None], workers: int) -> float:
        return _timed(lambda: how(domain, workers))

    sinks = {"/dev/null": _save_to_null, "a pipe": _save_to_pipe, "TCP": _save_to_tcp}
    ways: list[Way] = []
    for workers in (1, 2):
        suffix = f"{workers} worker{'s' if workers > 1 else ''}"
        ways += [
            Way(f"save to {name}, {suffix}", True, partial(saving, how, workers))
            for name, how in sinks.items()
        ]
        ways.append(Way(f"save to a file, {suffix}", True, partial(save_file, workers)))
    return [
        *ways,
        Way("restore from a file", True, lambda: restoring(_restore_from_file)),
        Way("restore from a pipe", True, lambda: restoring(_restore_from_pipe)),
        Way("restore from TCP", True, lambda: restoring(_restore_from_tcp)),
    ]


def _plain_peers(ram: Path, image: Path, folder: Path) -> list[Way]:
    cores, out = len(usable_cores()), folder / "out"

    def dd(source: Path) -> float:
        try:
            return run(["dd", "bs=4M", "status=none", f"if={source}", f"of={out}"], cores=cores).wall_s
        finally:
            out.unlink(missing_ok=True)

    return [
        Way(
            "cat | cat >/dev/null",
            False,
            lambda: run(["sh", "-c", f"cat {ram} | cat >/dev/null"], cores=cores).wall_s,
        ),
        Way("dd of the memory, file to file", False, lambda: dd(ram)),
        Way("dd of the image, file to file", False, lambda: dd(image)),
    ]


def write_ram(domain: MemoryDomain, path: Path) -> None:
    """A file with the domain's memory by pfn: what a peer has to move."""
    with path.open("wb") as file:
        for begin in range(0, domain.nr_pfns, CHUNK_PAGES):
            pfns = np.arange(begin, min(begin + CHUNK_PAGES, domain.nr_pfns), dtype=np.uint64)
            there = domain.p2m[pfns] != INVALID
            pages = np.zeros((len(pfns), PAGE_SIZE), dtype=np.uint8)
            pages[there] = domain.read(pfns[there])
            file.write(pages.data)


def check_restored(domain: MemoryDomain, image: Path) -> None:
    """BenchError unless what is restored of the image is what the domain has."""
    target = empty_like(domain, run_pages=RUN_PAGES if domain.is_pv else 1)
    try:
        _restore_from_file(image, target)
        pfns = domain.data_pfns()
        for begin in range(0, len(pfns), CHUNK_PAGES):
            some = pfns[begin : begin + CHUNK_PAGES]
            if not np.array_equal(domain.content(some), target.content(some)):
                raise BenchError("what was restored is not what was saved: do not trust any figure")
    finally:
        target.close()


def _dirty_round(domain: MemoryDomain) -> float:
    """What a round of 1% of the pages costs a page, in terms of what the first round did: 1 is as much."""
    guest = MemorySave(domain)
    pfns = domain.data_pfns()
    some = np.sort(np.random.default_rng(1).choice(pfns, int(len(pfns) * DIRTY_SHARE), replace=False))
    marked = threading.Event()

    def dirty() -> None:
        if not marked.is_set() and domain.dirty is not None:
            domain.dirty[some] = True
            marked.set()

    guest.moments.on("log_dirty.take", 0, dirty)
    with FdSink(os.open(os.devnull, os.O_WRONLY), os.devnull) as sink:
        report = save(guest, sink, settings(2, live=True))
    guest.resume()
    first, second = report.rounds[0], report.rounds[1]
    return (second.seconds / max(1, second.sent_pages)) / (first.seconds / first.sent_pages)


# ---- what comes of it -----------------------------------------------------------------------------------


def comparisons(one: Measured) -> list[Comparison]:
    """What is asked of the engine, as far as its peers were run."""
    pairs = [
        ("save to a pipe, 2 workers", "QEMU exec:cat >/dev/null", PIPE_AGAINST_EXEC),
        ("save to a file, 2 workers", "QEMU mapped-ram, multifd of 2", FILE_AGAINST_MULTIFD),
        ("restore from a file", "dd of the image, file to file", RESTORE_AGAINST_DD),
        ("save to a pipe, 2 workers", "cat | cat >/dev/null", None),
        ("save to a file, 2 workers", "dd of the memory, file to file", None),
        ("save to a file, 2 workers", "QEMU file:", None),
        ("save to a file, 2 workers", "QEMU mapped-ram", None),
    ]
    found = []
    for mine, peer, target in pairs:
        ours_rate, peer_rate = one.rate(mine), one.rate(peer)
        if ours_rate is not None and peer_rate is not None:
            label = f"{one.kind}, {one.mib} MiB: {mine}, against {peer}"
            found.append(compare(label, ours_rate, peer_rate, "MB/s", target))
    if one.dirty_share:
        label = (
            f"{one.kind}, {one.mib} MiB: a round of 1% of the pages, cost of a page against the first round"
        )
        found.append(
            compare(label, one.dirty_share, 1.0, "times", round(DIRTY_ROUND, 3), less_is_better=True)
        )
    return found


def linear(small: Measured, large: Measured) -> list[Comparison]:
    """Whether a larger domain takes time in proportion: rates of the slower against the faster."""
    found = []
    for name in ("save to a file, 2 workers", "restore from a file"):
        rates = [one.rate(name) for one in (small, large)]
        if None not in rates:
            label = f"{large.kind}: {name}, {large.mib} MiB against {small.mib} MiB"
            known = [rate for rate in rates if rate is not None]
            found.append(compare(label, known[1], known[0], "MB/s", round(LINEAR, 3)))
    return found


def report(all_of_them: list[Measured]) -> str:
    """A column for each domain, a row for each way: MB/s of guest memory."""
    names = list(dict.fromkeys(name for one in all_of_them for name in one.seconds))
    rows = []
    for name in names:
        rates = [one.rate(name) for one in all_of_them]
        rows.append((name, *("" if rate is None else f"{rate:,.0f}" for rate in rates)))
    return table(("MB/s", *(f"{one.kind}, {one.mib} MiB" for one in all_of_them)), rows)
