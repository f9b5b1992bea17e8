"""Copying batches of pages, many megabytes at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from saverestore.kernels import compiled
from saverestore.kernels.page import PAGE_SIZE, PAGE_WORDS
from saverestore.kernels.zero_pages import zero_pages_in_numpy

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]


def spread_pages_in_numpy(to: U8, source: U8 | memoryview, zero: Flags) -> None:
    """As `spread_pages`, for where the compiled kernel is missing."""
    pages = to.reshape(-1, PAGE_SIZE)
    pages[~zero] = np.frombuffer(source, dtype=np.uint8).reshape(-1, PAGE_SIZE)
    pages[zero] = 0


def spread_pages(to: U8, source: U8 | memoryview, zero: Flags) -> None:
    """Fill `to`, shape (n * 4096,), contiguous: a page with zeros where `zero`, shape (n,), says so, every other one
    with the next page of `source`, which has no more of them. The GIL is given back.

    What was copied is in the processor's cache afterwards, as far as it fits.
    """
    kernels = compiled()
    if kernels is None:
        spread_pages_in_numpy(to, source, zero)
        return
    nr_copied = len(zero) - int(np.count_nonzero(zero))
    if to.nbytes != len(zero) * PAGE_SIZE or source.nbytes != nr_copied * PAGE_SIZE:
        raise ValueError(f"{source.nbytes} bytes into {to.nbytes}, with {nr_copied} of {len(zero)} pages")
    ffi = kernels.ffi
    kernels.lib.spread_pages(
        ffi.from_buffer("uint8_t[]", to, require_writable=True),
        ffi.from_buffer("uint8_t[]", source),
        PAGE_SIZE,
        len(zero),
        ffi.from_buffer("uint8_t[]", zero),
    )


def copy_pages_in_numpy(to: U8, source: U8 | memoryview, zero: Flags) -> None:
    """As `copy_pages`, for where the compiled kernel is missing."""
    np.copyto(to, np.frombuffer(source, dtype=np.uint8).reshape(to.shape))
    zero[:] = zero_pages_in_numpy(to.view(np.uint64))


def copy_pages(to: U8, source: U8 | memoryview, zero: Flags) -> None:
    """Copy whole pages into `to`, shape (n, 4096), contiguous, from so many bytes. The GIL is given back.

    `zero`, shape (n,): which pages of `to` are all zero, before and afterwards. Those that stay so are not written;
    so memory that is mostly zero is read once, and that is all. The source may change meanwhile: what is told holds
    for the copy, but for a page that became zero while it was copied.
    """
    kernels = compiled()
    if kernels is None:
        copy_pages_in_numpy(to, source, zero)
        return
    if not to.nbytes == source.nbytes == len(zero) * PAGE_SIZE:
        raise ValueError(f"{source.nbytes} bytes into {to.nbytes}, with {len(zero)} flags")
    ffi = kernels.ffi
    kernels.lib.copy_pages(
        ffi.from_buffer("uint64_t[]", to, require_writable=True),
        ffi.from_buffer("uint64_t[]", source),
        PAGE_WORDS,
        len(zero),
        ffi.from_buffer("uint8_t[]", zero, require_writable=True),
    )


def gather_pages_in_numpy(to: U8, source: U8, which: U64, zero: Flags) -> None:
    """As `gather_pages`, for where the compiled kernel is missing."""
    # "clip" spares numpy a copy of all of it.
    np.take(source, which.astype(np.intp), axis=0, out=to, mode="clip")
    zero[:] = zero_pages_in_numpy(to.view(np.uint64))


def gather_pages(to: U8, source: U8, which: U64, zero: Flags) -> None:
    """Copy the pages `source[which]` into `to`, shape (n, 4096), contiguous, as `copy_pages` does.

    `source`: shape (m, 4096), contiguous; `which`: shape (n,), IndexError where one is not below m.
    For a domain in this process's memory: what is mapped from Xen lies together, wherever it comes from.
    """
    if len(which) and int(which.max()) >= len(source):
        raise IndexError(f"page {int(which.max())} of {len(source)}")
    if not to.nbytes == len(which) * PAGE_SIZE == len(zero) * PAGE_SIZE:
        raise ValueError(f"{len(which)} pages into {to.nbytes} bytes, with {len(zero)} flags")
    kernels = compiled()
    if kernels is None:
        gather_pages_in_numpy(to, source, which, zero)
        return
    ffi = kernels.ffi
    kernels.lib.gather_pages(
        ffi.from_buffer("uint64_t[]", to, require_writable=True),
        ffi.from_buffer("uint64_t[]", source),
        ffi.from_buffer("uint64_t[]", which),
        PAGE_WORDS,
        len(zero),
        ffi.from_buffer("uint8_t[]", zero, require_writable=True),
    )
