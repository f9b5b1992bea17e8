"""A domain as an ELF core file: memory as segments, vCPUs as threads.

Addresses are pseudo-physical: p_paddr is pfn << 12, which is the guest's physical address. p_vaddr is the same:

  - The guest's own kernel mapping is not known: where Linux has its direct map is drawn by lot at boot (KASLR), and
    the guest may be anything. A guess would be wrong without anybody noticing.
  - 0 in all segments, as QEMU's dump-guest-memory does it, makes them lie on top of one another for gdb, which
    knows only p_vaddr and then reads the wrong page. With the physical address `x/gx 0x1000` is physical memory.
  - What knows kernels (drgn, crash) goes by p_paddr and VMCOREINFO, and finds kernel addresses in page tables; no
    x86-64 kernel is linked to addresses that are as low as these, so nothing is hidden.

Page tables of PV guests hold pfns in an image, so they can be walked with these addresses, as those of HVM guests.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from saverestore.errors import Advice, ErrorName, ImageError, Remedy
from saverestore.image import elf
from saverestore.image.index import ImageIndex, Progress, offsets_of_places
from saverestore.image.pages import Batch, batches_of, pfns_with_data, read_pages, runs_of
from saverestore.image.registers import Vcpu, vcpus_of
from saverestore.image.sparse import SparseFile
from saverestore.stream.layout import PAGE_SHIFT, PAGE_SIZE, DomainType, U64Array
from saverestore.transport.random_access import RandomAccess

# Linux's vmcoreinfo_note begins a page: {u32 name length 11, u32 length, u32 type 0} "VMCOREINFO\0" + a byte, text.
VMCOREINFO = "VMCOREINFO"
VMCOREINFO_BEGIN = struct.Struct("<III12s")
VMCOREINFO_NAME = VMCOREINFO.encode().ljust(12, b"\0")
VMCOREINFO_MAX_BYTES = PAGE_SIZE
VMCOREINFO_LINES = (b"OSRELEASE=", b"PAGESIZE=")


@dataclass(frozen=True)
class CoreReport:
    """What became part of a core. `without_registers`: vCPUs that could not be understood, in words."""

    nr_pages: int
    nr_segments: int
    nr_vcpus: int
    vmcoreinfo: bytes | None
    without_registers: list[str]


def prstatus_of(vcpu: Vcpu) -> bytes:
    """The note of a vCPU; its thread number is the vCPU's, counted from 1, as 0 is no thread."""
    return elf.prstatus(vcpu.number + 1, vcpu.values | {"gs_base": vcpu.gs_base})


def find_vmcoreinfo(access: RandomAccess, index: ImageIndex, batch: Batch) -> bytes | None:
    """Linux's own description of itself, as text, if it begins in one of these pages."""
    for at in _candidates(batch):
        text = _vmcoreinfo_at(access, index, int(batch.pfns[at]), batch.pages[at].tobytes())
        if text is not None:
            return text
    return None


def _candidates(batch: Batch) -> list[int]:
    words = batch.pages[:, : VMCOREINFO_BEGIN.size].copy().view("<u4")
    name = np.frombuffer(VMCOREINFO_NAME, dtype="<u4")
    begins = (words[:, 0] == len(VMCOREINFO) + 1) & (words[:, 3:6] == name).all(axis=1)
    return [int(i) for i in np.flatnonzero(begins)]


def _vmcoreinfo_at(access: RandomAccess, index: ImageIndex, pfn: int, page: bytes) -> bytes | None:
    _, length, _, _ = VMCOREINFO_BEGIN.unpack_from(page)
    if not 0 < length <= VMCOREINFO_MAX_BYTES:
        return None
    if VMCOREINFO_BEGIN.size + length > PAGE_SIZE:  # it goes on in the next page
        offset = offsets_of_places(index.pages.get(np.array([pfn + 1], dtype=np.uint64)))
        page += read_pages(access, offset).tobytes() if offset[0] else b""
    text = page[VMCOREINFO_BEGIN.size : VMCOREINFO_BEGIN.size + length]
    return text if len(text) == length and all(line in text for line in VMCOREINFO_LINES) else None


def segments_of(pfns: U64Array) -> U64Array:
    """For rising pfns the segments, as `elf.front` takes them: address, length, offset."""
    runs = runs_of(pfns)
    lengths = (runs[:, 1] - runs[:, 0] + np.uint64(1)) << np.uint64(PAGE_SHIFT)
    offsets = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(lengths, dtype=np.uint64)])[:-1]
    return np.stack([runs[:, 0] << np.uint64(PAGE_SHIFT), lengths, offsets], axis=1)


def write_core(
    access: RandomAccess, index: ImageIndex, fd: int, name: str, on_progress: Progress | None = None
) -> CoreReport:
    """Write the core into `fd`, a new file. Pages of zeroes become holes of the file, not of the memory.

    While all memory goes by, the note that Linux keeps of itself in it is looked for; the first that is one counts.
    """
    if index.domain is not None and index.domain.type is DomainType.ARM64:
        raise ImageError(
            "it holds an arm64 domain: core files are made of x86 domains only",
            name=ErrorName.IMAGE_UNSUPPORTED,
            remedies=[Advice(Remedy.DUMP_MEMORY)],
        )
    vcpus, unknown = vcpus_of(index)
    vmcoreinfo: bytes | None = None
    pfns = pfns_with_data(index.pages)
    segments = segments_of(pfns)
    begin = elf.front_bytes(len(segments))
    end = begin + len(pfns) * PAGE_SIZE
    file = SparseFile(fd, name, end)
    for batch in batches_of(access, index.pages, on_progress):
        if vmcoreinfo is None:
            vmcoreinfo = find_vmcoreinfo(access, index, batch)
        ranks = np.searchsorted(pfns, batch.pfns).astype(np.uint64)
        file.write_pages(np.uint64(begin) + (ranks << np.uint64(PAGE_SHIFT)), batch.pages)
    notes = b"".join(prstatus_of(vcpu) for vcpu in vcpus)
    if vmcoreinfo is not None:
        notes += elf.note(VMCOREINFO, 0, vmcoreinfo)
    file.write_at(end, notes)
    file.write_at(0, elf.front(segments, len(notes)))
    return CoreReport(len(pfns), len(segments), len(vcpus), vmcoreinfo, unknown)
