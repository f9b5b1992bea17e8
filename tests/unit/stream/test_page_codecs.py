"""Codecs: what they are called, that each gives back what it was given, and bombs."""

from __future__ import annotations

import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import lz4.frame
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from saverestore.errors import ExitCode, UsageError
from saverestore.kernels.page import PAGE_SIZE
from saverestore.stream.codecs import Codec, CodecUnavailable, Coding, compress, decompress
from saverestore.stream.layout import ByteOrder
from saverestore.stream.page_coding import MOVED_PAGES, PageEncoder
from saverestore.stream.undecodable import Undecodable

COMPRESSORS = pytest.mark.parametrize("codec", [Codec.DEFLATE, Codec.ZSTD, Codec.LZ4])

MAKERS = {
    Codec.DEFLATE: zlib.compress,
    Codec.ZSTD: zstandard.ZstdCompressor().compress,
    Codec.LZ4: lz4.frame.compress,
}


@pytest.mark.parametrize(
    ("text", "coding"),
    [
        ("none", Coding(Codec.NONE)),
        ("xor", Coding(Codec.XOR)),
        ("zstd", Coding(Codec.ZSTD, 1)),
        ("zstd:19", Coding(Codec.ZSTD, 19)),
        ("deflate:9", Coding(Codec.DEFLATE, 9)),
        ("lz4", Coding(Codec.LZ4, 0)),
    ],
)
def test_a_codec_is_told_by_its_name(text, coding):
    assert Coding.parse(text) == coding
    assert Coding.parse(str(coding)) == coding


@pytest.mark.parametrize(
    "text", ["", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:x", "none:1", "xor:1", "zstd:-1"]
)
def test_what_is_no_codec_is_wrong_usage(text):
    with pytest.raises(UsageError):
        Coding.parse(text)


@pytest.mark.parametrize(
    ("codec", "module", "package"), [(Codec.LZ4, "lz4.frame", "lz4"), (Codec.ZSTD, "zstandard", "zstandard")]
)
def test_a_library_that_is_missing_is_named(codec, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"{package} .Debian: python3-{package}"):
        Coding.parse(codec.name.lower())
    with pytest.raises(CodecUnavailable, match=f"{package} .Debian: python3-{package}") as caught:
        decompress(codec, memoryview(b""), 4096)
    assert caught.value.exit_code is ExitCode.IMAGE


@COMPRESSORS
def test_what_is_coded_is_decoded_on_any_thread(codec):
    @given(st.binary(min_size=1, max_size=20), st.integers(1, 3000), st.integers(1, 9))
    @settings(max_examples=30, deadline=None)
    def check(piece: bytes, count: int, level: int) -> None:
        data = piece * count
        assert (
            decompress(codec, memoryview(compress(Coding(codec, level), memoryview(data))), len(data)) == data
        )

    with ThreadPoolExecutor(1) as pool:
        check()
        pool.submit(check).result()


@COMPRESSORS
@pytest.mark.parametrize("wrong", [-1, 1, -4096, 4096])
def test_a_length_that_is_not_the_right_one_is_refused(codec, wrong):
    coded = memoryview(compress(Coding(codec, 1), memoryview(bytes(8192))))
    with pytest.raises(Undecodable):
        decompress(codec, coded, 8192 + wrong)


@COMPRESSORS
def test_a_bomb_takes_no_more_memory_than_it_should_be_long(codec):
    bomb = memoryview(MAKERS[codec](bytes(64 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(Undecodable):
            decompress(codec, bomb, 8192)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@COMPRESSORS
def test_what_follows_the_coded_data_is_refused(codec):
    with pytest.raises(Undecodable):
        decompress(codec, memoryview(MAKERS[codec](bytes(8192)) + b"more"), 8192)


@COMPRESSORS
def test_coded_data_cut_anywhere_are_refused(codec):
    coded = MAKERS[codec](b"abc" * 3000)
    for length in range(len(coded)):
        with pytest.raises(Undecodable):
            decompress(codec, memoryview(coded[:length]), 9000)


def test_a_zstd_frame_that_does_not_tell_its_length_is_refused():
    coded = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8192))
    with pytest.raises(Undecodable, match="declares no length"):
        decompress(Codec.ZSTD, memoryview(coded), 8192)


@COMPRESSORS
@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused(codec, junk):
    with pytest.raises(Undecodable):
        decompress(codec, memoryview(junk), 4096)


@given(st.lists(st.booleans(), max_size=3 * MOVED_PAGES), st.integers(0, 255))
@settings(deadline=None, max_examples=50)
def test_a_record_of_pages_that_may_change_is_the_same_as_of_others(is_zero, seed):
    zero = np.array(is_zero, dtype=bool)
    pages = np.zeros((len(zero), PAGE_SIZE), dtype=np.uint8)
    pages[~zero] = (np.arange(np.count_nonzero(~zero))[:, None] * 7 + seed + np.arange(PAGE_SIZE)) % 251 + 1
    pfns = np.arange(len(zero), dtype=np.uint64)
    types = np.zeros(len(zero), dtype=np.uint8)
    records = [
        PageEncoder(Coding(Codec.ZSTD, 1), ByteOrder.LITTLE).encode(
            pfns, types, pages.copy(), may_change=may_change
        )
        for may_change in (False, True)
    ]
    (options, parts, nr_zero), other = records
    assert (options, nr_zero) == (other[0], other[2])
    assert nr_zero == np.count_nonzero(zero)
    assert b"".join(map(bytes, parts)) == b"".join(map(bytes, other[1]))
