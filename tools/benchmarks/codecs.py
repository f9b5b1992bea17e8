"""`tools/bench codecs`: whole-image compressors against ours, by record and at rest, both ways.

Everything is a process that reads a file in memory (tmpfs) and writes another one there. Each round runs every
contender once; what is told is the median over the rounds. "Work" is a process without Python's start and imports:
of the peers, which have none, it is the whole process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from benchmarks.errors import BenchError
from benchmarks.image import make_image
from benchmarks.results import Comparison, compare, median_run, table
from benchmarks.running import Run, ours, run, usable_cores

IN, OUT = "{in}", "{out}"
MB = 1e6
PART_BYTES = 4 << 20

ROOM = 3.2
"""How many times the image must fit into the folder: itself, compressed (it may not shrink), decompressed."""

REST_FASTER, REST_GZIP_FASTER, REST_SIZE, REST_UNPACK_FASTER = 1.3, 15.0, 0.97, 1.5
ZERO_AGAINST_COPY, ZERO_MIB = 0.9, 256
COPY, REST_1, REST_3 = "dd, a copy", "at rest, zstd:1", "at rest, zstd:3"


@dataclass(frozen=True)
class Contender:
    """One way to compress. `pack` and `unpack`: argv, with IN and OUT; without them standard input and output.

    `read`: decompresses, too, but writes to /dev/null. `cores`: how many it may use. `program`: what must be
    installed, None for ours.
    """

    name: str
    cores: int
    pack: tuple[str, ...]
    unpack: tuple[str, ...]
    read: tuple[str, ...]
    program: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's."""
        return self.program is None

    @property
    def title(self) -> str:
        """Name and cores."""
        return f"{self.name}, {self.cores} core{'s' if self.cores > 1 else ''}"


PACKAGES = {"gzip": "gzip", "pigz": "pigz", "zstd": "zstd", "lz4": "lz4", "dd": "coreutils"}
"""Programs of the peers, and the Debian package each comes from."""


def contenders() -> list[Contender]:
    """All of them, in the order of the table."""

    def zstd(threads: int, cores: int) -> Contender:
        pack = ("zstd", "-1", f"-T{threads}", "-q", "-f", IN, "-o", OUT)
        unpack = ("zstd", "-d", "-q", "-f", IN, "-o", OUT)
        return Contender(f"zstd -1 -T{threads}", cores, pack, unpack, ("zstd", "-d", "-q", "-c"), "zstd")

    def filter_of(program: str, *options: str) -> Contender:
        unpack = (program, "-d", *options[:-1])
        return Contender(" ".join((program, options[-1])), 2, (program, *options), unpack, unpack, program)

    copy = ("dd", "bs=4M", "status=none", f"if={IN}")
    lz4 = ("lz4", "-d", "-q")
    peers = [
        Contender(COPY, 1, (*copy, f"of={OUT}"), (*copy, f"of={OUT}"), (*copy, "of=/dev/null"), "dd"),
        filter_of("gzip", "-1"),
        filter_of("gzip", "-6"),
        filter_of("pigz", "-p", "2", "-6"),
        Contender(
            "lz4 -1", 2, ("lz4", "-1", "-q", "-f", IN, OUT), (*lz4, "-f", IN, OUT), (*lz4, "-c", IN), "lz4"
        ),
        zstd(1, 1),
        zstd(0, 2),
        zstd(2, 2),
    ]
    ways = {
        "by record, lz4": ("--to", "draft-b", "--codec", "lz4"),
        "by record, deflate:1": ("--to", "draft-b", "--codec", "deflate:1"),
        "by record, zstd:1": ("--to", "draft-b", "--codec", "zstd:1"),
        REST_1: ("--compress", "zstd:1"),
        REST_3: ("--compress", "zstd:3"),
    }
    mine = [
        Contender(name, cores, _convert(OUT, *options), _convert(OUT), _convert(os.devnull))
        for name, options in ways.items()
        for cores in (1, 2)
    ]
    return [*peers, *mine]


NEEDS = (
    "saverestore.image.convert",
    "saverestore.transport.newfile",
    "saverestore.transport.opening",
    "saverestore.transport.zstd_sink",
    "saverestore.transport.zstd_source",
    "lz4.frame",
)
"""What `pyimage convert` imports once it knows what to do: that belongs to the start of Python, too."""


def _convert(target: str, *options: str) -> tuple[str, ...]:
    """Argv of `pyimage convert`: it reads, checks and writes digests, as saving and restoring do."""
    needs = ",".join(NEEDS)
    return tuple(ours("saverestore.cli.pyimage", needs, "convert", IN, "-o", target, "--overwrite", *options))


def chosen(all_of_them: Sequence[Contender], names: Sequence[str]) -> list[Contender]:
    """Those whose name has one of the words; all without words. BenchError when there are none."""
    if not names:
        return list(all_of_them)
    some = [one for one in all_of_them if any(name in one.title for name in names)]
    if not some:
        raise BenchError(
            f"no contender is called {' or '.join(names)}; there are "
            f"{'; '.join(dict.fromkeys(one.name for one in all_of_them))}"
        )
    return some


@dataclass
class Figures:
    """What was measured of one contender, of all rounds."""

    contender: Contender
    packed_bytes: int = 0
    packing: list[Run] = field(default_factory=list)
    unpacking: list[Run] = field(default_factory=list)
    reading: list[Run] = field(default_factory=list)


@dataclass
class Measured:
    """All figures. `image_bytes`: of the image as it is compressed."""

    image_bytes: int
    figures: list[Figures]

    def rate(self, run: Run, *, whole: bool = False) -> float:
        """MB/s of the image."""
        return self.image_bytes / (run.wall_s if whole else run.work_s) / MB

    def of(self, name: str, cores: int) -> Figures | None:
        """Those of one contender, None where it was left out."""
        return next(
            (one for one in self.figures if (one.contender.name, one.contender.cores) == (name, cores)), None
        )


def measure(
    image: Path,
    some: Sequence[Contender],
    *,
    rounds: int,
    folder: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Run them all, `rounds` times, on `image` as `pysave` would write it, in `folder`, which is in memory.

    What comes of compressing and decompressing is held against the image. BenchError for whatever fails; nothing
    stays in the folder.
    """
    if len(usable_cores()) < max(one.cores for one in some):
        raise BenchError(
            f"this process may use {len(usable_cores())} cores, two are needed: leave some out with --only"
        )
    _check_room(image, folder)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as inside:
        source, packed, out = (Path(inside) / name for name in ("image", "packed", "out"))
        plain = _argv(_convert(OUT, "--digest", "xxh3"), image, source)
        run(plain, cores=len(usable_cores()))
        digest = _digest(source)
        figures = [Figures(one) for one in some]
        for number in range(rounds):
            order = figures if number % 2 == 0 else figures[::-1]
            for one in order:
                say(f"round {number + 1} of {rounds}: {one.contender.title}")
                one.packing.append(_run(one.contender.pack, one.contender.cores, source, packed))
                one.packed_bytes = packed.stat().st_size
                one.unpacking.append(_run(one.contender.unpack, one.contender.cores, packed, out))
                if number == 0 and _digest(out) != digest:
                    raise BenchError(f"{one.contender.title}: what it decompresses is not what it compressed")
                out.unlink()
                one.reading.append(_run(one.contender.read, one.contender.cores, packed, Path(os.devnull)))
                packed.unlink()
        return Measured(source.stat().st_size, figures)


def _check_room(image: Path, folder: Path) -> None:
    try:
        needed = int(image.stat().st_size * ROOM)
        there = os.statvfs(folder)
    except OSError as error:
        raise BenchError(f"{error.filename}: {error.strerror}") from error
    free = there.f_bavail * there.f_frsize
    if free < needed:
        raise BenchError(
            f"{folder} has {free >> 20} MiB free, {needed >> 20} MiB are needed: give another with --folder"
        )


def _argv(command: Sequence[str], source: Path, target: Path) -> list[str]:
    return [word.replace(IN, str(source)).replace(OUT, str(target)) for word in command]


def _run(command: Sequence[str], cores: int, source: Path, target: Path) -> Run:
    joined = " ".join(command)
    return run(
        _argv(command, source, target),
        cores=cores,
        stdin=None if IN in joined else source,
        stdout=None if OUT in joined else target,
    )


def _digest(path: Path) -> bytes:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            hasher.update(part)
    return hasher.digest()


def comparisons(measured: Measured) -> list[Comparison]:
    """What is asked of compression at rest on two cores, as far as its contenders were run."""
    found: list[Comparison] = []
    rest = measured.of(REST_1, 2)
    if rest is None:
        return found
    packing = median_run(rest.packing)
    if zstd := measured.of("zstd -1 -T2", 2):
        for label, mine, peers, target in (
            ("compress at rest, zstd:1, against zstd -1 -T2", rest.packing, zstd.packing, REST_FASTER),
            ("decompress at rest, against zstd -d", rest.unpacking, zstd.unpacking, REST_UNPACK_FASTER),
            ("decompress at rest to /dev/null", rest.reading, zstd.reading, REST_UNPACK_FASTER),
        ):
            rate, peer = measured.rate(median_run(mine)), measured.rate(median_run(peers))
            found.append(compare(label, rate, peer, "MB/s", target))
            rate = measured.rate(median_run(mine), whole=True)
            found.append(compare(f"{label}, with Python's start", rate, peer, "MB/s"))
    if gzip := measured.of("gzip -6", 2):
        rate = measured.rate(median_run(gzip.packing))
        found += [
            compare(
                "compress at rest, zstd:1, against gzip -6",
                measured.rate(packing),
                rate,
                "MB/s",
                REST_GZIP_FASTER,
            ),
            compare(
                "size at rest, zstd:1, against gzip -6",
                rest.packed_bytes / MB,
                gzip.packed_bytes / MB,
                "MB",
                REST_SIZE,
                less_is_better=True,
            ),
        ]
    return found


def zero_pages(
    *, rounds: int, folder: Path, say: Callable[[str], None], mib: int = ZERO_MIB
) -> list[Comparison]:
    """Compression at rest of `mib` of nothing but zero pages, against a copy of the file by dd."""
    some = [one for one in contenders() if (one.name, one.cores) in ((REST_1, 2), (COPY, 1))]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as inside:
        image = Path(inside) / "image"
        make_image(image, mib, zero=True)
        measured = measure(image, some, rounds=rounds, folder=folder, say=say)
    copy, rest = (measured.rate(median_run(one.packing)) for one in measured.figures)
    return [compare("compress at rest, zero pages, against dd", rest, copy, "MB/s", ZERO_AGAINST_COPY)]


def report(measured: Measured) -> str:
    """The table of all contenders: of each way the rate of the work and, with Python's start, of the process."""
    rows = []
    for one in measured.figures:
        ways = [median_run(runs) for runs in (one.packing, one.unpacking, one.reading)]
        rates = [
            f"{measured.rate(way):,.0f}"
            + (f" ({measured.rate(way, whole=True):,.0f})" if one.contender.is_ours else "")
            for way in ways
        ]
        cpu = " / ".join(f"{way.cpu_s:.2f}" for way in ways)
        peak = " / ".join(f"{way.peak_mib:.0f}" for way in ways)
        ratio = f"{measured.image_bytes / one.packed_bytes:.2f}"
        rows.append((one.contender.name, str(one.contender.cores), ratio, *rates, cpu, peak))
    head = ("", "cores", "ratio", "compress", "decompress", "to /dev/null", "CPU s", "peak MiB")
    return table(head, rows)
