"""`tools/bench image`: an image of a made-up domain, for when there is none of a real one that is large enough."""

from __future__ import annotations

from pathlib import Path

from benchmarks.content import ROOT, fill
from saverestore.engine.save import save
from saverestore.engine.settings import SaveSettings
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.transport.newfile import NewFile

PAGES_A_MIB = 256
HOLE_PFNS = 64


def make_image(
    path: Path, mib: int, *, root: Path = ROOT, overwrite: bool = False, zero: bool = False
) -> None:
    """Save a PVH-like domain of so many MiB, with a digest, as `pysave` does but for what libxl puts around it.

    `zero`: all its pages are zero but for a handful.
    """
    nr_pfns = mib * PAGES_A_MIB + HOLE_PFNS
    domain = MemoryDomain.pvh(nr_pfns, hole=range(PAGES_A_MIB // 2, PAGES_A_MIB // 2 + HOLE_PFNS))
    try:
        if zero:
            domain.write(domain.data_pfns(), 0)
        else:
            fill(domain, root=root)
        with NewFile(path, overwrite=overwrite) as file:
            save(MemorySave(domain), file.sink, SaveSettings(digest=DigestAlgorithm.XXH3))
            file.publish()
    finally:
        domain.close()
