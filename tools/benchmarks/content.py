"""What a guest's memory holds, made up: 30% zero pages, 10% random ones, the rest files of a root file system.

Zero, random and file pages come in runs, as memory is handed out in runs; files begin at pages, as in a page cache.
The same seed, size and root give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.errors import BenchError
from saverestore.stream.layout import PAGE_SIZE
from saverestore.testing.domain import MemoryDomain

U8 = npt.NDArray[np.uint8]

SHARES = {"zero": 0.3, "random": 0.1, "file": 0.6}
MEAN_RUN_PAGES = 32
CHUNK_PAGES = 16384
ROOT = Path("/usr")
SEED = 1


def kinds_of(nr_pages: int, seed: int = SEED) -> U8:
    """Which page is of which kind, by its place in `SHARES`."""
    rng = np.random.default_rng(seed)
    kinds = np.empty(0, dtype=np.uint8)
    while len(kinds) < nr_pages:
        number = max(16, nr_pages // MEAN_RUN_PAGES)
        drawn = rng.choice(len(SHARES), size=number, p=list(SHARES.values())).astype(np.uint8)
        kinds = np.append(kinds, np.repeat(drawn, rng.geometric(1 / MEAN_RUN_PAGES, size=number)))
    return kinds[:nr_pages]


def file_pages(root: Path = ROOT, seed: int = SEED) -> Iterator[U8]:
    """Files below `root` as pages, shape (n, 4096), the last one filled up; in a random order, again and again.

    BenchError when there are none that can be read.
    """
    paths = sorted(Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    np.random.default_rng(seed).shuffle(paths)
    while True:
        found = False
        for path in paths:
            try:
                data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            except OSError:
                continue
            if data:
                found = True
                yield np.frombuffer(data + bytes(-len(data) % PAGE_SIZE), dtype=np.uint8).reshape(
                    -1, PAGE_SIZE
                )
        if not found:
            raise BenchError(f"{root} has no files that can be read: give a root file system with --root")


def fill(domain: MemoryDomain, *, root: Path = ROOT, seed: int = SEED) -> None:
    """Write all of a domain's pages that are free to be written."""
    pfns = domain.data_pfns()
    kinds = kinds_of(len(pfns), seed)
    rng = np.random.default_rng(seed)
    files = _Pages(file_pages(root, seed))
    for begin in range(0, len(pfns), CHUNK_PAGES):
        some, kind = pfns[begin : begin + CHUNK_PAGES], kinds[begin : begin + CHUNK_PAGES]
        pages = np.zeros((len(some), PAGE_SIZE), dtype=np.uint8)
        nr_random = int(np.count_nonzero(kind == 1))
        pages[kind == 1] = rng.integers(0, 256, (nr_random, PAGE_SIZE), dtype=np.uint8)
        pages[kind == 2] = files.take(int(np.count_nonzero(kind == 2)))
        domain.write(some, pages)


class _Pages:
    """So many pages at a time of what comes in pieces of any size."""

    def __init__(self, pieces: Iterator[U8]) -> None:
        self._pieces = pieces
        self._left = np.empty((0, PAGE_SIZE), dtype=np.uint8)

    def take(self, number: int) -> U8:
        parts = [self._left]
        have = len(self._left)
        while have < number:
            parts.append(next(self._pieces))
            have += len(parts[-1])
        pages = np.concatenate(parts)
        self._left = pages[number:]
        return pages[:number]
