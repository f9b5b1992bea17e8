"""Memory of a restored domain, page by page, and memory of our own commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from launcher import Popen
from xen_lab import COMMAND_TIMEOUT_S, Guest, comes_true, domid_of, handles, must, peak_memory_kib, run

from pyxc.control import DomainInfo
from saverestore.stream import LibxcReader, LibxlReader, XlHeader
from saverestore.stream.reader import PageData
from saverestore.stream.records import End, HvmParams, Record, X86PvP2mFrames, X86PvVcpuBasic
from saverestore.transport import FdSource

each_kind = pytest.mark.parametrize("guest", [("pv", 2), ("pvh", 2)], indirect=True, ids=["pv", "pvh"])

# Beyond what a save needs for any guest: bits and bytes for each pfn, the p2m, numpy's own slack.
BYTES_A_PFN = 64
SLACK_KIB = 24 << 10


def digests_of(name: str) -> dict[int, tuple[int, int, int]]:
    """pfn -> (page type, digest) of every page with content of a paused domain, as the stream would carry it.

    PV page tables are normalised, so that equal tables digest alike whatever frames they lie in.
    """
    from saverestore.guest.common.handles import open_handles
    from saverestore.guest.common.suspend import Suspender
    from saverestore.guest.x86.hvm import HvmSave
    from saverestore.guest.x86.pv import PvSave
    from saverestore.kernels.xxh3 import page_digests
    from saverestore.toolstack import domains

    found: dict[int, tuple[int, int, int]] = {}
    with open_handles() as handles:
        domain = domains.find(handles, name)
        suspender = Suspender(handles.xen, handles.store, domain.domid)
        guest = (HvmSave if domain.info.hvm else PvSave)(handles, domain.info, suspender)
        try:
            for start in range(0, guest.nr_pfns, 4096):
                pfns = np.arange(start, min(start + 4096, guest.nr_pfns), dtype=np.uint64)
                with guest.read_pages(pfns, final=True) as batch:
                    if not batch.nr_data:
                        continue
                    pages = batch.copy_data(np.empty((batch.nr_data, 4096), dtype=np.uint8))
                    with_data = batch.with_data
                    rows = zip(
                        batch.pfns[with_data].tolist(),
                        batch.types[with_data].tolist(),
                        page_digests(pages).tolist(),
                        strict=True,
                    )
                    found.update({pfn: (kind, low, high) for pfn, kind, (low, high) in rows})
        finally:
            guest.close()
    return found


def records_of(image: Path) -> Iterator[Record]:
    """The inner records of an image of ours, pages left out."""
    with FdSource(os.open(image, os.O_RDONLY), str(image)) as source:
        XlHeader.read(source)
        LibxlReader(source).next()
        reader = LibxcReader(source)
        while not isinstance(record := reader.next(), End):
            if not isinstance(record, PageData):
                yield record


def p2m_frame_pfns(image: Path) -> np.ndarray:
    """Where an image of a PV guest says that its p2m lies; empty for other guests."""
    frames = [record.frames for record in records_of(image) if isinstance(record, X86PvP2mFrames)]
    return np.concatenate(frames) if frames else np.empty(0, dtype=np.uint64)


def pages_that_restore_rewrites(image: Path) -> set[int]:
    """PV: start_info and the p2m's own frames. PVH: the rings, emptied for their new backends."""
    from saverestore.guest.x86.vcpu import start_info_pfn

    pages = set(p2m_frame_pfns(image).tolist())
    for record in records_of(image):
        if isinstance(record, X86PvVcpuBasic) and record.vcpu == 0:
            pages.add(start_info_pfn(record.context))
        elif isinstance(record, HvmParams):
            pages |= {value for index, value in record.params if index in (1, 5, 6, 17)}
    return pages


@each_kind
def test_every_page_of_the_restored_domain_equals_the_saved_one_but_for_those_restore_rewrites(
    guest: Guest, images: Path, monkeypatch: pytest.MonkeyPatch
):
    before = guest.state()
    must("pysave", "-p", guest.name, str(images / "a.img"))
    saved = digests_of(guest.name)
    guest.destroy()
    must("pyrestore", "--paused", str(images / "a.img"))
    from p2m_in_place import p2m_at

    monkeypatch.setattr("saverestore.guest.x86.pv.P2m", p2m_at(p2m_frame_pfns(images / "a.img")))
    restored = digests_of(guest.name)
    must("xl", "unpause", guest.name)
    assert len(saved) > guest.memory_mib * 256 * 0.9
    assert saved.keys() == restored.keys()
    differing = {pfn for pfn in saved if saved[pfn] != restored[pfn]}
    assert differing <= pages_that_restore_rewrites(images / "a.img"), sorted(map(hex, differing))[:20]
    guest.goes_on(before)


@pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])
def test_xen_keeps_the_memory_that_a_domain_lacks_while_it_is_filled(guest: Guest, images: Path):
    before = guest.state()
    must("pysave", guest.name, str(images / "a.img"))
    image = (images / "a.img").read_bytes()
    with Popen(["pyrestore", "-q", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as restoring:
        assert restoring.stdin is not None
        restoring.stdin.write(image[: len(image) // 2])
        restoring.stdin.flush()
        info = comes_true("some of its memory is there", lambda: being_filled(guest.name))
        assert info.tot_pages + info.outstanding_pages >= guest.memory_mib * 256
        restoring.stdin.write(image[len(image) // 2 :])
        restoring.stdin.close()
        assert restoring.wait(COMMAND_TIMEOUT_S) == 0
    guest.goes_on(before)
    assert handles().xen.domain(guest.domid).outstanding_pages == 0


def being_filled(name: str) -> DomainInfo | None:
    """What Xen says of the domain of this name when some of its memory is there, and some is claimed for it."""
    domid = domid_of(name)
    info = None if domid is None else handles().xen.domain(domid)
    return info if info and info.outstanding_pages and info.tot_pages > 1024 else None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_peak_memory_of_our_commands_does_not_grow_with_the_guest(
    kind: str, images: Path, pool, record_property
):
    pool.destroy_all()
    peaks: dict[int, list[int]] = {}
    for memory_mib in (256, 1024):
        guest = Guest(f"{kind}-{memory_mib}", kind, 1, memory_mib)
        guest.create(pages=256, rate=100)
        try:
            image = f"/var/tmp/{guest.name}.img"
            peaks[memory_mib] = [
                peak_memory_kib("pysave", "-q", "-c", guest.name, "/dev/null"),
                peak_memory_kib("pysave", "-q", "--live", "-c", "--dirty", "digest", guest.name, "/dev/null"),
            ]
            must("pysave", "-q", guest.name, image, timeout_s=600)
            peaks[memory_mib].append(peak_memory_kib("pyrestore", "-q", image))
            guest.destroy()
            Path(image).unlink()
        finally:
            guest.destroy()
            run("rm", "-f", f"/var/tmp/{guest.name}.img")
    print(f"\npeak memory in KiB of save, live save by digests, restore: {kind} {peaks}")
    record_property("peak_memory_kib", {str(key): value for key, value in peaks.items()})
    more_pfns = (1024 - 256) * 256
    for small, large in zip(peaks[256], peaks[1024], strict=True):
        assert large - small <= more_pfns * BYTES_A_PFN // 1024 + SLACK_KIB, peaks
