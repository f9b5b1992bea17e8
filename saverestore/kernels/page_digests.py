"""A digest for each page: which pages changed is told by comparing them (XXH3-128, 16 bytes a page)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

from saverestore.kernels import compiled

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

_kernels = compiled()


def page_digests_in_python(pages: U8) -> U64:
    """As `page_digests`, by one library call a page: for where the compiled kernel is missing."""
    digests = b"".join(xxhash.xxh3_128_digest(page) for page in pages)
    # The library prints the 128 bits with the high half first, big-endian.
    return np.frombuffer(digests, dtype=">u8").reshape(-1, 2)[:, ::-1].astype(np.uint64)


def page_digests(pages: U8) -> U64:
    """XXH3-128 of each row of `pages`, shape (n, page size), contiguous: shape (n, 2), low half first."""
    if _kernels is None:
        return page_digests_in_python(pages)
    digests = np.empty((len(pages), 2), dtype=np.uint64)
    ffi, lib = _kernels.ffi, _kernels.lib
    lib.xxh3_128_pages(
        ffi.from_buffer("uint8_t[]", pages),
        pages.shape[1],
        len(pages),
        ffi.from_buffer("uint64_t[]", digests),
    )
    return digests
