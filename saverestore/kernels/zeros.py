"""Zeroes that a sink knows for zeroes without looking at them: what long runs of empty pages are handed on as.

The mark is the type of the memory: a `memoryview` over `ZeroMemory`, or any part of one, can hold nothing but zeroes.
It is a buffer as any other, so a sink or digest that does not care takes it as it is.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Self

import numpy as np

from saverestore.kernels.page import PAGE_SIZE, PAGE_WORDS
from saverestore.kernels.zero_pages import Flags, zero_pages

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SMALLEST_RUN = 32 << 10
"""Shorter runs stay as they are, but for those at an edge: a hole in a file costs a call, and an extent."""

ZEROS_BYTES = 8 << 20


class ZeroMemory(mmap.mmap):
    """A mapping of zeroes that nobody can write to. It is made once, see `zeros`.

    It takes no memory, as the kernel shows the same page of zeroes at each address, and who reads it (a digest, a
    pipe) finds it in the processor's cache.
    """

    def __new__(cls, nr_bytes: int) -> Self:
        """`nr_bytes` of zeroes."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return super().__new__(cls, -1, nr_bytes, flags=flags, prot=mmap.PROT_READ)


_ZEROS = ZeroMemory(ZEROS_BYTES)


def zeros(nr_bytes: int) -> list[memoryview]:
    """So many zeroes, in one or more buffers that `are_zeros`."""
    view = memoryview(_ZEROS)
    return [view[: min(len(view), nr_bytes - at)] for at in range(0, nr_bytes, len(view))]


def are_zeros(buffer: ReadableBuffer) -> bool:
    """Whether a buffer is marked as nothing but zeroes: one that `zeros` gives, or a part of one. A constant time."""
    return isinstance(buffer, memoryview) and isinstance(buffer.obj, ZeroMemory)


def zeros_marked(pages: ReadableBuffer, zero: Flags | None = None) -> tuple[list[memoryview], int]:
    """The same bytes, runs of zero pages being `zeros`; and how many pages are zero, in short runs, too.

    `pages`: a contiguous buffer of whole pages, of which the others are parts. A run at either end counts as long,
    as it may go on in the next buffer. `zero`: which pages are, where that is known.
    """
    flat = memoryview(pages).cast("B")
    if zero is None:
        zero = zero_pages(np.frombuffer(flat, dtype=np.uint64).reshape(-1, PAGE_WORDS))
    nr_zero = int(np.count_nonzero(zero))
    if not nr_zero:
        return [flat] if len(flat) else [], 0
    if nr_zero == len(zero):
        return zeros(len(flat)), nr_zero
    bounded = np.zeros(len(zero) + 2, dtype=bool)
    bounded[1:-1] = zero
    runs = np.flatnonzero(bounded[1:] != bounded[:-1]).reshape(-1, 2)
    lengths = runs[:, 1] - runs[:, 0]
    long = (lengths * PAGE_SIZE >= SMALLEST_RUN) | (runs[:, 0] == 0) | (runs[:, 1] == len(zero))
    parts: list[memoryview] = []
    at = 0
    for begin, end in (runs[long] * PAGE_SIZE).tolist():
        if begin > at:
            parts.append(flat[at:begin])
        parts += zeros(end - begin)
        at = end
    if at < len(flat):
        parts.append(flat[at:])
    return parts, nr_zero
