"""XXH3-128: of a stream, and of each page. By the code that is faster on this processor: with vectors, or without.

Which one that is depends: under an emulator, which multiplies vectors by calling functions, the scalar code is more
than five times as fast; on processors it takes twice as long. So both are tried once, on a few pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from saverestore.kernels import compiled
from saverestore.kernels.page import PAGE_SIZE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

BUILDS = ("vector", "scalar")
TRIED_PAGES = 64
TRIES = 3
DIGEST_BYTES = 16


class Hasher(Protocol):
    """What xxhash, hashlib and blake3 have in common; they give the GIL back for large buffers."""

    def update(self, data: ReadableBuffer, /) -> object:
        """Take the next bytes."""

    def digest(self) -> bytes:
        """The digest of all so far."""


@cache
def fastest_build() -> str:
    """Of the compiled kernels: "vector" or "scalar", found by trying both when it is first asked for."""
    pages = np.ones((TRIED_PAGES, PAGE_SIZE), dtype=np.uint8)
    return quickest(lambda build: page_digests(pages, build))


def quickest(work: Callable[[str], object], clock: Callable[[], float] = time.perf_counter) -> str:
    """The build with which `work` takes less time: the shortest of a few, as the first also fills the caches."""

    def seconds(build: str) -> float:
        times = []
        for _ in range(TRIES):
            started = clock()
            work(build)
            times.append(clock() - started)
        return min(times)

    return min(BUILDS, key=seconds)


class CompiledXxh3:
    """A digest of bytes that come one after the other. One thread at a time."""

    def __init__(self, build: str | None = None) -> None:
        """`build`: one of `BUILDS`; None: the faster one. RuntimeError where the kernels are missing."""
        kernels = _required()
        self._ffi = kernels.ffi
        self._functions = _Build(kernels.lib, build or fastest_build())
        state = self._functions.new()
        if state == self._ffi.NULL:
            raise MemoryError("a digest's state")
        self._state = self._ffi.gc(state, self._functions.free)

    def update(self, data: ReadableBuffer, /) -> None:
        """Take the next bytes, of any contiguous buffer. The GIL is given back meanwhile."""
        with memoryview(data) as view:
            self._functions.update(self._state, self._ffi.from_buffer("uint8_t[]", view), view.nbytes)

    def digest(self) -> bytes:
        """The digest of all so far, 16 bytes as xxhash has them."""
        digest = bytearray(DIGEST_BYTES)
        self._functions.digest(self._state, self._ffi.from_buffer("uint8_t[]", digest))
        return bytes(digest)


def xxh3_128() -> Hasher:
    """A fresh digest; where the kernels are missing, that of the package xxhash, which is the same."""
    return xxhash.xxh3_128() if compiled() is None else CompiledXxh3()


def page_digests(pages: U8, build: str | None = None) -> U64:
    """XXH3-128 of each row of `pages`, shape (n, page size), contiguous: shape (n, 2), low half first.

    `build`: one of `BUILDS`; None: the faster one. Where the kernels are missing, the package xxhash makes them.
    """
    kernels = compiled()
    if kernels is None:
        return page_digests_in_python(pages)
    digests = np.empty((len(pages), 2), dtype=np.uint64)
    _Build(kernels.lib, build or fastest_build()).pages(
        kernels.ffi.from_buffer("uint8_t[]", pages),
        pages.shape[1],
        len(pages),
        kernels.ffi.from_buffer("uint64_t[]", digests),
    )
    return digests


def page_digests_in_python(pages: U8) -> U64:
    """As `page_digests`, by one library call a page: for where the compiled kernel is missing."""
    digests = b"".join(xxhash.xxh3_128_digest(page) for page in pages)
    # The library prints the 128 bits with the high half first, big-endian.
    return np.frombuffer(digests, dtype=">u8").reshape(-1, 2)[:, ::-1].astype(np.uint64)


class _Build:
    """The functions of one build, by their names in `xxh3.h` without the build's."""

    def __init__(self, lib: Any, build: str) -> None:
        self.pages = getattr(lib, f"xxh3_pages_{build}")
        self.new = getattr(lib, f"xxh3_new_{build}")
        self.update = getattr(lib, f"xxh3_update_{build}")
        self.digest = getattr(lib, f"xxh3_digest_{build}")
        self.free = getattr(lib, f"xxh3_free_{build}")


def _required() -> ModuleType:
    kernels = compiled()
    if kernels is None:
        raise RuntimeError("saverestore._kernels is not compiled")
    return kernels
