"""Which digests an image can have: their names, their numbers on the wire, and what computes them.

Commands offer the names as choices, so nothing heavy is imported here before a digest is computed.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from saverestore.errors import ErrorName, UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from saverestore.kernels.xxh3 import Hasher


class DigestAlgorithm(IntEnum):
    """Algorithms of IMAGE_DIGEST, by their number on the wire."""

    XXH3 = 1
    SHA256 = 2
    BLAKE3 = 3

    @property
    def option(self) -> str:
        """The name that options, settings and PROVENANCE have for it."""
        return self.name.lower()

    @property
    def title(self) -> str:
        """The name for people."""
        return {1: "XXH3-128", 2: "SHA-256", 3: "BLAKE3"}[self]


NO_DIGEST = "none"
DIGEST_OPTIONS = (*(one.option for one in DigestAlgorithm), NO_DIGEST)
"""What options and settings may say."""

KEEP_DIGEST = "keep"
"""Of a conversion: the kind that the image has."""

DEFAULT_DIGEST = DigestAlgorithm.XXH3.option


class MissingPackage(Exception):
    """An algorithm whose package is not installed; the text names it."""


class _Blake3:
    """blake3 takes buffers of bytes only."""

    def __init__(self, inner: Hasher) -> None:
        self._inner = inner

    def update(self, data: ReadableBuffer, /) -> None:
        with memoryview(data) as view:
            if view.nbytes:
                self._inner.update(view.cast("B"))

    def digest(self) -> bytes:
        return self._inner.digest()


def new_hasher(algorithm: DigestAlgorithm) -> Hasher:
    """A fresh one. MissingPackage where blake3 is not installed."""
    if algorithm is DigestAlgorithm.XXH3:
        from saverestore.kernels.xxh3 import xxh3_128

        return xxh3_128()
    if algorithm is DigestAlgorithm.SHA256:
        import hashlib

        return hashlib.sha256()
    try:
        from blake3 import blake3
    except ImportError as error:
        raise MissingPackage(
            "BLAKE3 needs a package that is not installed: python3-blake3 (pip: blake3)"
        ) from error
    return _Blake3(blake3())


def algorithm_for_writing(option: str) -> DigestAlgorithm | None:
    """The algorithm that an option names, None for "none". UsageError for one that cannot be had here."""
    if option == NO_DIGEST:
        return None
    if option not in DIGEST_OPTIONS:
        raise UsageError(f"no digest is called {option!r}; there are {', '.join(DIGEST_OPTIONS)}")
    algorithm = DigestAlgorithm[option.upper()]
    try:
        new_hasher(algorithm)
    except MissingPackage as error:
        raise UsageError(f"{error}; no changes were made", name=ErrorName.PACKAGE_MISSING) from error
    return algorithm
