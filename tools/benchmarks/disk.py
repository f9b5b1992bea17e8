"""A save to a real disk, to the end of fsync: past the page cache and through it, next to dd and QEMU.

    domain in memory ─► save ─► new file ─► fsync, its name     --cache page, --cache auto, also with zstd
    image on tmpfs   ─► dd   ─► new file ─► fsync               oflag=direct, and through the page cache
    ram on tmpfs     ─► QEMU ─► new file ─► fsync               mapped-ram, multifd of 2, with and without direct-io

Two domains of the same size. One has no zero pages: all ways have as many bytes to write. The other has as many as
`benchmarks.content` says, in many runs: these become holes, and what is between them is written in pieces.

What is timed ends when the data are on the disk. Before each way all that others left in the page cache is brought to
the disk. Rates are bytes of the image (QEMU: of the memory) a second, whether they had to be stored or not.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import qemu
from benchmarks.engine import (
    CHUNK_PAGES,
    MB,
    Measured,
    Way,
    check_memory,
    check_restored,
    make_domain,
    settings,
    touch_memory,
    write_ram,
)
from benchmarks.errors import BenchError
from benchmarks.results import Comparison, compare, table
from benchmarks.running import run, usable_cores
from saverestore.engine.save import save
from saverestore.stream.layout import PAGE_SIZE
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.transport.cache import Cache
from saverestore.transport.direct import BUFFER_BYTES, SMALL_BUFFER_BYTES
from saverestore.transport.newfile import NewFile
from saverestore.transport.zstd_sink import ZstdSink

KIND = "pvh"
MEMORY_TIMES = 5.5
"""How many times the domain must fit into memory: two of them, the image, QEMU's memory, and what is cached."""

DD_DIRECT, QEMU_DIRECT, AUTO_AGAINST_PAGE = 0.9, 1.0, 0.95

PAGE_WAY, AUTO_WAY = "save, page cache", "save, auto"
ZSTD_PAGE_WAY, ZSTD_AUTO_WAY = "save with zstd, page cache", "save with zstd, auto"
HOLES_PAGE_WAY, HOLES_AUTO_WAY = "save with zero pages, page cache", "save with zero pages, auto"
DD_PAGE_WAY, DD_DIRECT_WAY = "dd conv=fsync", "dd oflag=direct conv=fsync"
QEMU_PAGE_WAY = "QEMU mapped-ram, multifd of 2"
QEMU_DIRECT_WAY = "QEMU mapped-ram, multifd of 2, direct-io"

COMPARED = [
    (AUTO_WAY, DD_DIRECT_WAY, DD_DIRECT),
    (AUTO_WAY, QEMU_DIRECT_WAY, QEMU_DIRECT),
    (AUTO_WAY, PAGE_WAY, AUTO_AGAINST_PAGE),
    (HOLES_AUTO_WAY, HOLES_PAGE_WAY, AUTO_AGAINST_PAGE),
    (ZSTD_AUTO_WAY, ZSTD_PAGE_WAY, AUTO_AGAINST_PAGE),
    (AUTO_WAY, DD_PAGE_WAY, None),
    (HOLES_AUTO_WAY, DD_DIRECT_WAY, None),
    (AUTO_WAY, QEMU_PAGE_WAY, None),
]
"""Ours, a peer, the target."""


def save_to_disk(domain: MemoryDomain, path: Path, cache: Cache, compress: int | None = None) -> None:
    """Save it, until it is on the disk and has its name. BenchError where `Cache.AUTO` is the page cache there."""
    buffer_bytes = BUFFER_BYTES if compress is None else SMALL_BUFFER_BYTES
    with NewFile(path, overwrite=True, cache=cache, buffer_bytes=buffer_bytes) as file:
        if cache is Cache.AUTO and file.cache is not Cache.DIRECT:
            raise BenchError(f"{path.parent} has no disk, or takes no direct I/O: give another with --folder")
        if compress is None:
            save(MemorySave(domain), file.sink, settings(2))
        else:
            with ZstdSink(file.sink, level=compress) as sink:
                save(MemorySave(domain), sink, settings(2))
                sink.finish()
        file.sync()
        file.publish()


def without_zero_pages(domain: MemoryDomain) -> MemoryDomain:
    """The same domain, with noise where it had zero pages."""
    rng = np.random.default_rng(2)
    pfns = domain.data_pfns()
    for begin in range(0, len(pfns), CHUNK_PAGES):
        some = pfns[begin : begin + CHUNK_PAGES]
        zero = some[~domain.content(some).reshape(len(some), -1).any(axis=1)]
        domain.write(zero, rng.integers(1, 256, (len(zero), PAGE_SIZE), dtype=np.uint8))
    return domain


def measure(
    mib: int,
    *,
    rounds: int,
    folder: Path,
    memory: Path,
    qemu_root: Callable[[], Path] | None,
    say: Callable[[str], None],
) -> Measured:
    """All ways. `folder`: on the disk; `memory`: tmpfs, for what is read. BenchError for whatever fails.

    Nothing stays in either. `qemu_root`: see `engine.measure`.
    """
    check_memory(mib, MEMORY_TIMES)
    with ExitStack() as stack:
        on_disk, inside = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=one)))
            for one in (folder, memory)
        )
        say(f"two domains of {mib} MiB")
        holey = make_domain(KIND, mib)
        stack.callback(holey.close)
        full = without_zero_pages(make_domain(KIND, mib))
        stack.callback(full.close)
        image, ram = inside / "image", inside / "ram"
        save_to_disk(full, image, Cache.PAGE)
        for domain, name in ((full, "full"), (holey, "holey")):
            save_to_disk(domain, on_disk / name, Cache.AUTO)
            check_restored(domain, on_disk / name)
            (on_disk / name).unlink()
        done = Measured(KIND, mib, image.stat().st_size)
        ways = [*_our_ways(full, holey, on_disk / "out"), *_dd(image, on_disk / "out")]
        if qemu_root is None:
            done.left_out.append("QEMU: left out with --no-qemu")
        else:
            try:
                write_ram(full, ram)
                guest = stack.enter_context(qemu.stopped_guest(qemu_root(), inside, ram, out=on_disk))
                ways += [
                    Way(name, False, partial(guest.migrate_to_disk, QEMU_PAGE_WAY, direct_io=direct_io))
                    for name, direct_io in ((QEMU_PAGE_WAY, False), (QEMU_DIRECT_WAY, True))
                ]
            except BenchError as error:
                done.left_out.append(str(error))
        done.ours = {way.name for way in ways if way.is_ours}
        for number in range(rounds):
            for way in ways if number % 2 == 0 else ways[::-1]:
                say(f"round {number + 1} of {rounds}: {way.name}")
                touch_memory(2 * done.guest_bytes)
                os.sync()
                done.seconds.setdefault(way.name, []).append(way.run())
        done.seconds = {way.name: done.seconds[way.name] for way in ways}
        return done


def _our_ways(full: MemoryDomain, holey: MemoryDomain, out: Path) -> list[Way]:
    def timed(domain: MemoryDomain, cache: Cache, compress: int | None = None) -> float:
        started = time.perf_counter()
        try:
            save_to_disk(domain, out, cache, compress)
            return time.perf_counter() - started
        finally:
            out.unlink(missing_ok=True)

    return [
        Way(PAGE_WAY, True, partial(timed, full, Cache.PAGE)),
        Way(AUTO_WAY, True, partial(timed, full, Cache.AUTO)),
        Way(HOLES_PAGE_WAY, True, partial(timed, holey, Cache.PAGE)),
        Way(HOLES_AUTO_WAY, True, partial(timed, holey, Cache.AUTO)),
        Way(ZSTD_PAGE_WAY, True, partial(timed, full, Cache.PAGE, 1)),
        Way(ZSTD_AUTO_WAY, True, partial(timed, full, Cache.AUTO, 1)),
    ]


def _dd(image: Path, out: Path) -> list[Way]:
    cores = len(usable_cores())

    def dd(*how: str) -> float:
        try:
            return run(["dd", "bs=4M", "status=none", f"if={image}", f"of={out}", *how], cores=cores).wall_s
        finally:
            out.unlink(missing_ok=True)

    return [
        Way(DD_PAGE_WAY, False, partial(dd, "conv=fsync")),
        Way(DD_DIRECT_WAY, False, partial(dd, "oflag=direct", "conv=fsync")),
    ]


def comparisons(one: Measured) -> list[Comparison]:
    """What is asked of saves to a disk, as far as the peers were run."""
    found = []
    for mine, peer, target in COMPARED:
        ours_rate, peer_rate = one.rate(mine), one.rate(peer)
        if ours_rate is not None and peer_rate is not None:
            label = f"{one.mib} MiB to a disk: {mine}, against {peer}"
            found.append(compare(label, ours_rate, peer_rate, "MB/s", target))
    return found


def report(one: Measured) -> str:
    """A row for each way: the median, and the slowest and the fastest of its rounds."""
    rows = []
    for name, seconds in one.seconds.items():
        rates = [one.guest_bytes / each / MB for each in (median(seconds), max(seconds), min(seconds))]
        rows.append((name, *(f"{rate:,.0f}" for rate in rates)))
    return table(("MB/s", f"{one.mib} MiB", "slowest", "fastest"), rows)
