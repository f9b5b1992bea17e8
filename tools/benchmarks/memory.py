"""`tools/bench memory`: what the engine and `pyimage` take, each in a process of its own, against the bound.

The bound: 64 MiB, and 16 MiB for each worker, whatever the image's size; everything counts that is not the domain's
own memory, also what is kept for each pfn. The domain is one in memory. Its pages are shared, all touched before
counting begins, and those of PVH ones few: several pfns have the same frame, so that 4 GiB take 256 MiB. What is
counted is the growth of the process's resident memory from there to its peak, as the kernel notes it (VmHWM, which
writing 5 to /proc/self/clear_refs sets back). Content: a half that does not compress, a quarter that does, a quarter
zero.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import BenchError
from benchmarks.results import Comparison, within
from benchmarks.running import CHECKOUT
from saverestore.cli import pyimage
from saverestore.engine import restore as engine_restore
from saverestore.engine.save import save as save_image
from saverestore.engine.settings import SaveSettings
from saverestore.guest.ports import Channels
from saverestore.stream import DomainType, LibxcReader, LibxlReader, LibxlRecordType, LibxlWriter, XlHeader
from saverestore.stream.codecs import Coding
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.header_digest import HeaderDigestSink, HeaderDigestSource
from saverestore.stream.layout import PAGE_SIZE
from saverestore.stream.libxl import EmulatorId, EmulatorState
from saverestore.stream.trailer import TrailerBuffer, TrailerSource
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave
from saverestore.transport.cache import Cache
from saverestore.transport.cores import usable_cores
from saverestore.transport.direct import BUFFER_BYTES, SMALL_BUFFER_BYTES
from saverestore.transport.newfile import NewFile
from saverestore.transport.opening import open_image
from saverestore.transport.zstd_sink import ZstdSink

MIB = 1 << 20
BASE_MIB, WORKER_MIB = 64, 16

FRAMES_MIB = 256
"""Memory that every PVH domain here has, whatever it says; also the smallest domain."""

RUN_PAGES = 128
"""Pages of one kind of content follow one another in such runs."""

CONFIG = json.dumps(
    {
        "c_info": {"type": "pvh", "name": "bench", "uuid": "00000000-0000-4000-8000-000000000001"},
        "b_info": {"max_vcpus": 1, "target_memkb": 4096, "max_memkb": 4096},
    }
).encode()
STATE = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"QEVM" + bytes(MIB)).pack()

Run = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One thing that is measured. `prepare(size_mib, folder)` returns what is then run and counted.

    `makes`, `needs`: the image that it writes, or reads, as a file of the folder; {} stands for the size.
    """

    name: str
    prepare: Callable[[Case, int, Path], Run]
    makes: str | None = None
    needs: str | None = None
    settings: dict[str, Any] | None = None
    arguments: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (256, 1024)

    def path(self, folder: Path, size_mib: int) -> Path:
        """Of the image that it reads or, if it reads none, writes."""
        name = self.needs or self.makes
        return Path(os.devnull) if name is None else folder / name.format(size_mib)


# ---- domains ---------------------------------------------------------------------------------------------


def domain_of(size_mib: int) -> MemoryDomain:
    """A domain of so many pfns, all of which have one of the few frames; these are all touched."""
    nr_frames = FRAMES_MIB * MIB // PAGE_SIZE
    domain = MemoryDomain(DomainType.X86_HVM, nr_frames)
    domain.frames[:] = 0
    domain.capacity_pfns = size_mib * MIB // PAGE_SIZE
    domain.grow(domain.capacity_pfns)
    domain.p2m[:] = np.arange(domain.nr_pfns) % nr_frames
    domain.state.hvm_params = {1: 1, 17: 2}
    return domain


def pv_domain_of(size_mib: int) -> MemoryDomain:
    """A PV domain with page tables; all its memory is there."""
    domain = MemoryDomain.pv(size_mib * MIB // PAGE_SIZE)
    for at in range(0, len(domain.frames), RUN_PAGES):
        domain.frames[at : at + RUN_PAGES, 100] |= 0  # touches them all
    return domain


def fill(domain: MemoryDomain) -> None:
    """Content: of four runs of pages, two do not compress, one does, and one is zero."""
    random = np.random.default_rng(1)
    frames = domain.frames
    for at in range(0, len(frames), RUN_PAGES):
        run = frames[at : at + RUN_PAGES]
        kind = at // RUN_PAGES % 4
        if kind < 2:
            run.view(np.uint64)[:] = random.integers(0, 1 << 63, (len(run), PAGE_SIZE // 8), dtype=np.uint64)
        elif kind == 2:
            run[:] = random.integers(0, 4, (len(run), PAGE_SIZE), dtype=np.uint8)


# ---- what is measured ------------------------------------------------------------------------------------


def save(case: Case, size_mib: int, folder: Path) -> Run:
    """As operations/save.py does, with a device model's state of 1 MiB."""
    settings = dict(case.settings or {})
    if settings.pop("pv", False):
        domain = pv_domain_of(size_mib)
    else:
        domain = domain_of(size_mib)
        fill(domain)
    guest = MemorySave(domain)
    compress = settings.pop("compress", None)
    if "coding" in settings:
        settings["coding"] = Coding.parse(settings["coding"])
    if settings.get("live"):
        guest.moments.on_every(lambda name, _: _dirty_some(domain) if name == "check_layout" else None)

    def run() -> None:
        path = case.path(folder, size_mib)
        buffer_bytes = BUFFER_BYTES if compress is None else SMALL_BUFFER_BYTES
        with NewFile(path, overwrite=True, cache=Cache.AUTO, buffer_bytes=buffer_bytes) as file:
            if compress is None:
                _write_image(guest, file.sink, settings)
            else:
                with ZstdSink(file.sink, level=compress) as sink:
                    _write_image(guest, sink, settings)
                    sink.finish()
            file.sync()
            file.publish()

    return run


def _dirty_some(domain: MemoryDomain) -> None:
    """A tenth of the frames gets another word; where the domain's log is on, it is told."""
    at = np.arange(0, len(domain.frames), 10)
    domain.frames[at, 64:72] += 1
    if domain.dirty is not None:
        domain.dirty[np.isin(domain.p2m, at)] = True


def _format_of(settings: dict[str, Any]) -> str:
    return f"draft-b, {settings['coding']}" if "coding" in settings else "xen"


def _write_image(guest: MemorySave, sink: Any, settings: dict[str, Any]) -> None:
    outside = HeaderDigestSink(sink)
    XlHeader.write(outside, CONFIG)
    stream = LibxlWriter(outside)
    stream.libxc_context()
    behind = TrailerBuffer(sink.name)
    stream.continue_in(behind)
    stream.record(LibxlRecordType.EMULATOR_CONTEXT, STATE)
    stream.end()
    given = SaveSettings(
        provenance={"tool": "bench", "options": {"format": _format_of(settings)}},
        digest=DigestAlgorithm.XXH3,
        header_digest=outside.digest(),
        **settings,
    )
    save_image(guest, sink, given, trailer=behind)


def restore(case: Case, size_mib: int, folder: Path) -> Run:
    """As operations/restore_here.py does."""
    guest = MemoryRestore(domain_of(size_mib))
    path = str(case.path(folder, size_mib))

    def run() -> None:
        with open_image(path) as source:
            outside = HeaderDigestSource(source)
            XlHeader.read(outside)
            stream = LibxlReader(outside)
            stream.next()
            reader = LibxcReader(source, header_digest=outside.digest())
            engine_restore.restore(reader, source, guest, Channels(store_port=1, console_port=2))
            behind = TrailerSource(source, reader.following)
            stream.continue_in(behind)
            while not stream.ended:
                stream.next()
            behind.check_end()
            if not source.at_end():
                raise BenchError(f"{path}: something follows the image")

    return run


def command(case: Case, size_mib: int, folder: Path) -> Run:
    """`pyimage` as a person runs it; {out} in its arguments is a file in the folder."""
    path, out = case.path(folder, size_mib), folder / "out.img"
    words = [word.format(image=path, out=out) for word in case.arguments]

    def run() -> None:
        if pyimage.main(words):
            raise BenchError(f"pyimage {' '.join(words)} failed")
        out.unlink(missing_ok=True)

    return run


CONVERT = ("convert", "{image}", "-o", "{out}", "--overwrite")
CASES = [
    Case("save", save, makes="plain-{}.img"),
    Case("save", save, sizes=(4096,)),
    Case("save of PV", save, settings={"pv": True}),
    Case("save --compress zstd", save, makes="zstd-{}.img", settings={"compress": 1}),
    Case("save --format draft-b --codec zstd", save, makes="draft-b-{}.img", settings={"coding": "zstd"}),
    Case("save --live --dirty digest", save, settings={"live": True, "dirty": "digest"}),
    Case(
        "save --live --dirty digest --compress zstd",
        save,
        settings={"live": True, "dirty": "digest", "compress": 1},
    ),
    Case(
        "save --live --format draft-b --codec xor",
        save,
        makes="xor-{}.img",
        settings={"live": True, "dirty": "log", "coding": "xor"},
    ),
    Case("restore", restore, needs="plain-{}.img"),
    Case("restore of zstd", restore, needs="zstd-{}.img"),
    Case("restore of draft-b", restore, needs="draft-b-{}.img"),
    Case("restore of draft-b, xor", restore, needs="xor-{}.img"),
    Case("pyimage verify", command, needs="plain-{}.img", arguments=("verify", "{image}")),
    Case("pyimage verify of zstd", command, needs="zstd-{}.img", arguments=("verify", "{image}")),
    Case("pyimage verify of draft-b", command, needs="draft-b-{}.img", arguments=("verify", "{image}")),
    Case(
        "pyimage convert to zstd",
        command,
        needs="plain-{}.img",
        arguments=(*CONVERT, "--compress", "zstd"),
    ),
    Case(
        "pyimage convert of draft-b to xen",
        command,
        needs="draft-b-{}.img",
        arguments=(*CONVERT, "--to", "xen"),
    ),
    Case(
        "pyimage convert of draft-b, xor, to xen",
        command,
        needs="xor-{}.img",
        arguments=(*CONVERT, "--to", "xen"),
    ),
    Case(
        "pyimage convert to draft-b", command, needs="plain-{}.img", arguments=(*CONVERT, "--to", "draft-b")
    ),
]


# ---- measuring -------------------------------------------------------------------------------------------


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise BenchError(f"/proc/self/status has no {field}")


def measured(run: Run) -> dict[str, float]:
    """Run it: MiB that the process had before, and by how many it grew at most."""
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide growth
    Path("/proc/self/clear_refs").write_text("5")
    before_kib = _status_kib("VmRSS")
    anonymous_kib = _status_kib("RssAnon")
    run()
    return {"before": anonymous_kib / 1024, "growth": (_status_kib("VmHWM") - before_kib) / 1024}


def measure_one(name: str, size_mib: int, folder: Path) -> None:
    """Measure one of CASES in this process, and print what was found as JSON."""
    case = next(one for one in CASES if one.name == name and size_mib in one.sizes)
    run = case.prepare(case, size_mib, folder)
    sys.stdout = sys.stderr  # `pyimage` has something to say
    found = measured(run)
    print(json.dumps(found), file=sys.__stdout__)


def _in_child(case: Case, size_mib: int, folder: Path) -> dict[str, float]:
    words = [
        sys.executable,
        str(CHECKOUT / "tools/bench"),
        "memory",
        "--child",
        case.name,
        str(size_mib),
        str(folder),
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{case.name}, {size_mib} MiB, failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_all(folder_for_images: Path | None, only: str) -> list[Comparison]:
    """Measure what has `only` in its name, and print each as it comes: a comparison with the bound for each."""
    workers = usable_cores()
    bound = BASE_MIB + WORKER_MIB * workers
    results = []
    print(f"bound: {BASE_MIB} MiB + {WORKER_MIB} MiB for each of {workers} workers = {bound} MiB\n")
    print(f"{'':42}{'domain':>9}{'at begin':>10}{'growth':>10}  MiB")
    with tempfile.TemporaryDirectory(dir=folder_for_images) as folder:
        for case in CASES:
            wanted = only in case.name
            for size_mib in case.sizes:
                if not wanted and not _is_needed(case, only):
                    continue
                found = _in_child(case, size_mib, Path(folder))
                if not wanted:
                    continue
                one = within(f"{case.name}, domain of {size_mib} MiB", found["growth"], bound, "MiB")
                print(
                    f"{case.name:42}{size_mib:9}{found['before']:10.0f}{found['growth']:10.1f}  "
                    f"{'holds' if one.holds else 'EXCEEDED'}",
                    flush=True,
                )
                results.append(one)
    return results


def _is_needed(case: Case, only: str) -> bool:
    """Whether something that is wanted reads the image that this one makes."""
    return case.makes is not None and any(only in other.name and other.needs == case.makes for other in CASES)
