"""Records that break the format: found before anything is allocated, and named with their place."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
from stream_samples import MemorySink, StingySource, golden, source_of

from saverestore.errors import ImageError
from saverestore.stream import (
    BadRecord,
    DomainType,
    LibxcReader,
    LibxcWriter,
    PageData,
    RecordType,
    UnknownRecord,
)
from saverestore.stream.layout import (
    KNOWN_PAGE_TYPES,
    PIN,
    RECORD_BODY_MAX,
    PageType,
    entries_of,
    has_data,
    pfns_of,
    record_name,
    types_of,
)
from saverestore.stream.limits import BODY_MAX, body_max_of
from saverestore.stream.records import (
    RECORD_CLASSES,
    CheckpointDirtyPfnList,
    Following,
    HvmContext,
    HvmParams,
    ImageDigest,
    Provenance,
    SharedInfo,
    StaticDataEnd,
    UnknownOptional,
    X86CpuidPolicy,
    X86PvInfo,
    X86PvP2mFrames,
    X86PvVcpuBasic,
    X86TscInfo,
)

HVM_HEADERS = golden("hvm-v3")[:40]
PV_HEADERS = golden("pv-v3")[:40]
STATIC_END = struct.pack("<II", 0x10, 0)


def record(type: int, body: bytes, length: int | None = None, padding: bytes | None = None) -> bytes:
    wanted = -len(body) % 8
    return (
        struct.pack("<II", type, len(body) if length is None else length)
        + body
        + (bytes(wanted) if padding is None else padding)
    )


def page_data(entries: list[int], pages: int, count: int | None = None) -> bytes:
    head = struct.pack("<II", len(entries) if count is None else count, 0)
    return record(1, head + b"".join(struct.pack("<Q", entry) for entry in entries) + bytes(4096 * pages))


def read_to_error(data: bytes) -> ImageError:
    with source_of(data) as source, pytest.raises(ImageError) as caught:
        reader = LibxcReader(source)
        while not reader.ended:
            reader.next()
    return caught.value


@pytest.mark.parametrize("type", [0x13, 0x14, 0x7FFF_FFFF])
def test_an_unknown_mandatory_record_is_refused_with_its_number(type):
    error = read_to_error(HVM_HEADERS + record(type, b""))
    assert isinstance(error, UnknownRecord)
    assert f"unknown mandatory record {type:#x}" in str(error)
    assert error.offset == 40
    assert error.type == type


@pytest.mark.parametrize("type", [0x8000_0000, 0x8000_0001, 0xFFFF_FFFF])
@pytest.mark.parametrize("length", [0, 1, 8, 5000])
def test_an_unknown_optional_record_is_passed_over(type, length):
    with source_of(HVM_HEADERS + record(type, b"x" * length) + STATIC_END) as source:
        reader = LibxcReader(source)
        assert reader.next() == UnknownOptional(type, length)
        assert reader.next() == StaticDataEnd()


@pytest.mark.parametrize("type", [0x8000_0001, RecordType.PROVENANCE])
def test_padding_that_is_not_zero_is_refused(type):
    error = read_to_error(HVM_HEADERS + record(type, b'{"a":1}', padding=b"\1"))
    assert "nonzero padding 01" in str(error)
    assert error.offset == 40


@pytest.mark.parametrize("type", sorted(set(RecordType) - {RecordType.TOOLSTACK}))
def test_a_record_longer_than_its_limit_is_rejected_before_allocation(type):
    data = HVM_HEADERS + struct.pack("<II", type, BODY_MAX[type] + 1) + bytes(64)
    with StingySource(data) as source:
        reader = LibxcReader(source)
        with pytest.raises(BadRecord, match=f"{type.name} record of {BODY_MAX[type] + 1} bytes, longer than"):
            reader.next()
        assert source.longest_request <= 24


def test_every_record_type_has_a_limit_and_none_is_above_the_general_one():
    assert set(BODY_MAX) == set(RecordType)
    assert max(BODY_MAX.values()) <= RECORD_BODY_MAX
    assert body_max_of(0x8123_4567) == RECORD_BODY_MAX


def test_every_record_type_has_a_class_but_the_two_that_are_special():
    assert set(RecordType) - set(RECORD_CLASSES) == {RecordType.PAGE_DATA, RecordType.TOOLSTACK}


@pytest.mark.parametrize(
    ("entries", "pages", "message"),
    [
        ([], 0, "0 entries in a body of 8 bytes"),
        ([1 << 52], 1, "entry 0 .0x0010000000000000. has reserved bits set"),
        ([0, (1 << 59) | 5], 2, "entry 1 .* has reserved bits set"),
        ([0, 5 << 60 | 1], 1, "entry 1 .* has page type 5, which does not exist"),
        ([8 << 60], 0, "page type 8"),
        ([7, 8, 7], 3, "entry 2 .* names pfn 0x7 a second time"),
        ([9, 8, 0xF << 60 | 9], 2, "names pfn 0x9 a second time"),
        ([0, 0xF << 60 | 1], 2, "8192 bytes for the pages of 1 entries with data, which are 4096"),
        ([0, 1], 1, "4096 bytes for the pages of 2 entries"),
    ],
)
def test_entries_that_may_not_be_are_refused(entries, pages, message):
    error = read_to_error(HVM_HEADERS + STATIC_END + page_data(entries, pages))
    assert isinstance(error, BadRecord)
    assert re.search(message, str(error))
    assert error.offset == 48


def test_more_entries_than_the_body_holds_are_not_allocated():
    data = HVM_HEADERS + STATIC_END + page_data([1, 2], 2, count=0xFFFF_FFFF)
    with StingySource(data) as source:
        reader = LibxcReader(source)
        reader.next()
        with pytest.raises(BadRecord, match="4294967295 entries in a body of 8216 bytes"):
            reader.next()
        assert source.longest_request <= 24


@pytest.mark.parametrize("length", [0, 7])
def test_a_page_data_body_too_short_for_its_count_is_refused(length):
    error = read_to_error(HVM_HEADERS + STATIC_END + record(1, bytes(length)))
    assert f"PAGE_DATA: body of {length} bytes" in str(error)


def test_a_reserved_count_field_is_refused():
    data = HVM_HEADERS + STATIC_END + record(1, struct.pack("<IIQ", 1, 9, 0xF << 60))
    assert "reserved bytes are not zero" in str(read_to_error(data))


def test_a_pfn_above_the_domains_last_is_refused_with_its_place():
    data = bytearray(golden("pv-v3"))
    where = data.index(bytes.fromhex("03000000000000f0"))
    data[where] = 4
    error = read_to_error(bytes(data))
    assert "names pfn 0x4, above the domain's last, 0x3" in str(error)
    assert error.offset == 88


def test_the_consumer_may_set_the_last_pfn():
    with source_of(HVM_HEADERS + STATIC_END + page_data([10], 1)) as source:
        reader = LibxcReader(source)
        reader.max_pfn = 9
        reader.next()
        with pytest.raises(BadRecord, match="names pfn 0xa, above the domain's last, 0x9"):
            reader.next()


def test_pages_nobody_read_are_passed_over():
    with source_of(golden("pv-v3")) as source:
        reader = LibxcReader(source)
        while not isinstance(reader.next(), PageData):
            pass
        assert reader.nr_pages_left == 3
        page = bytearray(4096)
        reader.read_some_pages([page])
        assert page == b"\xaa" * 4096
        assert reader.nr_pages_left == 2
        assert isinstance(reader.next(), X86TscInfo)
        assert reader.nr_pages_left == 0


def test_pages_are_skipped_on_request_and_once():
    with source_of(golden("pv-v3")) as source:
        reader = LibxcReader(source)
        reader.skip_pages()
        while not isinstance(reader.next(), PageData):
            pass
        reader.skip_pages()
        offset = source.offset
        reader.skip_pages()
        assert source.offset == offset
        assert isinstance(reader.next(), X86TscInfo)


@pytest.mark.parametrize("length", [0, 4096, 3 * 4096 - 1, 4 * 4096])
def test_buffers_of_another_length_than_the_pages_are_a_mistake_of_the_caller(length):
    with source_of(golden("pv-v3")) as source:
        reader = LibxcReader(source)
        while not isinstance(reader.next(), PageData):
            pass
        with pytest.raises(ValueError, match=f"buffers of {length} bytes for pages of 12288 bytes"):
            reader.read_pages([bytearray(length)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: X86PvInfo.unpack(bytes(7), 5), "X86_PV_INFO: body of 7 bytes, 8 wanted"),
        (lambda: X86PvInfo.unpack(b"\x08\x03" + bytes(6), 5), "width 8 with 3 levels"),
        (lambda: X86PvInfo.unpack(b"\x08\x04\x01" + bytes(5), 5), "reserved bytes are not zero"),
        (lambda: X86PvP2mFrames.unpack(bytes(7), 5), "at least 8 wanted"),
        (lambda: X86PvP2mFrames.unpack(bytes(12), 5), "not a whole number of frames"),
        (lambda: X86PvP2mFrames.unpack(struct.pack("<IIQ", 2, 1, 0), 5), "first pfn 0x2 is above the last"),
        (
            lambda: X86PvP2mFrames.unpack(struct.pack("<IIQQQ", 0, 511, 0, 1, 2), 5),
            "3 frames for pfns 0x0 to 0x1ff; that takes 1 .32-bit guest. or 1 .64-bit guest.",
        ),
        (lambda: X86PvP2mFrames.unpack(struct.pack("<IIQ", 0, 9, 10), 5), "frame 0 .* is pfn 0xa, above"),
        (lambda: X86PvVcpuBasic.unpack(bytes(7), 5), "X86_PV_VCPU_BASIC: body of 7 bytes"),
        (lambda: X86PvVcpuBasic.unpack(struct.pack("<II", 0, 1), 5), "reserved bytes"),
        (lambda: SharedInfo.unpack(bytes(4095), 5), "SHARED_INFO: body of 4095 bytes, 4096 wanted"),
        (lambda: X86TscInfo.unpack(bytes(25), 5), "24 wanted"),
        (lambda: X86TscInfo.unpack(bytes(23) + b"\1", 5), "reserved bytes"),
        (lambda: HvmContext.unpack(b"", 5), "HVM_CONTEXT: body of 0 bytes, at least 1 wanted"),
        (lambda: HvmParams.unpack(b"", 5), "at least 8 wanted"),
        (lambda: HvmParams.unpack(struct.pack("<IIQ", 1, 0, 0), 5), "1 parameters take 24"),
        (lambda: HvmParams.unpack(struct.pack("<II", 0xFFFF_FFFF, 0), 5), "4294967295 parameters take"),
        (lambda: CheckpointDirtyPfnList.unpack(bytes(9), 5), "not a whole number of pfns"),
        (lambda: X86CpuidPolicy.unpack(b"", 5), "a multiple of 24 wanted"),
        (lambda: X86CpuidPolicy.unpack(bytes(25), 5), "a multiple of 24 wanted"),
        (lambda: Provenance.unpack(b"\xff", 5), "PROVENANCE: no JSON in UTF-8"),
        (lambda: Provenance.unpack(b"[1]", 5), "a JSON list instead of an object"),
        (lambda: Provenance.unpack(b'{"a":NaN}', 5), "NaN is not JSON"),
        (lambda: Provenance.unpack(b"[" * 100_000, 5), "PROVENANCE: no JSON"),
        (lambda: ImageDigest.unpack(struct.pack("<HHI", 1, 0, 0) + bytes(15), 5), "digest of 15 bytes"),
        (lambda: ImageDigest.unpack(struct.pack("<HHI", 9, 0, 0), 5), "digest of 0 bytes"),
        (lambda: Following.unpack(bytes(23), 5), "FOLLOWING: body of 23 bytes, 24 wanted"),
        (lambda: StaticDataEnd.unpack(b"x", 5), "1 bytes of body where there are none"),
    ],
)
def test_a_body_that_breaks_the_format_is_refused(make, message):
    with pytest.raises(BadRecord, match=message) as caught:
        make()
    assert caught.value.offset == 5


@pytest.mark.parametrize(("width", "levels", "nr_frames"), [(8, 4, 2), (4, 3, 1)])
def test_the_number_of_p2m_frames_must_fit_the_width_of_the_guest(width, levels, nr_frames):
    wrong = {2: 1, 1: 2}[nr_frames]
    start = PV_HEADERS + record(2, bytes([width, levels]) + bytes(6)) + STATIC_END
    error = read_to_error(start + record(3, struct.pack("<II", 0, 1023) + bytes(8 * wrong)))
    assert f"{wrong} frames for pfns 0x0 to 0x3ff; that takes {nr_frames} ({8 * width}-bit guest)" in str(
        error
    )
    with source_of(start + record(3, struct.pack("<II", 0, 1023) + bytes(8 * nr_frames))) as source:
        reader = LibxcReader(source)
        reader.next()
        reader.next()
        assert len(reader.next().frames) == nr_frames


def test_a_range_of_p2m_frames_that_does_not_begin_at_zero_counts_from_its_first_frame():
    X86PvP2mFrames(511, 512, np.zeros(2, dtype=np.uint64)).check_width(8)
    with pytest.raises(BadRecord, match=r"1 .64-bit guest"):
        X86PvP2mFrames(512, 1023, np.zeros(2, dtype=np.uint64)).check_width(8)


def test_entries_are_put_together_and_taken_apart():
    pfns = np.array([0, 1, (1 << 52) - 1])
    types = np.array([PageType.NOTAB, PageType.L4TAB_PINNED, PageType.XTAB], dtype=np.uint32)
    entries = entries_of(pfns, types)
    assert [hex(entry) for entry in entries] == ["0x0", "0xc000000000000001", "0xf00fffffffffffff"]
    assert np.array_equal(pfns_of(entries), pfns)
    assert np.array_equal(types_of(entries), types)
    assert types_of(entries).dtype == np.uint8


def test_page_types_with_data_are_normal_pages_and_tables():
    assert [kind.name for kind in PageType if has_data(np.array([kind]))[0]] == [
        "NOTAB",
        *(f"L{level}TAB" for level in range(1, 5)),
        *(f"L{level}TAB_PINNED" for level in range(1, 5)),
    ]
    assert PageType.L1TAB | PIN == PageType.L1TAB_PINNED
    assert list(np.flatnonzero(~KNOWN_PAGE_TYPES)) == [5, 6, 7, 8]


def test_records_are_named_for_messages():
    assert record_name(1) == "PAGE_DATA"
    assert record_name(0x99) == "unknown mandatory record 0x99"
    assert record_name(0x8000_0001) == "unknown optional record 0x80000001"


@pytest.fixture
def writer() -> LibxcWriter:
    writer = LibxcWriter(MemorySink(), DomainType.X86_HVM, (4, 17))
    writer.record(StaticDataEnd())
    return writer


@pytest.mark.parametrize(
    ("entries", "pages", "message"),
    [
        ([], [], "without any entry"),
        ([0], [], "0 bytes for the pages of 1 entries"),
        ([0], [bytes(4096), b"x"], "4097 bytes for the pages of 1 entries"),
        ([0xF << 60], [bytes(4096)], "4096 bytes for the pages of 0 entries"),
        ([5 << 60], [], "page type 5"),
        ([3, 3], [bytes(8192)], "a second time"),
    ],
)
def test_the_writer_refuses_what_no_reader_would_take_and_writes_nothing(writer, entries, pages, message):
    before = bytes(writer._sink.data)
    with pytest.raises(BadRecord, match=message):
        writer.page_data(np.array(entries, dtype=np.uint64), pages)
    assert writer._sink.data == before
    writer.page_data(np.array([1], dtype=np.uint64), [bytes(4096)])


def test_the_writer_refuses_a_record_above_its_limit(writer):
    with pytest.raises(BadRecord, match=r"HVM_CONTEXT record of .* bytes, longer than"):
        writer.record(HvmContext(bytes(BODY_MAX[RecordType.HVM_CONTEXT] + 1)))


def test_the_writer_refuses_what_is_no_json(writer):
    with pytest.raises(BadRecord, match="PROVENANCE: not to be put as JSON"):
        writer.record(Provenance({"when": object()}))
