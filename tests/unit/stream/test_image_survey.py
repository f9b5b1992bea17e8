"""The survey of whole and of damaged images."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from stream_samples import MemorySink, PipeLikeSource, StingySource, golden, small_hvm_image, source_of

from saverestore.kernels.xxh3 import page_digests
from saverestore.kernels.zero_pages import zero_pages
from saverestore.stream import DomainType, LibxcWriter, LibxlRecordType, LibxlWriter, PageType, XlHeader
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.layout import entries_of
from saverestore.stream.records import Checkpoint, HvmContext, Provenance, StaticDataEnd, Verify
from saverestore.stream.survey import OTHER_RECORDS, RECORD_NAMES_MAX, Survey, note_trailing_bytes, survey
from saverestore.stream.tally import CHUNK_PFNS, PageStatistics, PfnSet, SameContent

CONFIG = {
    "c_info": {"type": "pvh", "name": "web", "uuid": "1-2"},
    "b_info": {"max_vcpus": 2, "target_memkb": 1024, "max_memkb": 2048},
}


def survey_of(data: bytes, kind: type = StingySource) -> Survey:
    with kind(data) as source:
        return survey(source)


@pytest.mark.parametrize("kind", [StingySource, PipeLikeSource])
def test_an_image_of_xl_is_walked_through_all_layers(kind):
    data = golden("hvm-v2-xl")
    found = survey_of(data, kind)
    assert found.error is None
    assert found.is_whole
    assert found.layers == ["xl", "libxl", "libxc"]
    assert found.config.name == "v1"
    assert found.config.max_vcpus is None
    assert found.total_bytes == len(data)
    assert list(found.records) == [
        "libxl LIBXC_CONTEXT",
        "PAGE_DATA",
        "X86_TSC_INFO",
        "HVM_CONTEXT",
        "HVM_PARAMS",
        "END",
        "libxl EMULATOR_XENSTORE_DATA",
        "libxl EMULATOR_CONTEXT",
        "libxl END",
    ]
    assert found.records["PAGE_DATA"].length_bytes == 8 + 8 + 16 + 4096


@pytest.mark.parametrize(("name", "layers"), [("pv-v3", ["libxc"]), ("hvm-v3", ["libxc"])])
def test_a_bare_libxc_stream_is_walked(name, layers):
    found = survey_of(golden(name))
    assert found.is_whole
    assert found.layers == layers


def test_a_bare_libxl_stream_is_walked():
    data = golden("hvm-v2-xl")
    found = survey_of(data[data.index(b"LibxlFmt") :])
    assert found.is_whole
    assert found.layers == ["libxl", "libxc"]
    assert found.config is None


def test_pages_are_counted_by_type_and_content():
    pages = survey_of(golden("pv-v3")).pages
    assert (pages.nr_entries, pages.nr_data, pages.nr_zero, pages.nr_distinct) == (4, 3, 1, 4)
    assert (pages.lowest_pfn, pages.highest_pfn, pages.nr_sent_again) == (0, 3, 0)
    assert pages.by_type == {PageType.NOTAB: 1, PageType.L1TAB: 1, PageType.L4TAB_PINNED: 1, PageType.XTAB: 1}


def test_provenance_and_digest_are_kept():
    found = survey_of(golden("hvm-v3"))
    assert found.provenance == {"a": 1}
    assert found.digest.digest == bytes.fromhex("6132a92fcc5d0ed830c35b0043680411")
    assert found.checked_digest is DigestAlgorithm.XXH3


def test_pages_sent_again_and_pages_to_compare_are_told_apart():
    sink = MemorySink()
    writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    writer.record(StaticDataEnd())
    entries = entries_of(np.arange(10), np.zeros(10))
    for _ in range(2):
        writer.page_data(entries, [bytes(40960)])
    writer.page_data(entries[:3], [b"x" * 12288])
    writer.record(Verify())
    writer.page_data(entries, [bytes(40960)])
    writer.record(HvmContext(b"c"))
    writer.end()
    pages = survey_of(bytes(sink.data)).pages
    assert (pages.nr_entries, pages.nr_distinct, pages.nr_sent_again) == (23, 10, 13)
    assert (pages.nr_zero, pages.nr_verify_entries) == (20, 10)


def layered(checkpoints: int, *, end_inside: bool = False, checkpoint_end_outside: bool = False) -> bytes:
    sink = MemorySink()
    XlHeader.write(sink, json.dumps(CONFIG).encode())
    outer = LibxlWriter(sink)
    outer.libxc_context()
    inner = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    inner.record(Provenance({"tool": "test"}))
    inner.record(StaticDataEnd())
    for _ in range(checkpoints):
        inner.page_data(entries_of(np.arange(3), np.zeros(3)), [bytes(12288)])
        inner.record(HvmContext(b"c"))
        inner.record(Checkpoint())
        outer.record(LibxlRecordType.EMULATOR_CONTEXT, struct.pack("<II", 2, 0) + b"QEMU")
        if end_inside:
            outer.end()
            return bytes(sink.data)
        outer.record(LibxlRecordType.CHECKPOINT_END)
    inner.record(HvmContext(b"c"))
    inner.end()
    if checkpoint_end_outside:
        outer.record(LibxlRecordType.CHECKPOINT_END)
    outer.end()
    return bytes(sink.data)


def test_checkpoints_alternate_between_the_layers():
    found = survey_of(layered(3))
    assert found.is_whole
    assert found.checkpoints == 3
    assert found.records["libxl CHECKPOINT_END"].count == 3
    assert found.config.memory_kib == 1024
    assert found.config.type == "pvh"


def test_the_end_of_libxl_inside_a_checkpoint_is_refused():
    assert "libxl END record inside a checkpoint" in str(survey_of(layered(1, end_inside=True)).error)


def test_the_end_of_a_checkpoint_outside_one_is_refused():
    error = survey_of(layered(1, checkpoint_end_outside=True)).error
    assert "libxl CHECKPOINT_END record outside a checkpoint" in str(error)


def test_what_came_before_an_error_is_kept():
    data = golden("pv-v3")
    found = survey_of(data[:-100])
    assert not found.is_whole
    assert found.error.offset == len(data) - 100
    assert found.records["PAGE_DATA"].count == 1
    assert found.pages.nr_data == 3
    assert found.domain.type is DomainType.X86_PV


def test_pages_of_a_cut_record_count_as_far_as_they_came():
    data = small_hvm_image(nr_pages=2000)
    found = survey_of(data[: 48 + 16 + 2000 * 8 + 1500 * 4096])
    assert found.pages.nr_entries == 2000
    assert found.pages.nr_data == 1024


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no data: the first header was expected"),
        (b"\x28\xb5\x2f\xfd" + bytes(8), "compressed with zstd"),
        (b"\x1f\x8b" + bytes(8), "compressed with gzip"),
        (b"LinuxGuestRecord", "an image of xend"),
        (b"name = 'web1'", "is not an image of a Xen domain: it is text, and starts with 'name = '"),
        (b"\0something", "is not an image of a Xen domain: it starts with the bytes 00736f6d65746869"),
    ],
)
def test_what_is_no_image_is_told_for_what_it_is(data, message):
    found = survey_of(data)
    assert message in str(found.error)
    assert found.layers == []


@pytest.mark.parametrize("config", [b"not json", b"[]", b"[" * 100_000, b"\xff", b"9" * 5000])
def test_a_broken_configuration_is_noted_and_the_walk_goes_on(config):
    data = golden("hvm-v2-xl")
    sink = MemorySink()
    XlHeader.write(sink, config)
    found = survey_of(bytes(sink.data) + data[data.index(b"LibxlFmt") :])
    assert "the domain's configuration is not JSON of libxl" in str(found.error)
    assert found.records["libxl END"].count == 1


def test_a_configuration_with_unusual_values_is_summarised_as_far_as_it_goes():
    sink = MemorySink()
    XlHeader.write(sink, b'{"c_info": 7, "b_info": {"max_vcpus": "many"}}')
    data = golden("hvm-v2-xl")
    found = survey_of(bytes(sink.data) + data[data.index(b"LibxlFmt") :])
    assert found.is_whole
    assert found.config.name is None
    assert found.config.max_vcpus is None


def test_bytes_behind_the_image_make_it_a_damaged_one():
    with source_of(golden("hvm-v3") + b"junk") as source:
        found = survey(source)
        assert found.is_whole
        note_trailing_bytes(found, source.skip_to_end())
    assert found.trailing_bytes == 4
    assert "4 bytes follow the end of the image" in str(found.error)
    assert found.error.offset == len(golden("hvm-v3"))


def test_no_buffer_is_longer_than_a_batch_however_long_the_record():
    with StingySource(small_hvm_image(nr_pages=5000)) as source:
        found = survey(source)
        assert found.is_whole
        assert source.longest_request == 1024 * 4096
    assert found.pages.nr_zero == 2500


def test_progress_is_told_in_rising_offsets():
    offsets: list[int] = []
    data = small_hvm_image(nr_pages=3000)
    with source_of(data) as source:
        survey(source, offsets.append)
    assert len(offsets) == 3
    assert offsets == sorted(offsets)
    assert offsets[-1] < len(data)


def test_any_number_of_kinds_of_optional_records_is_listed_in_bounded_space():
    data = golden("pv-v3")
    records = b"".join(struct.pack("<II", 0x9000_0000 + i, 0) for i in range(300))
    found = survey_of(data[:40] + records + data[40:])
    assert found.is_whole
    assert len(found.records) == RECORD_NAMES_MAX + 1
    assert found.records[OTHER_RECORDS].count > 200


def test_zero_pages_are_found_wherever_their_one_byte_is():
    pages = np.zeros((6, 4096), dtype=np.uint8)
    pages[1, 0] = pages[2, 4095] = pages[3, 2048] = pages[4, 77] = 1
    assert zero_pages(pages.view(np.uint64)).sum() == 2
    assert zero_pages(pages[:1].view(np.uint64)).sum() == 1
    assert zero_pages(pages[1:5].view(np.uint64)).sum() == 0


def test_pfns_far_apart_are_told_apart_in_bounded_memory():
    pfns = PfnSet(chunks_max=3)
    assert pfns.add(np.array([5, 0, CHUNK_PFNS, (1 << 52) - 1], dtype=np.uint64)) == 0
    assert pfns.exact
    assert pfns.add(np.array([CHUNK_PFNS - 1, 5, (1 << 52) - 1], dtype=np.uint64)) == 2
    assert pfns.size == 5
    assert pfns.add(np.array([1 << 40], dtype=np.uint64)) == 0
    assert not pfns.exact
    assert pfns.size == 5


def test_statistics_of_nothing_are_empty():
    pages = PageStatistics()
    assert pages.nr_distinct == 0
    assert pages.distinct_is_exact
    assert pages.lowest_pfn is None


def test_pages_with_the_content_of_an_earlier_one_are_counted():
    pages = np.zeros((60, 512), dtype=np.uint64)
    pages[:30, 5] = np.arange(30) // 3 + 1  # ten contents, thrice each; the rest is zero
    for most, exact in ((1 << 21, True), (4, False)):
        counted = PageStatistics(page_digests, SameContent(digests_max=most))
        for start in range(0, 60, 20):
            counted.add_pages(pages[start : start + 20])
        assert (counted.nr_zero, counted.duplicate_is_exact) == (30, exact)
        assert counted.nr_duplicate == 20 if exact else counted.nr_duplicate <= 20
    assert PageStatistics().nr_duplicate is None
