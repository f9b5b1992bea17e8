"""The image's digest: what it covers, what it says when it does not hold, and that nothing slips past it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import xxhash
from stream_samples import MemorySink, PipeLikeSource, StingySource, source_of

from saverestore.errors import ErrorName, ExitCode, ImageError, TransportError, UsageError
from saverestore.stream import DomainType, LibxcReader, LibxcWriter, LibxlWriter, PageData, XlHeader
from saverestore.stream.digest_algorithms import DigestAlgorithm, algorithm_for_writing
from saverestore.stream.digest_written import WrittenDigest
from saverestore.stream.errors import BadRecord
from saverestore.stream.header_digest import HeaderDigestSink, integrity_fields
from saverestore.stream.layout import entries_of
from saverestore.stream.libxl import EmulatorId, EmulatorState, LibxlRecordType
from saverestore.stream.records import HvmContext, ImageDigest, Provenance, StaticDataEnd
from saverestore.stream.survey import survey
from saverestore.stream.trailer import TrailerBuffer, TrailerSource, check_trailer

PAGES = np.random.default_rng(3).integers(0, 256, (3, 4096), dtype=np.uint8)
XXH3, SHA256, BLAKE3 = DigestAlgorithm.XXH3, DigestAlgorithm.SHA256, DigestAlgorithm.BLAKE3


def write_body(writer, *, pages=PAGES):
    writer.record(StaticDataEnd())
    writer.page_data(entries_of(np.arange(len(pages)), np.zeros(len(pages))), [pages])
    writer.record(HvmContext(b"context"))


def image(algorithm=XXH3, *, announced=True, pages=PAGES):
    sink = MemorySink()
    with WrittenDigest(algorithm) as digest:
        writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17), digest=digest)
        if announced:
            writer.record(Provenance({"integrity": integrity_fields(algorithm, None)}))
        write_body(writer, pages=pages)
        writer.end()
    return bytes(sink.data)


def with_digest(record, *, provenance=None):
    """An image with this digest record, right or wrong."""
    sink = MemorySink()
    writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17))
    if provenance is not None:
        writer.record(Provenance(provenance))
    write_body(writer)
    if record is not None:
        writer.record(record)
    writer.end()
    return bytes(sink.data)


def read_all(data, kind=source_of, **options):
    with kind(data) as source:
        reader = LibxcReader(source, **options)
        while not reader.ended:
            record = reader.next()
            if isinstance(record, PageData) and record.nr_data == 3:
                views = [bytearray(4096), bytearray(8192)]
                reader.read_pages(views)
                assert b"".join(views) == PAGES.tobytes()
    return reader


@pytest.mark.parametrize("algorithm", DigestAlgorithm)
@pytest.mark.parametrize("kind", [source_of, PipeLikeSource])
def test_what_was_written_is_found_to_hold(algorithm, kind):
    if algorithm is BLAKE3:
        pytest.importorskip("blake3")
    assert read_all(image(algorithm), kind).checked_digest is algorithm


def test_it_covers_everything_from_the_image_header_to_the_record_before_it():
    data = image()
    begin = len(data) - 8 - 16 - 16  # END, then header and body of IMAGE_DIGEST
    assert data[begin : begin + 4] == bytes.fromhex("01500080")
    assert data[-24:-8] == xxhash.xxh3_128_digest(data[:begin])


def test_large_writes_are_digested_the_same_on_a_thread_of_their_own():
    pages = np.random.default_rng(4).integers(0, 256, (500, 4096), dtype=np.uint8)
    data = image(SHA256, pages=pages)
    assert data[-40:-8] == hashlib.sha256(data[: len(data) - 8 - 32 - 16]).digest()
    assert [one.name for one in threading.enumerate() if one.name.startswith("digest")] == []


def test_pages_that_are_skipped_are_digested_all_the_same():
    with source_of(image()) as source:
        reader = LibxcReader(source)
        while not reader.ended:
            reader.next()
    assert reader.checked_digest is XXH3


def test_who_only_looks_at_records_need_not_read_the_pages():
    data = with_digest(ImageDigest(1, bytes(16)), provenance={"integrity": {"digest": "xxh3"}})
    with StingySource(data) as source:
        reader = LibxcReader(source, check_digest=False)
        while not reader.ended:
            reader.next()
        assert source.longest_request < 4096
    assert reader.checked_digest is None


def test_two_announcements_must_agree():
    data = with_digest(None, provenance={"integrity": {"digest": "xxh3"}})
    more = Provenance({"integrity": {"digest": "sha256"}}).pack()
    record = struct.pack("<II", 0x80005002, len(more)) + more + bytes(-len(more) % 8)
    at = data.index(b"\x10\0\0\0\0\0\0\0")  # STATIC_DATA_END
    with pytest.raises(ImageError, match="announces two digests"):
        read_all(data[:at] + record + data[at:])


def test_an_image_without_one_is_read_unless_it_is_required():
    data = with_digest(None)
    assert read_all(data).checked_digest is None
    with pytest.raises(ImageError, match="has no digest, as was required"):
        read_all(data, require_digest=True)


def test_one_that_does_not_hold_names_both_and_no_place():
    data = with_digest(ImageDigest(1, bytes(16)))
    with pytest.raises(
        ImageError, match=r"image is damaged: its XXH3-128 digest is 0{32}, that of"
    ) as caught:
        read_all(data)
    assert caught.value.offset is None  # the changed byte may be anywhere
    assert caught.value.exit_code == ExitCode.IMAGE


def test_one_that_was_announced_must_come():
    with pytest.raises(ImageError, match="says that it has a XXH3-128 digest, but none came"):
        read_all(with_digest(None, provenance={"integrity": {"digest": "xxh3"}}))


def test_one_of_another_algorithm_than_announced_is_refused():
    with pytest.raises(ImageError, match="says that it has a SHA-256 digest, but this one is XXH3-128"):
        read_all(with_digest(ImageDigest(1, bytes(16)), provenance={"integrity": {"digest": "sha256"}}))


@pytest.mark.parametrize(
    ("record", "provenance"),
    [
        (ImageDigest(9, b"1234"), None),
        (None, {"integrity": {"digest": "md5"}}),
        (None, {"integrity": {"digest": []}}),
    ],
)
def test_one_that_this_version_does_not_know_is_refused(record, provenance):
    with pytest.raises(ImageError, match="needs a newer version"):
        read_all(with_digest(record, provenance=provenance))


@pytest.mark.parametrize("fields", [None, 5, [], {}, {"before": 3}])
def test_other_things_in_provenance_are_no_announcement(fields):
    assert read_all(with_digest(None, provenance={"integrity": fields})).checked_digest is None


def test_one_that_nobody_announced_is_compared_in_a_second_pass_over_a_file():
    data = image(SHA256, announced=False)
    assert read_all(data).checked_digest is SHA256
    changed = data.replace(PAGES[1].tobytes(), PAGES[0].tobytes())
    assert "SHA-256 digest is" in str(survey(source_of(changed)).error)
    with pytest.raises(ImageError, match=r"cannot be checked in a stream.*use an uncompressed file"):
        read_all(data, PipeLikeSource)


def test_without_its_package_blake3_is_refused_by_name_for_reading_and_for_writing(monkeypatch):
    data = with_digest(ImageDigest(3, bytes(32)), provenance={"integrity": {"digest": "blake3"}})
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(ImageError, match=r"python3-blake3 \(pip: blake3\)"):
        read_all(data)
    with pytest.raises(UsageError, match=r"python3-blake3 \(pip: blake3\); no changes were made"):
        algorithm_for_writing("blake3")
    with pytest.raises(UsageError, match="no digest is called 'md5'"):
        algorithm_for_writing("md5")
    assert algorithm_for_writing("none") is None
    assert algorithm_for_writing("sha256") is SHA256


def test_a_failing_sink_fails_the_write_and_the_buffers_are_free():
    class Full(MemorySink):
        def writev(self, buffers):
            if sum(memoryview(buffer).nbytes for buffer in buffers) > 1 << 20:
                raise TransportError("full")
            super().writev(buffers)

    pages = bytearray(2 << 20)
    with WrittenDigest(XXH3) as digest, pytest.raises(TransportError):
        writer = LibxcWriter(Full(), DomainType.X86_HVM, (4, 17), digest=digest)
        writer.record(StaticDataEnd())
        writer.page_data(entries_of(np.arange(512), np.zeros(512)), [pages])
    pages.clear()  # a BufferError if anybody still had it


STATE = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"QEVM").pack()


def layered_image(*, tells_of_tail=True):
    """As pysave writes it: every byte is covered."""
    sink = MemorySink()
    outside = HeaderDigestSink(sink)
    XlHeader.write(outside, json.dumps({"c_info": {"name": "web1"}}).encode())
    outer = LibxlWriter(outside)
    outer.libxc_context()
    behind = TrailerBuffer("image")
    outer.continue_in(behind)
    outer.record(LibxlRecordType.EMULATOR_CONTEXT, STATE)
    outer.end()
    with WrittenDigest(XXH3) as digest:
        writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17), digest=digest)
        writer.record(Provenance({"tool": "t", "integrity": integrity_fields(XXH3, outside.digest())}))
        write_body(writer)
        writer.end(behind.following() if tells_of_tail else None)
    behind.write_to(sink)
    return bytes(sink.data)


def test_a_change_behind_the_stream_is_found_and_told_with_its_range():
    data = layered_image()
    assert survey(source_of(data)).is_whole
    behind = data.index(STATE) - 8
    error = str(survey(source_of(data.replace(b"QEVM", b"QEMV"))).error)
    assert (
        f"damaged behind the libxc stream, from byte {behind:#x} to {len(data):#x}: the XXH3-128 digest"
        in error
    )
    state = data[behind:-8]
    for changed in (data.replace(state, b""), data.replace(state, state * 2)):
        error = str(survey(source_of(changed)).error)
        assert f"{len(changed) - behind} bytes, of which there should be {len(data) - behind}" in error


def test_an_older_image_that_does_not_tell_of_what_follows_is_read_all_the_same():
    data = layered_image(tells_of_tail=False)
    assert survey(source_of(data)).checked_digest is XXH3
    assert survey(source_of(data.replace(b"QEVM", b"QEMV"))).checked_digest is XXH3


def test_what_follows_can_be_looked_at_before_it_is_read():
    data = layered_image()
    end = data.index(STATE) - 8
    for changed, holds in ((data, True), (data + b"more", True), (data.replace(b"QEVM", b"QEMV"), False)):
        with source_of(changed) as source:
            source.skip(data.index(b"\xff" * 8))
            reader = LibxcReader(source)
            while not reader.ended:
                reader.next()
            with nullcontext() if holds else pytest.raises(ImageError, match="behind the libxc stream"):
                check_trailer(source, reader.following)
            assert source.offset == end
            assert source.read(8) == changed[end : end + 8]


def test_a_change_before_the_image_header_is_found():
    data = layered_image()
    assert survey(source_of(data)).is_whole
    changed = data.replace(b"web1", b"web2", 1)
    assert "damaged before the image header" in str(survey(source_of(changed)).error)


def test_what_came_before_is_nobodys_business_when_the_stream_is_read_alone():
    data = layered_image()
    begin = data.index(b"\xff" * 8)
    with source_of(data[begin : data.index(STATE) - 8]) as source:
        assert survey(source).is_whole


def test_digests_hold_for_images_read_from_where_a_descriptor_stands():
    data = image(SHA256, announced=False)
    fd = os.memfd_create("image")
    os.write(fd, b"before" + data)
    os.lseek(fd, 6, os.SEEK_SET)
    from saverestore.transport import FdSource

    with FdSource(fd, "image") as source:
        reader = LibxcReader(source)
        while not reader.ended:
            reader.next()
    assert reader.checked_digest is SHA256


@pytest.mark.parametrize(
    ("data", "name"), [(b"as tolD", ErrorName.DIGEST_MISMATCH), (b"as tol", ErrorName.IMAGE_DAMAGED)]
)
def test_what_is_behind_the_stream_and_does_not_hold_is_named_as_in_the_stream(data, name):
    kept = TrailerBuffer("a.img")
    kept.write(b"as told")
    source = TrailerSource(source_of(data), kept.following())
    source.readinto(bytearray(len(data)))
    with pytest.raises(BadRecord) as caught:
        source.check_end()
    assert caught.value.name is name
