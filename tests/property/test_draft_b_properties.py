"""Properties of draft-b: round trips in either byte order, and damage, which is found in the record that has it."""

from __future__ import annotations

import tracemalloc
import zlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stream_samples import MemorySink, PipeLikeSource, StingySource, golden, source_of

from saverestore.errors import ImageError
from saverestore.stream import DomainType, LibxcReader, LibxcWriter, PageData, PageType
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.framing import CODEC_SHIFT, DraftBFraming, RecordOption
from saverestore.stream.layout import PAGE_DATA_HEADER, ByteOrder, entries_of, has_data
from saverestore.stream.page_coding import LENGTHS
from saverestore.stream.records import (
    HvmContext,
    HvmParams,
    Provenance,
    SharedInfo,
    StaticDataEnd,
    X86PvInfo,
    X86PvP2mFrames,
    X86PvVcpuBasic,
    X86TscInfo,
)
from saverestore.stream.survey import survey
from saverestore.stream.versions import VersionCache
from saverestore.transport import EndOfStream

NAMES = ("pv-draft-b", "hvm-draft-b-be", "hvm-draft-b-codecs")
CODECS = pytest.mark.parametrize("codec", Codec)
ORDERS = pytest.mark.parametrize("order", ByteOrder)
HEADERS_BYTES = 40
RECORD_HEADER_BYTES = 16

PLAIN_TYPES = st.sampled_from([PageType.NOTAB] * 6 + [PageType.XTAB, PageType.L1TAB, PageType.XALLOC])


@st.composite
def rounds(draw: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """PAGE_DATA records as (entries, pages): few pfns, which come again a little changed, as in live rounds."""
    seed = draw(st.integers(0, 2**32))
    random = np.random.default_rng(seed)
    memory = random.integers(0, 4, (6, 4096), dtype=np.uint8)
    memory[draw(st.lists(st.integers(0, 5), min_size=1))] = 0 if draw(st.booleans()) else memory[0]
    found = []
    for _ in range(draw(st.integers(1, 5))):
        pfns = np.array(draw(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True)))
        types = np.array(draw(st.lists(PLAIN_TYPES, min_size=len(pfns), max_size=len(pfns))))
        for pfn in draw(st.lists(st.integers(0, 5), max_size=4)):
            at = draw(st.integers(0, 4095))
            memory[pfn, at : at + draw(st.integers(1, 600))] = draw(st.integers(0, 255))
        if draw(st.booleans()):
            memory[draw(st.integers(0, 5))] = 0
        found.append((entries_of(pfns, types), memory[pfns[has_data(types)]]))
    return found


def written(
    records: list,
    codec: Codec,
    order: ByteOrder,
    cache_pages: int = 100,
    domain: DomainType = DomainType.X86_HVM,
) -> bytes:
    sink = MemorySink()
    coding = Coding(codec, 1 if codec in (Codec.DEFLATE, Codec.ZSTD) else 0)
    versions = VersionCache(cache_pages * 4096)
    writer = LibxcWriter(sink, domain, (4, 17), 1, order=order, coding=coding, versions=versions)
    for record in records:
        if isinstance(record, tuple):
            writer.page_data(record[0], [record[1].reshape(-1).data])
        else:
            writer.record(record)
    writer.end()
    return bytes(sink.data)


HVM_TAIL = [X86TscInfo(0, 1, 2, 3), HvmParams(((1, 2),)), HvmContext(b"context")]
HVM_HEAD = [Provenance({"a": 1}), StaticDataEnd()]


@CODECS
@ORDERS
def test_pages_sent_again_and_again_are_read_over_what_they_were(codec, order):
    @given(
        rounds(),
        st.integers(0, 8),
        st.sampled_from([StingySource, PipeLikeSource]),
        st.sampled_from([1000, 1 << 20]),
    )
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(found: list, cache_pages: int, kind: type[StingySource], most: int) -> None:
        image = written([*HVM_HEAD, *found, *HVM_TAIL], codec, order, cache_pages)
        domain = np.full((6, 4096), 0xEE, dtype=np.uint8)
        with kind(image + b"next", most) as source:
            reader = LibxcReader(source)
            assert reader.image.order is order
            wanted = iter(found)
            while not reader.ended:
                record = reader.next()
                if not isinstance(record, PageData):
                    continue
                entries, pages = next(wanted)
                assert np.array_equal(record.entries, entries)
                pfns = record.pfns[has_data(record.types)].astype(int)
                domain[record.pfns[record.types == PageType.XTAB].astype(int)] = 0xDD
                # Some at once, then the rest, each into buffers that are cut anywhere.
                some = len(pfns) // 2
                current = domain[pfns]
                for part in (current[:some], current[some:]):
                    flat = memoryview(part.reshape(-1).data)
                    cut = len(flat) // 3
                    reader.read_some_pages([flat[:cut], flat[cut:]])
                assert np.array_equal(current, pages)
                domain[pfns] = current
            assert source.offset == len(image)
            assert source.read(4) == b"next"

    check()


@pytest.mark.parametrize("codec", [one for one in Codec if one is not Codec.XOR])
@ORDERS
@given(found=rounds(), at_first=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_pages_that_are_carried_are_read_in_one_piece_and_the_others_are_told(codec, order, found, at_first):
    image = written([*HVM_HEAD, *found, *HVM_TAIL], codec, order)
    wanted = iter(found)
    with source_of(image) as source:
        reader = LibxcReader(source)
        while not reader.ended:
            if not isinstance(reader.next(), PageData):
                continue
            _, pages = next(wanted)
            buffer = np.full((7, 4096), 0xEE, dtype=np.uint8)
            nr_first = min(at_first, reader.nr_pages_left)
            reader.read_some_pages([buffer[:nr_first].reshape(-1).data])
            assert np.array_equal(buffer[:nr_first], pages[:nr_first])
            buffer[:], pages = 0xEE, pages[nr_first:]
            zero = reader.read_carried(buffer.reshape(-1).data)
            nr_carried = np.count_nonzero(~zero)
            assert np.array_equal(buffer[:nr_carried], pages[~zero])
            assert not pages[zero].any()
            assert (buffer[nr_carried:] == 0xEE).all()
            assert reader.nr_pages_left == 0
    assert next(wanted, None) is None


def test_pages_that_are_changes_to_others_and_buffers_too_small_are_refused():
    pages = np.ones((3, 4096), dtype=np.uint8)
    record = entries_of(np.arange(3), np.zeros(3)), pages
    with source_of(written([*HVM_HEAD, record, record, *HVM_TAIL], Codec.XOR, ByteOrder.LITTLE)) as source:
        reader = LibxcReader(source)
        last = [one for _ in range(4) if isinstance(one := reader.next(), PageData)][-1]
        assert last.codec is Codec.XOR
        for size in (3, 2):
            with pytest.raises(ValueError):
                reader.read_carried(bytearray(size * 4096))


def test_zero_pages_take_no_room():
    pages = np.zeros((1000, 4096), dtype=np.uint8)
    entries = entries_of(np.arange(1000), np.zeros(1000))
    for codec in Codec:
        assert len(written([*HVM_HEAD, (entries, pages), *HVM_TAIL], codec, ByteOrder.LITTLE)) < 9000


def test_what_gets_no_smaller_is_left_as_it_is():
    pages = np.random.default_rng(1).integers(0, 256, (50, 4096), dtype=np.uint8)
    records = [*HVM_HEAD, (entries_of(np.arange(50), np.zeros(50)), pages), *HVM_TAIL]
    plain = written(records, Codec.NONE, ByteOrder.LITTLE)
    for codec in Codec:
        assert written(records, codec, ByteOrder.LITTLE) == plain


def test_page_tables_are_never_deltas_and_what_they_were_is_forgotten():
    page = np.full((1, 4096), 7, dtype=np.uint8)
    head = [X86PvInfo(8, 4), StaticDataEnd(), X86PvP2mFrames(0, 3, np.array([2], dtype=np.uint64))]
    tail = [SharedInfo(bytes(4096)), X86PvVcpuBasic(0, b"x")]
    sent = [PageType.NOTAB, PageType.L1TAB, PageType.L1TAB, PageType.NOTAB, PageType.NOTAB]
    records = [(entries_of(np.array([1]), np.array([kind])), page) for kind in sent]
    image = written([*head, *records, *tail], Codec.XOR, ByteOrder.LITTLE, domain=DomainType.X86_PV)
    with source_of(image) as source:
        reader, codecs = LibxcReader(source), []
        while not reader.ended:
            record = reader.next()
            if isinstance(record, PageData):
                codecs.append(record.codec)
    assert codecs == [Codec.NONE] * 4 + [Codec.XOR]


# ---- damage --------------------------------------------------------------------------------------


def records_of(image: bytes) -> list[int]:
    """Where each record begins, and where the image ends."""
    with source_of(image) as source:
        reader, offsets = LibxcReader(source), []
        while not reader.ended:
            offsets.append(source.offset)
            reader.next()
            reader.skip_pages()
        return [*offsets, source.offset]


def interesting_places(image: bytes) -> list[int]:
    """Offsets where not the whole neighbourhood is one byte repeated."""
    return [i for i in range(len(image)) if len(set(image[max(0, i - 10) : i + 11])) > 1]


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("flip", [0x01, 0x10, 0x80, 0xFF])
def test_any_byte_changed_is_found_in_its_record(name, flip):
    image = bytearray(golden(name))
    bounds = records_of(bytes(image))
    for begin, end in pairwise(bounds):
        for place in interesting_places(bytes(image[begin:end])):
            image[begin + place] ^= flip
            with StingySource(bytes(image)) as source:
                error = survey(source).error
            image[begin + place] ^= flip
            assert error is not None, f"byte {place} of the record at {begin}"
            if isinstance(error, EndOfStream):
                # Only a length says how much there should have been.
                assert 4 <= place < 8
                assert error.offset == len(image)
            else:
                assert error.offset == begin, str(error)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_cut_anywhere_is_short_with_the_place_named(name):
    image = golden(name)
    for length in interesting_places(image):
        for kind in (StingySource, PipeLikeSource):
            with kind(image[:length]) as source:
                error = survey(source).error
            assert isinstance(error, EndOfStream)
            assert error.offset == length


@CODECS
@ORDERS
def test_a_changed_byte_of_a_page_is_found_before_the_page_is_taken_for_good(codec, order):
    @given(rounds(), st.data())
    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def check(found: list, data: Any) -> None:
        image = bytearray(written([*HVM_HEAD, *found, *HVM_TAIL], codec, order))
        bounds = records_of(bytes(image))
        place = data.draw(st.integers(bounds[0], len(image) - 1))
        image[place] ^= data.draw(st.integers(1, 255))
        begin = max(offset for offset in bounds if offset <= place)
        with StingySource(bytes(image)) as source:
            error = survey(source).error
        assert error is not None
        if not isinstance(error, EndOfStream):
            assert error.offset == begin

    check()


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_few_changes_are_an_image_error(data):
    image = bytearray(golden(data.draw(st.sampled_from(NAMES))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(image) - 1))
        change = data.draw(st.binary(min_size=0, max_size=9))
        image[place : place + data.draw(st.integers(0, 9))] = change
    with PipeLikeSource(bytes(image)) as source:
        survey(source)


# ---- claims --------------------------------------------------------------------------------------


def page_data(order: ByteOrder, nr: int, options: int, rest: list[bytes]) -> bytes:
    """An image up to a PAGE_DATA record with so many entries, whose checksum is right."""
    head = written([*HVM_HEAD, *HVM_TAIL], Codec.NONE, order)[:HEADERS_BYTES]
    framing = DraftBFraming(order)
    entries = entries_of(np.arange(nr), np.zeros(nr)).astype(order.entry_dtype).tobytes()
    body = [PAGE_DATA_HEADER.pack(nr, 0, order=order), entries, *rest]
    return b"".join(
        [head, *framing.frame(StaticDataEnd.type, []), *framing.frame(PageData.type, body, options)]
    )


BOMB = zlib.compress(bytes(64 << 20))


@ORDERS
@pytest.mark.parametrize(
    ("nr", "options", "rest", "message"),
    [
        (1, 0x20, [b""], "coded pages in 0 bytes"),
        (1, 0x20, [(8192, 9), b"x" * 9], "8192 bytes of pages when decoded, but its entries have 4096"),
        (1, 0x20, [(4096, 2**63), b"x" * 9], "coded bytes for 4096"),
        (1, 0x20, [(4096, 10), b"x" * 9], "10 coded bytes for 4096, of which 9"),
        (1, 0x20, [(4096, 4096), b"x" * 4096], "4096 coded bytes for 4096"),
        (1, 0x20, [(4096, 9), b"x" * 9], "pages coded by deflate: not to be decoded"),
        (32, 0x20, [(32 * 4096, len(BOMB)), BOMB], "deflate: more than the 131072 bytes"),
        (1, 0x50, [(4096, 9), b"x" * 9], "codec 5, which is not known"),
        (1, 0xF0, [(4096, 9), b"x" * 9], "codec 15, which is not known"),
        (1, 0x10, [(4096, 9), b"x" * 9], "pages coded by xor: the delta of page 0 of 1"),
        (1, 0x04, [b"\0" * 7], "7 bytes where a map of 1 pages takes 8"),
        (1, 0x04, [b"\2" + b"\0" * 7], "map of zero pages is longer"),
        (2, 0x04, [b"\2" + b"\0" * 7, b"x" * 4095], "4095 bytes for its pages, which are 4096"),
        (1, 0x24, [b"\1" + b"\0" * 7, (0, 0)], "0 coded bytes for 0"),
        (1, 0x08, [b"x" * 4096], "options 0x000b, of which 0x0008 mean nothing"),
        (1, 0x0100, [b"x" * 4096], "of which 0x0100 mean nothing"),
        (32769, 0x20, [(32769 * 4096, 9), b"x" * 9], "32769 pages, more than"),
    ],
)
def test_a_claim_that_the_entries_do_not_bear_out_is_refused(order, nr, options, rest, message):
    parts = [part if isinstance(part, bytes) else LENGTHS.pack(*part, order=order) for part in rest]
    image = page_data(order, nr, options, parts)
    with source_of(image) as source:
        tracemalloc.start()
        try:
            error = survey(source).error
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert isinstance(error, ImageError)
    assert message in str(error)
    assert error.offset == HEADERS_BYTES + RECORD_HEADER_BYTES + 8
    assert peak < 12 << 20  # the survey's own buffer is 4 MiB


def test_a_page_table_as_a_delta_is_refused():
    order = ByteOrder.LITTLE
    image = bytearray(golden("pv-draft-b"))
    bounds = records_of(bytes(image))
    begin, end = bounds[4], bounds[5]
    body = bytes(image[begin + RECORD_HEADER_BYTES : end - 8])[:4164]
    entry = bytearray(body)
    entry[8 + 7] = 0x10  # pfn 0 becomes a page table
    options = Codec.XOR << CODEC_SHIFT
    image[begin:end] = b"".join(DraftBFraming(order).frame(PageData.type, [bytes(entry)], options))
    with source_of(bytes(image)) as source:
        error = survey(source).error
    assert error is not None
    assert "a page table as a delta" in str(error)
    assert error.offset == begin


@ORDERS
@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (8, 2, "a checksum over the header, but none at all"),
        (8, 4 | 3, "mean nothing here"),
        (8, 0x33, "mean nothing here"),
        (10, 1, "reserved bytes of its header"),
        (12, 1, "reserved bytes of its header"),
        (15, 1, "reserved bytes of its header"),
        (16, 1, "its bytes have the CRC-32"),
        (20, 1, "reserved bytes of its footer"),
        (8, 0, "claims to have none"),
    ],
)
def test_a_record_header_or_footer_that_is_wrong_is_named(order, at, value, message):
    image = bytearray(written([*HVM_HEAD[1:], *HVM_TAIL], Codec.NONE, order))
    low = {8: 9, 10: 11}.get(at, at) if order is ByteOrder.BIG else at
    image[HEADERS_BYTES + low] = value
    with source_of(bytes(image)) as source:
        error = survey(source).error
    assert error is not None
    assert message in str(error)
    assert error.offset == HEADERS_BYTES


@ORDERS
def test_a_checksum_may_leave_the_header_out_or_be_absent(order):
    head = written([*HVM_HEAD, *HVM_TAIL], Codec.NONE, order)[:HEADERS_BYTES]
    body = b"context!"
    framing = DraftBFraming(order)
    without = framing._pack_header(HvmContext.type, len(body), 0) + body + bytes(8)
    crc = zlib.crc32(body).to_bytes(4, "little" if order is ByteOrder.LITTLE else "big")
    over_body = (
        framing._pack_header(HvmContext.type, len(body), RecordOption.CHECKSUM) + body + crc + bytes(4)
    )
    start = b"".join(framing.frame(StaticDataEnd.type, []))
    end = b"".join(framing.frame(0, []))
    with source_of(head + start + without + over_body + end) as source:
        found = survey(source)
    assert found.is_whole, found.error
