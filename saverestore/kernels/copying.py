"""Copying batches of pages, many megabytes at a time, so that the copy is in the processor's cache afterwards."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from saverestore.kernels import compiled

U8 = npt.NDArray[np.uint8]


def copy_in_numpy(to: U8, source: U8 | memoryview) -> None:
    """As `copy_to`, for where the compiled kernel is missing."""
    np.copyto(to, np.frombuffer(source, dtype=np.uint8))


def copy_to(to: U8, source: U8 | memoryview) -> None:
    """Copy `source` into `to`, shape (n,), contiguous; both have the same number of bytes. The GIL is given back."""
    kernels = compiled()
    if kernels is None:
        copy_in_numpy(to, source)
        return
    if to.nbytes != source.nbytes:
        raise ValueError(f"{source.nbytes} bytes into {to.nbytes}")
    ffi = kernels.ffi
    kernels.lib.copy_in_chunks(
        ffi.from_buffer("uint8_t[]", to, require_writable=True),
        ffi.from_buffer("uint8_t[]", source),
        to.nbytes,
    )
