"""Zeroes that a sink knows for zeroes without looking at them: what long runs of empty pages are handed on as.

All of them lie in one mapping that is only ever read. It takes no memory, as the kernel shows the same page of zeroes
at each address, and who reads it (a digest, a pipe) finds it in the processor's cache.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

import numpy as np

from saverestore.kernels.zero_pages import PAGE_WORDS, Flags, zero_pages

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PAGE_BYTES = 4096

SMALLEST_RUN = 32 << 10
"""Shorter runs stay as they are, but for those at an edge: a hole in a file costs a call, and an extent."""

_ZEROS = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)


def zeros(nr_bytes: int) -> list[memoryview]:
    """So many zeroes, in one or more buffers."""
    view = memoryview(_ZEROS)
    return [view[: min(len(view), nr_bytes - at)] for at in range(0, nr_bytes, len(view))]


def are_zeros(buffer: ReadableBuffer) -> bool:
    """Whether a buffer is one of those that `zeros` gives, or a part of one."""
    return isinstance(buffer, memoryview) and buffer.obj is _ZEROS


def zeros_told(pages: ReadableBuffer, zero: Flags | None = None) -> tuple[list[memoryview], int]:
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
    long = (lengths * PAGE_BYTES >= SMALLEST_RUN) | (runs[:, 0] == 0) | (runs[:, 1] == len(zero))
    parts: list[memoryview] = []
    at = 0
    for begin, end in (runs[long] * PAGE_BYTES).tolist():
        if begin > at:
            parts.append(flat[at:begin])
        parts += zeros(end - begin)
        at = end
    if at < len(flat):
        parts.append(flat[at:])
    return parts, nr_zero
