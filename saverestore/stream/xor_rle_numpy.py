"""The twin in numpy of the compiled kernels for Remus's page deltas: the same results, byte for byte.

For machines without the compiled module. Encoding has no loop at all; decoding takes a step for each run that a
page may have, for all pages at once; only finding the lengths, each of which tells where the next one is, takes
a step for each page.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saverestore.stream.layout import PAGE_SIZE, BoolArray, ByteOrder, Fields, U8Array, U32Array

Places = NDArray[np.int64]

LENGTH_BYTES = 4
WORD_BYTES = 4
WORDS_A_PAGE = PAGE_SIZE // WORD_BYTES
SKIP = 0x80
RUN_MAX = 0x7F
UNCHANGED = 0


def encode(pages: U8Array, bases: U8Array, has_base: BoolArray, order: ByteOrder) -> memoryview | None:
    """See `xor_rle.encode`."""
    runs, lengths = _runs_of(pages[has_base], bases)
    delta_lengths = np.full(len(pages), PAGE_SIZE, dtype=np.int64)
    delta_lengths[has_base] = lengths
    is_whole = delta_lengths >= PAGE_SIZE
    delta_lengths[is_whole] = PAGE_SIZE
    ends = np.cumsum(delta_lengths + LENGTH_BYTES)
    if not len(pages) or ends[-1] >= pages.nbytes:
        return None
    out = np.empty(int(ends[-1]), dtype=np.uint8)
    begins = ends - delta_lengths
    length_fields = delta_lengths.astype(np.dtype(np.uint32).newbyteorder(order.value)).view(np.uint8)
    out[(begins - LENGTH_BYTES)[:, None] + np.arange(LENGTH_BYTES)] = length_fields.reshape(-1, LENGTH_BYTES)
    out[begins[is_whole][:, None] + np.arange(PAGE_SIZE)] = pages[is_whole]
    kept = ~is_whole[has_base]
    out[_spread(begins[~is_whole], lengths[kept])] = runs[np.repeat(kept, lengths)]
    return out.data


def _runs_of(pages: U8Array, bases: U8Array) -> tuple[U8Array, Places]:
    """The runs of all pages one after the other, and how many bytes those of each page are."""
    if not len(pages):
        return np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64)
    words = pages.view(np.uint32)
    changed = words != bases.view(np.uint32)
    begins_run = np.ones(changed.shape, dtype=bool)
    begins_run[:, 1:] = changed[:, 1:] != changed[:, :-1]
    starts = np.flatnonzero(begins_run)
    # A run that is longer than a header can tell is cut: all its pieces but the last have RUN_MAX words.
    run_words = np.diff(np.append(starts, changed.size))
    nr_pieces = -(-run_words // RUN_MAX)
    nth = _counting(nr_pieces)
    piece_starts = np.repeat(starts, nr_pieces) + nth * RUN_MAX
    piece_words = np.minimum(np.repeat(run_words, nr_pieces) - nth * RUN_MAX, RUN_MAX)
    copied = changed.reshape(-1)[piece_starts]
    data_bytes = np.where(copied, piece_words * WORD_BYTES, 0)
    ends = np.cumsum(data_bytes + 1)
    out = np.empty(int(ends[-1]), dtype=np.uint8)
    headers_at = ends - data_bytes - 1
    out[headers_at] = piece_words | np.where(copied, 0, SKIP)
    out[_spread(headers_at + 1, data_bytes)] = words[changed].view(np.uint8)
    pages_of = piece_starts // WORDS_A_PAGE
    lengths = np.bincount(pages_of, weights=data_bytes + 1, minlength=len(pages)).astype(np.int64)
    # A page without a change is one zero byte instead of its skips.
    same = ~changed.any(axis=1)
    if same.any():
        keep = np.repeat(~same, lengths)
        firsts = (np.cumsum(lengths) - lengths)[same]
        keep[firsts] = True
        out[firsts] = UNCHANGED
        out = out[keep]
        lengths[same] = 1
    return out, lengths


def scan(coded: memoryview, nr_pages: int, order: ByteOrder) -> tuple[U32Array, int]:
    """The length of each page's delta, and the first page that is empty, too long or cut short (n: none)."""
    lengths = np.zeros(nr_pages, dtype=np.uint32)
    length_field = Fields("I")
    at = 0
    for i in range(nr_pages):
        if len(coded) - at < LENGTH_BYTES:
            return lengths, i
        (length,) = length_field.unpack(coded[at:], order)
        at += LENGTH_BYTES
        lengths[i] = length
        if not 0 < length <= min(PAGE_SIZE, len(coded) - at):
            return lengths, i
        at += length
    return lengths, nr_pages


def decode(coded: memoryview, lengths: U32Array, pages: U8Array) -> int:
    """See `xor_rle.decode`: the first page whose runs are wrong (n: none)."""
    data = np.frombuffer(coded, dtype=np.uint8)
    size = lengths.astype(np.int64)
    begins = np.cumsum(size + LENGTH_BYTES) - size
    whole = size == PAGE_SIZE
    pages[whole] = data[begins[whole][:, None] + np.arange(PAGE_SIZE)]
    same = (size == 1) & (data[begins] == UNCHANGED)

    is_bad = np.zeros(len(pages), dtype=bool)
    busy = np.flatnonzero(~whole & ~same)
    at, word = begins[busy], np.zeros(len(busy), dtype=np.int64)
    literals: list[tuple[Places, Places, Places]] = []  # word in all pages, bytes of data, words
    while len(busy):
        end = begins[busy] + size[busy]
        head = data[np.minimum(at, end - 1)]
        words = (head & RUN_MAX).astype(np.int64)
        data_bytes = np.where(head & SKIP, 0, words * WORD_BYTES)
        bad = (at >= end) | (words == 0) | (word + words > WORDS_A_PAGE) | (at + 1 + data_bytes > end)
        copied = ~bad & (data_bytes > 0)
        literals.append(((busy * WORDS_A_PAGE + word)[copied], at[copied] + 1, words[copied]))
        at, word = at + 1 + data_bytes, word + words
        done = word == WORDS_A_PAGE
        bad |= done & (at != end)
        is_bad[busy[bad]] = True
        unfinished = ~bad & ~done
        busy, at, word = busy[unfinished], at[unfinished], word[unfinished]
    if literals:
        to_word, from_byte, words = (np.concatenate(part) for part in zip(*literals, strict=True))
        target = pages.reshape(-1)
        target[_spread(to_word * WORD_BYTES, words * WORD_BYTES)] = data[
            _spread(from_byte, words * WORD_BYTES)
        ]
    return int(np.flatnonzero(is_bad)[0]) if is_bad.any() else len(pages)


def _counting(counts: Places) -> Places:
    """0, 1, … n-1 for each n of `counts`, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _spread(starts: Places, counts: Places) -> Places:
    """start, start + 1, … for each start, as many as `counts` says."""
    return np.repeat(starts, counts) + _counting(counts)
