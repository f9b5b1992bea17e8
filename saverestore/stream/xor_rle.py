"""Remus's page deltas: the words of a page that are not what they were in its last version.

For each page u32 length (in the image's byte order), then so many bytes:

    4096            the page itself
    1, the byte 0   the page is as it was
    2 to 4095       runs, each with one byte of header, which together are exactly the page:

     7     6           0
    +-----+-------------+-----------------------------+
    |skip | words, ≥ 1  | the words, unless skip      |     a word is 4 bytes, whatever they mean
    +-----+-------------+-----------------------------+

What Remus calls XOR is a comparison: changed words are carried as they are now. Source: the bytes that
tools/libxc/xc_compression.c of Xen 4.4 writes; its marker for a whole page (a skip of no words, then the page)
is not needed with lengths, and refused.

The work is done by the compiled kernels, or by their twin in numpy.
"""

from __future__ import annotations

import numpy as np

from saverestore.kernels import compiled
from saverestore.stream import xor_rle_numpy as twin
from saverestore.stream.layout import BoolArray, ByteOrder, U8Array, U32Array
from saverestore.stream.undecodable import Undecodable

LENGTH_BYTES = 4


def encode(pages: U8Array, bases: U8Array, has_base: BoolArray, order: ByteOrder) -> memoryview | None:
    """Code pages, shape (n, 4096), contiguous, as deltas; None where that is not smaller than the pages are.

    `has_base`, shape (n,): which of them have a version before; `bases`, shape (number of these, 4096): those
    versions, in order. A page without one is carried whole.
    """
    if (kernels := compiled()) is None:
        return twin.encode(pages, bases, has_base, order)
    ffi, lib = kernels.ffi, kernels.lib
    room = np.empty(max(pages.nbytes - 1, 0), dtype=np.uint8)
    length = lib.xor_rle_encode(
        ffi.from_buffer("uint8_t[]", pages),
        ffi.from_buffer("uint8_t[]", bases),
        ffi.from_buffer("uint8_t[]", has_base),
        len(pages),
        order is ByteOrder.BIG,
        ffi.from_buffer("uint8_t[]", room, require_writable=True),
        len(room),
    )
    return room[:length].data if length else None


def lengths_of(coded: memoryview, nr_pages: int, order: ByteOrder) -> U32Array:
    """Return how long each page's delta is. `Undecodable` unless they are exactly these bytes."""
    if (kernels := compiled()) is None:
        lengths, good = twin.scan(coded, nr_pages, order)
    else:
        ffi, lib = kernels.ffi, kernels.lib
        lengths = np.zeros(nr_pages, dtype=np.uint32)
        good = lib.xor_rle_scan(
            ffi.from_buffer("uint8_t[]", coded),
            len(coded),
            nr_pages,
            order is ByteOrder.BIG,
            ffi.from_buffer("uint32_t[]", lengths, require_writable=True),
        )
    if good != nr_pages:
        raise Undecodable(
            f"the delta of page {good} of {nr_pages} is empty, longer than a page, or longer than what is there"
        )
    taken = int(lengths.sum(dtype=np.int64)) + nr_pages * LENGTH_BYTES
    if taken != len(coded):
        raise Undecodable(f"{len(coded) - taken} bytes follow the deltas of {nr_pages} pages")
    return lengths


def decode(coded: memoryview, lengths: U32Array, pages: U8Array) -> None:
    """Bring `pages`, shape (n, 4096), contiguous, which are the last versions, up to date.

    `coded` begins with the first page's length and goes on at least to the end of the last one's delta; `lengths`
    are those of `lengths_of`, shape (n,). `Undecodable`: `pages` are then of no use.
    """
    if (kernels := compiled()) is None:
        good = twin.decode(coded, lengths, pages)
    else:
        ffi, lib = kernels.ffi, kernels.lib
        good = lib.xor_rle_decode(
            ffi.from_buffer("uint8_t[]", coded),
            len(coded),
            len(pages),
            ffi.from_buffer("uint32_t[]", lengths),
            ffi.from_buffer("uint8_t[]", pages, require_writable=True),
        )
    if good != len(pages):
        raise Undecodable(f"the runs of a delta of {int(lengths[good])} bytes are not exactly a page")
