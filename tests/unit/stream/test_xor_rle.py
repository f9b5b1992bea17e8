"""Remus's page deltas: the bytes of the compiled kernels and of their twin, and deltas that are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saverestore.stream import xor_rle
from saverestore.stream.layout import ByteOrder
from saverestore.stream.undecodable import Undecodable

LITTLE = ByteOrder.LITTLE

BOTH = pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(
            True,
            marks=pytest.mark.skipif(
                xor_rle.compiled() is None, reason="saverestore._kernels is not compiled"
            ),
        ),
        False,
    ],
)


@pytest.fixture
def _way(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(xor_rle, "compiled", lambda: None)


def page_of(*words: int) -> np.ndarray:
    page = np.zeros((1, 1024), dtype="<u4")
    page[0, : len(words)] = words
    return page.view(np.uint8)


def delta(new: np.ndarray, old: np.ndarray, order: ByteOrder = LITTLE) -> bytes | None:
    coded = xor_rle.encode(new, old, np.ones(len(new), dtype=bool), order)
    return None if coded is None else bytes(coded)


def skips(words: int) -> bytes:
    return b"".join(bytes([0x80 | min(127, words - at)]) for at in range(0, words, 127))


@BOTH
@pytest.mark.usefixtures("_way")
def test_a_page_that_did_not_change_is_one_byte():
    assert delta(page_of(7), page_of(7)) == b"\1\0\0\0" + b"\0"


@BOTH
@pytest.mark.usefixtures("_way")
def test_a_changed_word_is_a_run_of_one_between_what_is_skipped():
    runs = b"\x81\x01\x09\0\0\0" + skips(1022)
    assert delta(page_of(7, 9), page_of(7, 8)) == len(runs).to_bytes(4, "little") + runs


@BOTH
@pytest.mark.usefixtures("_way")
def test_a_run_is_cut_after_127_words():
    runs = b"\x7f" + b"\1\0\0\0" * 127 + b"\x03" + b"\1\0\0\0" * 3 + skips(894)
    assert delta(page_of(*[1] * 130), page_of()) == len(runs).to_bytes(4, "little") + runs


@BOTH
@pytest.mark.usefixtures("_way")
def test_lengths_are_in_the_order_of_the_image():
    assert delta(page_of(7), page_of(7), ByteOrder.BIG) == b"\0\0\0\1" + b"\0"


@BOTH
@pytest.mark.usefixtures("_way")
def test_a_page_whose_runs_are_not_shorter_is_carried_whole():
    pages = np.concatenate([page_of(*[1] * 1024), page_of(7)])
    old = np.concatenate([page_of(), page_of(7)])
    assert delta(pages, old) == b"\0\x10\0\0" + b"\1\0\0\0" * 1024 + b"\1\0\0\0" + b"\0"


@BOTH
@pytest.mark.usefixtures("_way")
def test_pages_without_a_version_before_are_carried_whole():
    pages = np.concatenate([page_of(5), page_of(7)])
    coded = xor_rle.encode(pages, page_of(7), np.array([False, True]), LITTLE)
    assert coded is not None
    assert bytes(coded) == b"\0\x10\0\0" + page_of(5).tobytes() + b"\1\0\0\0" + b"\0"


@BOTH
@pytest.mark.usefixtures("_way")
def test_what_gets_no_shorter_is_not_coded():
    assert delta(page_of(*[1] * 1024), page_of()) is None
    assert xor_rle.encode(page_of(7), np.empty((0, 4096), np.uint8), np.zeros(1, bool), LITTLE) is None
    empty = np.empty((0, 4096), np.uint8)
    assert xor_rle.encode(empty, empty, np.zeros(0, bool), LITTLE) is None


WHOLE = skips(1024)


@BOTH
@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(
    ("coded", "message"),
    [
        (b"", "page 0 of 1 is empty, longer"),
        (b"\1\0\0", "page 0 of 1"),
        (b"\0\0\0\0", "page 0 of 1"),
        (b"\1\x10\0\0" + bytes(4097), "page 0 of 1"),
        (b"\2\0\0\0\0", "page 0 of 1"),
        (b"\xff\xff\xff\xff\0", "page 0 of 1"),
        (b"\1\0\0\0" + b"\0" + b"x", "1 bytes follow"),
        (b"\1\0\0\0" + b"\x81", "runs of a delta of 1 bytes"),
        (b"\2\0\0\0" + b"\0\0", "runs of a delta"),
        (b"\1\0\0\0" + b"\x80", "runs of a delta"),
        (bytes([len(WHOLE) + 1, 0, 0, 0]) + WHOLE + b"\x81", "runs of a delta"),
        (bytes([len(WHOLE), 0, 0, 0]) + WHOLE[:-1] + b"\xff", "runs of a delta"),
        (bytes([len(WHOLE), 0, 0, 0]) + WHOLE[:-1] + b"\x08", "runs of a delta"),
        (b"\5\0\0\0" + b"\x02\1\2\3\4", "runs of a delta"),
    ],
)
def test_a_delta_that_is_none_is_refused(coded, message):
    with pytest.raises(Undecodable, match=message):
        data = memoryview(coded)
        xor_rle.decode(data, xor_rle.lengths_of(data, 1, LITTLE), page_of(1, 2, 3))


@BOTH
@pytest.mark.usefixtures("_way")
def test_a_delta_need_not_be_writable_nor_contiguous_with_others():
    pages = np.concatenate([page_of(5), page_of(7), page_of(9)])
    old = np.concatenate([page_of(4), page_of(7), page_of(8)])
    data = memoryview(delta(pages, old) or b"")
    lengths = xor_rle.lengths_of(data, 3, LITTLE)
    before = old[1:].copy()
    xor_rle.decode(data[int(lengths[0]) + 4 :], lengths[1:], before)
    assert np.array_equal(before, pages[1:])


@st.composite
def versions(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pages, what they were, and for which of them that is known."""
    nr = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32))
    old = np.random.default_rng(seed).integers(0, 256, (nr, 4096), dtype=np.uint8)
    new = old.copy()
    for i in range(nr):
        for at, length in draw(st.lists(st.tuples(st.integers(0, 4095), st.integers(1, 1500)), max_size=9)):
            new[i, at : at + length] ^= 0x55
    return new, old, np.array(draw(st.lists(st.booleans(), min_size=nr, max_size=nr)))


@given(versions(), st.sampled_from(ByteOrder))
@settings(max_examples=200, deadline=None)
def test_the_kernels_and_their_twin_agree_and_what_is_coded_is_decoded(pages, order):
    new, old, known = pages
    coded = xor_rle.encode(new, old[known], known, order)
    by_twin = xor_rle.twin.encode(new, old[known], known, order)
    assert (coded is None) == (by_twin is None)
    if coded is None or by_twin is None:
        return
    assert coded == by_twin
    assert len(coded) < new.nbytes
    lengths = xor_rle.lengths_of(coded, len(new), order)
    again, by_twin = old.copy(), old.copy()
    xor_rle.decode(coded, lengths, again)
    assert xor_rle.twin.decode(coded, lengths, by_twin) == len(new)
    assert np.array_equal(again, new)
    assert np.array_equal(by_twin, new)


@given(st.binary(max_size=300), st.integers(1, 4), st.sampled_from(ByteOrder))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_told_alike_by_the_kernels_and_their_twin(junk, nr, order):
    check_alike(junk, nr, order)


@given(versions(), st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_delta_is_told_alike_by_the_kernels_and_their_twin(pages, data):
    new, old, _ = pages
    coded = xor_rle.encode(new, old, np.ones(len(new), dtype=bool), LITTLE)
    if coded is None:
        return
    damaged = bytearray(coded)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    check_alike(bytes(damaged), len(new), LITTLE)


def check_alike(coded: bytes, nr: int, order: ByteOrder) -> None:
    data = memoryview(coded)
    lengths, good = xor_rle.twin.scan(data, nr, order)
    try:
        found = xor_rle.lengths_of(data, nr, order)
    except Undecodable as error:
        assert good < nr or "follow" in str(error)
        return
    assert good == nr
    assert np.array_equal(found, lengths)
    one, other = (np.full((nr, 4096), 0x11, dtype=np.uint8) for _ in range(2))
    good = xor_rle.twin.decode(data, lengths, other)
    try:
        xor_rle.decode(data, lengths, one)
    except Undecodable:
        assert good < nr
    else:
        assert good == nr
        assert np.array_equal(one, other)
