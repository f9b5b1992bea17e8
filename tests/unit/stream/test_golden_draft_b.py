"""The golden images of the dialect draft-b: read, and written to the very same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from stream_samples import MemorySink, golden, source_of

from saverestore.stream import DomainType, LibxcReader, LibxcWriter, PageData, PageType
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.layout import ByteOrder, entries_of, has_data
from saverestore.stream.records import (
    End,
    HvmContext,
    HvmParams,
    ImageDigest,
    Provenance,
    SharedInfo,
    StaticDataEnd,
    X86CpuidPolicy,
    X86MsrPolicy,
    X86PvInfo,
    X86PvP2mFrames,
    X86PvVcpuBasic,
    X86PvVcpuXsave,
    X86TscInfo,
)
from saverestore.stream.survey import survey
from saverestore.stream.versions import VersionCache

A, B = b"\xaa" * 4096, b"\xbb" * 4096
CHANGED_A = A[:8] + b"\1\2\3\4" + A[12:4092] + b"\5\6\7\x08"

PV_RECORDS = [
    X86PvInfo(8, 4),
    StaticDataEnd(),
    X86PvP2mFrames(0, 3, np.array([2], dtype=np.uint64)),
    (
        entries_of(
            np.array([0, 1, 3, 2]),
            np.array([PageType.NOTAB, PageType.L4TAB_PINNED, PageType.XTAB, PageType.L1TAB]),
        ),
        A + B + bytes(4096),
    ),
    (
        entries_of(np.array([0, 1]), np.array([PageType.NOTAB, PageType.L4TAB_PINNED])),
        CHANGED_A + B[:-1] + b"\xbc",
    ),
    X86TscInfo(mode=1, khz=1_000_000, nsec=1_000_000_000, incarnation=2),
    SharedInfo(b"\x5a" * 4096),
    X86PvVcpuBasic(0, bytes(range(1, 9))),
    X86PvVcpuXsave(0, bytes(range(0x11, 0x16))),
    End(),
]


def one_page(page_type: PageType, page: bytes) -> tuple[np.ndarray, bytes]:
    return entries_of(np.array([0xFFFFF]), np.array([page_type])), page


HVM_RECORDS = [
    Provenance({"a": 1}),
    X86CpuidPolicy(b"\1" * 24),
    X86MsrPolicy(b"\2" * 16),
    StaticDataEnd(),
    one_page(PageType.NOTAB, b"\xcc" * 4096),
    one_page(PageType.NOTAB, b"\xcc" * 4096),
    one_page(PageType.XALLOC, b""),
    one_page(PageType.NOTAB, bytes(4096)),
    X86TscInfo(0, 0, 0, 0),
    HvmParams(((1, 0xFEFFC), (0x11, 0xFEFFD))),
    HvmContext(b"123456789"),
    ImageDigest(1, bytes.fromhex("7f0d147c5ad53fedc2f184d3d3a0d1fe")),
    End(),
]

IMAGES = pytest.mark.parametrize(
    ("name", "records", "domain", "minor", "order"),
    [
        ("pv-draft-b", PV_RECORDS, DomainType.X86_PV, 17, ByteOrder.LITTLE),
        ("hvm-draft-b-be", HVM_RECORDS, DomainType.X86_HVM, 20, ByteOrder.BIG),
    ],
)


def read_all(reader: LibxcReader) -> list:
    """All records; PAGE_DATA as (entries, pages), read over what earlier records said of these pages."""
    memory: dict[int, bytes] = {}
    records = []
    while not reader.ended:
        record = reader.next()
        if isinstance(record, PageData):
            pfns = record.pfns[has_data(record.types)].tolist()
            pages = bytearray(b"".join(memory.get(pfn, b"\xee" * 4096) for pfn in pfns))
            reader.read_pages([pages])
            memory |= {pfn: bytes(pages[i * 4096 :][:4096]) for i, pfn in enumerate(pfns)}
            records.append((record.entries, bytes(pages)))
        else:
            records.append(record)
    return records


@IMAGES
def test_the_image_is_read(name, records, domain, minor, order):
    with source_of(golden(name)) as source:
        reader = LibxcReader(source)
        assert (reader.image.version, reader.image.order) == (1, order)
        assert (reader.domain.type, reader.domain.xen_minor) == (domain, minor)
        found = read_all(reader)
        assert source.at_end()
    assert len(found) == len(records)
    for record, wanted in zip(found, records, strict=True):
        if isinstance(wanted, tuple):
            assert np.array_equal(record[0], wanted[0])
            assert record[1] == wanted[1]
        else:
            assert record == wanted


@IMAGES
def test_the_writer_makes_the_image(name, records, domain, minor, order):
    sink = MemorySink()
    writer = LibxcWriter(
        sink, domain, (4, minor), 1, order=order, coding=Coding(Codec.XOR), versions=VersionCache(1 << 20)
    )
    for record in records:
        if isinstance(record, tuple):
            writer.page_data(record[0], [record[1]])
        else:
            writer.record(record)
    assert sink.data.hex() == golden(name).hex()


def test_pages_of_every_codec_are_read():
    with source_of(golden("hvm-draft-b-codecs")) as source:
        records = read_all(LibxcReader(source))
    pages = [record[1] for record in records if isinstance(record, tuple)]
    assert pages == [b"draft-b " * 512 + bytes(4096)] * 3


@pytest.mark.parametrize("name", ["pv-draft-b", "hvm-draft-b-be", "hvm-draft-b-codecs"])
def test_the_image_is_whole(name):
    with source_of(golden(name)) as source:
        found = survey(source)
    assert found.is_whole, found.error
    assert found.pages.nr_data == {"pv-draft-b": 5, "hvm-draft-b-be": 3, "hvm-draft-b-codecs": 6}[name]
    assert found.pages.nr_zero == {"pv-draft-b": 1, "hvm-draft-b-be": 1, "hvm-draft-b-codecs": 3}[name]
