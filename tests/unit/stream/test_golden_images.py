"""The golden images, made by hand: the reader reads them, the writer writes the very same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from stream_samples import MemorySink, golden, source_of

from saverestore.stream import (
    DomainType,
    LibxcReader,
    LibxcWriter,
    LibxlReader,
    LibxlRecordType,
    LibxlWriter,
    PageData,
    PageType,
    XlHeader,
)
from saverestore.stream.layout import entries_of
from saverestore.stream.libxl import EmulatorId, EmulatorState
from saverestore.stream.records import (
    End,
    Following,
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
    X86PvVcpuExtended,
    X86PvVcpuXsave,
    X86TscInfo,
)

PV_ENTRIES = entries_of(
    np.array([0, 1, 3, 2]),
    np.array([PageType.NOTAB, PageType.L4TAB_PINNED, PageType.XTAB, PageType.L1TAB]),
)
PV_PAGES = b"\xaa" * 4096 + b"\xbb" * 4096 + bytes(4096)

PV_RECORDS = [
    X86PvInfo(8, 4),
    StaticDataEnd(),
    X86PvP2mFrames(0, 3, np.array([2], dtype=np.uint64)),
    (PV_ENTRIES, PV_PAGES),
    X86TscInfo(mode=1, khz=1_000_000, nsec=1_000_000_000, incarnation=2),
    SharedInfo(b"\x5a" * 4096),
    X86PvVcpuBasic(0, bytes(range(1, 9))),
    X86PvVcpuExtended(0, b""),
    X86PvVcpuXsave(0, bytes(range(0x11, 0x16))),
    End(),
]

HVM_RECORDS = [
    Provenance({"a": 1}),
    X86CpuidPolicy(b"\1" * 24),
    X86MsrPolicy(b"\2" * 16),
    StaticDataEnd(),
    (entries_of(np.array([0xFFFFF]), np.array([PageType.NOTAB])), b"\xcc" * 4096),
    (entries_of(np.array([0xFFFFF]), np.array([PageType.XALLOC])), b""),
    X86TscInfo(0, 0, 0, 0),
    HvmParams(((1, 0xFEFFC), (0x11, 0xFEFFD))),
    HvmContext(b"123456789"),
    Following(8, bytes.fromhex("2c0a8a99dc147d5445c3b49d035665b2")),
    ImageDigest(1, bytes.fromhex("6132a92fcc5d0ed830c35b0043680411")),
    End(),
]

HVM_V2_RECORDS = [
    (entries_of(np.array([0x10, 0x11]), np.array([PageType.NOTAB, PageType.XTAB])), b"\xdd" * 4096),
    X86TscInfo(0, 0, 0, 0),
    HvmContext(b"ABCDEFGH"),
    HvmParams(()),
    End(),
]

XL_CONFIG = b'{"c_info":{"name":"v1"}}    '
XENSTORE = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"a\0b\0")
QEMU = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"QEV")


def read_all(reader: LibxcReader) -> list:
    """Return all records; PAGE_DATA as (entries, pages)."""
    records = []
    while not reader.ended:
        record = reader.next()
        if isinstance(record, PageData):
            pages = bytearray(reader.nr_pages_left * 4096)
            reader.read_pages([pages])
            records.append((record.entries, bytes(pages)))
        else:
            records.append(record)
    return records


def assert_same(records: list, wanted: list) -> None:
    assert len(records) == len(wanted)
    for record, other in zip(records, wanted, strict=True):
        if isinstance(other, tuple):
            assert np.array_equal(record[0], other[0])
            assert record[1] == other[1]
        else:
            assert record == other


def write_all(writer: LibxcWriter, records: list) -> None:
    for record in records:
        if isinstance(record, tuple):
            writer.page_data(record[0], [record[1]])
        else:
            writer.record(record)


def test_the_pv_image_is_read():
    with source_of(golden("pv-v3")) as source:
        reader = LibxcReader(source)
        assert reader.image.version == 3
        assert reader.domain.type is DomainType.X86_PV
        assert (reader.domain.xen_major, reader.domain.xen_minor) == (4, 17)
        assert_same(read_all(reader), PV_RECORDS)
        assert reader.max_pfn == 3
        assert source.at_end()


def test_the_hvm_image_is_read():
    with source_of(golden("hvm-v3")) as source:
        reader = LibxcReader(source)
        assert reader.domain.type is DomainType.X86_HVM
        assert_same(read_all(reader), HVM_RECORDS)
        assert reader.max_pfn is None
        assert source.at_end()


def test_the_image_of_an_old_xl_is_read_layer_by_layer():
    with source_of(golden("hvm-v2-xl")) as source:
        assert XlHeader.read(source).config == XL_CONFIG
        outer = LibxlReader(source)
        assert outer.next().type is LibxlRecordType.LIBXC_CONTEXT
        inner = LibxcReader(source)
        assert inner.image.version == 2
        assert not inner.static_data_ended
        assert_same(read_all(inner), HVM_V2_RECORDS)
        assert inner.static_data_ended
        assert outer.next().emulator() == XENSTORE
        assert outer.next().emulator() == QEMU
        assert outer.next().type is LibxlRecordType.END
        assert source.at_end()


def test_the_libxc_reader_leaves_the_source_at_the_byte_after_its_end():
    data = golden("hvm-v2-xl")
    with source_of(data) as source:
        XlHeader.read(source)
        outer = LibxlReader(source)
        outer.next()
        inner = LibxcReader(source)
        while not isinstance(inner.next(), End):
            pass
        rest = data[source.offset :]
        assert rest == b"\2\0\0\0\x0c\0\0\0" + rest[8:]
        assert source.read(len(rest)) == rest


def test_the_writer_makes_the_pv_image():
    sink = MemorySink()
    write_all(LibxcWriter(sink, DomainType.X86_PV, (4, 17)), PV_RECORDS)
    assert sink.data == golden("pv-v3")


def test_the_writer_makes_the_hvm_image():
    sink = MemorySink()
    write_all(LibxcWriter(sink, DomainType.X86_HVM, (4, 20)), HVM_RECORDS)
    assert sink.data == golden("hvm-v3")


def test_the_writers_make_the_image_of_an_old_xl():
    sink = MemorySink()
    XlHeader.write(sink, XL_CONFIG)
    outer = LibxlWriter(sink)
    outer.libxc_context()
    write_all(LibxcWriter(sink, DomainType.X86_HVM, (4, 13), version=2), HVM_V2_RECORDS)
    outer.record(LibxlRecordType.EMULATOR_XENSTORE_DATA, XENSTORE.pack())
    outer.record(LibxlRecordType.EMULATOR_CONTEXT, QEMU.pack())
    outer.end()
    assert sink.data == golden("hvm-v2-xl")


def test_a_page_data_record_is_one_write():
    sink = MemorySink()
    writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    writer.record(StaticDataEnd())
    before = sink.calls
    writer.page_data(entries_of(np.arange(3), np.zeros(3)), [bytes(4096), bytes(8192)])
    assert sink.calls == before + 1


def test_asking_for_more_after_the_end_is_a_mistake_of_the_caller():
    with source_of(golden("hvm-v3")) as source:
        reader = LibxcReader(source)
        read_all(reader)
        with pytest.raises(RuntimeError, match="read to its end"):
            reader.next()
