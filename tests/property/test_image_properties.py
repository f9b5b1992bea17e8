"""Images read here and there: the same as reading them from front to back."""

from __future__ import annotations

import contextlib
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import Sent, hvm_image, page, read_naively
from stream_samples import MemorySink, source_of

from saverestore.errors import ImageError
from saverestore.image.access import open_image
from saverestore.image.convert import convert
from saverestore.image.dump import dump
from saverestore.image.index import index_image, types_of_places
from saverestore.image.pagemap import PageMap, chunks_of_both
from saverestore.image.pages import batches_of, pages_from, runs_of
from saverestore.stream.layout import PageType
from saverestore.stream.records import Provenance
from saverestore.stream.survey import survey
from saverestore.transport.opening import decompressed
from saverestore.transport.zstd_sink import ZstdSink

PFN = st.integers(0, 40) | st.integers(32760, 32775) | st.integers(0xFEFF0, 0xFEFFF)
TYPES = [int(kind) for kind in PageType]


@st.composite
def records(draw: st.DrawFn) -> Sent:
    pfns = draw(st.lists(PFN, min_size=1, max_size=12, unique=True))
    types = [draw(st.sampled_from(TYPES)) for _ in pfns]
    fills = [draw(st.integers(0, 5)) for _ in pfns]
    return Sent(
        [
            (pfn, type, page(fill) if type < PageType.BROKEN else None)
            for pfn, type, fill in zip(pfns, types, fills, strict=True)
        ]
    )


@given(st.lists(records(), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_an_index_finds_what_reading_from_front_to_back_finds(sent):
    with tempfile.TemporaryDirectory() as folder:
        path = hvm_image(Path(folder, "a.img"), sent, config=None)
        wanted = read_naively(path)
        with open_image(str(path)) as access:
            index = index_image(access)
            pfns = np.array(sorted(wanted), dtype=np.uint64)
            assert types_of_places(index.pages.get(pfns)).tolist() == [wanted[int(p)][0] for p in pfns]
            assert len(index.pages) == len(wanted)
            found = {}
            for batch in batches_of(access, index.pages):
                found |= {int(p): data.tobytes() for p, data in zip(batch.pfns, batch.pages, strict=True)}
            assert found == {p: data for p, (_, data) in wanted.items() if data is not None}
            for batch in pages_from(access, index.pages, 0, 45):
                for pfn, there, data in zip(batch.pfns, batch.there, batch.pages, strict=True):
                    content = wanted.get(int(pfn), (15, None))[1]
                    assert there == (content is not None)
                    assert data.tobytes() == (content or bytes(4096))


@given(st.lists(records(), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_a_dump_has_each_page_at_its_place_and_zeroes_elsewhere(sent):
    with tempfile.TemporaryDirectory() as folder:
        path = hvm_image(Path(folder, "a.img"), sent, config=None)
        wanted = {p: data for p, (_, data) in read_naively(path).items() if data is not None}
        with open_image(str(path)) as access, Path(folder, "memory").open("wb+") as out:
            nr_pages, size = dump(access, index_image(access), out.fileno(), "memory")
            assert nr_pages == len(wanted)
            assert size == out.seek(0, 2) == (max(wanted) + 1 if wanted else 0) * 4096
            for pfn in {0, 1, 40, 32768, 0xFEFFF} | wanted.keys():
                if pfn * 4096 < size:
                    out.seek(pfn * 4096)
                    assert out.read(4096) == wanted.get(pfn, bytes(4096))


def converted(data: bytes, **options: Any) -> bytes:
    sink = MemorySink()
    with source_of(data) as source:
        convert(source, sink, **options)
    return bytes(sink.data)


@given(
    st.lists(records(), max_size=4),
    st.booleans(),
    st.sampled_from(["xxh3", "sha256"]),
    st.sampled_from([[], [Provenance({"tool": "x"})]]),
)
@settings(max_examples=40, deadline=None)
def test_converting_there_and_back_gives_the_same_bytes(sent, bare, digest, head):
    with tempfile.TemporaryDirectory() as folder:
        path = hvm_image(Path(folder, "a.img"), sent, config=None if bare else {"c_info": {}}, head=head)
        data = path.read_bytes()
    assert converted(data) == data
    with_digest = converted(data, digest=digest)
    with source_of(with_digest) as source:
        assert survey(source).checked_digest is not None
    assert converted(with_digest) == with_digest
    packed = MemorySink()
    with ZstdSink(packed, workers=1) as compressing, source_of(with_digest) as source:
        convert(source, compressing)
        compressing.finish()
    with decompressed(source_of(bytes(packed.data)), workers=1) as source:
        back = MemorySink()
        convert(source, back, digest="none")
    assert bytes(back.data) == data


@given(st.lists(records(), max_size=4))
@settings(max_examples=20, deadline=None)
def test_version_2_becomes_version_3_with_the_same_pages(sent):
    with tempfile.TemporaryDirectory() as folder:
        old = hvm_image(Path(folder, "a.img"), sent, config=None, version=2)
        new = Path(folder, "b.img")
        new.write_bytes(converted(old.read_bytes()))
        assert read_naively(new) == read_naively(old)
        assert new.read_bytes() == hvm_image(Path(folder, "c.img"), sent, config=None).read_bytes()


@given(st.lists(st.lists(st.integers(0, 200000), min_size=1, max_size=30, unique=True), max_size=4))
def test_a_page_map_keeps_the_last_value_of_each_pfn(puts):
    pages, plain = PageMap(), {}
    for number, pfns in enumerate(puts, start=1):
        pages.put(np.array(pfns, dtype=np.uint64), np.full(len(pfns), number, dtype=np.uint64))
        plain |= dict.fromkeys(pfns, number)
    everything = {
        int(p): int(v) for pfns, values in pages.chunks() for p, v in zip(pfns, values, strict=True)
    }
    assert everything == plain
    assert list(everything) == sorted(plain)
    assert len(pages) == len(plain)
    asked = np.array([*plain, 7, 199999], dtype=np.uint64)
    assert pages.get(asked).tolist() == [plain.get(int(p), 0) for p in asked]
    both = [
        tuple(map(int, row)) for part in chunks_of_both(pages, PageMap()) for row in zip(*part, strict=True)
    ]
    assert both == [(p, v, 0) for p, v in sorted(plain.items())]


@given(st.sets(st.integers(0, 60) | st.integers(2**51, 2**51 + 5)))
def test_runs_are_the_pfns_and_have_gaps_between_them(pfns):
    runs = runs_of(np.array(sorted(pfns), dtype=np.uint64)).tolist()
    assert [p for first, last in runs for p in range(first, last + 1)] == sorted(pfns)
    assert all(a[1] + 1 < b[0] for a, b in pairwise(runs))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_image_is_an_image_error_or_an_index(data):
    with tempfile.TemporaryDirectory() as folder:
        path = hvm_image(Path(folder, "a.img"), [Sent([(3, 0, page(1)), (9, 15, None)])], config=None)
        damaged = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
        with open_image(str(path)) as access, contextlib.suppress(ImageError):
            index_image(access)
        with contextlib.suppress(ImageError), source_of(path.read_bytes()) as source:
            convert(source, MemorySink())
