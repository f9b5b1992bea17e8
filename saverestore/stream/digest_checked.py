"""The digest of a libxc stream, made while it is read and held against IMAGE_DIGEST.

A page is digested where it has just been read to, before anything is made of it. The counterpart, for writing, is
`digest_written`; what PROVENANCE announces is in `header_digest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saverestore.errors import ErrorName
from saverestore.stream.digest_algorithms import (
    DIGEST_OPTIONS,
    NO_DIGEST,
    DigestAlgorithm,
    MissingPackage,
    new_hasher,
)
from saverestore.stream.digesting_source import DigestingSource
from saverestore.stream.errors import BadRecord
from saverestore.stream.header_digest import HeaderDigest
from saverestore.stream.layout import RecordType
from saverestore.stream.records import ImageDigest, Provenance
from saverestore.transport.base import ByteSource

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from saverestore.kernels.xxh3 import Hasher


class DigestCheck:
    """Follows a stream that is being read, and holds it against what it says of itself.

    `source` digests all that is read through it. `checked`: the algorithm of an IMAGE_DIGEST that was found to hold.
    One that is not `enabled` does nothing: `source` is the one that was given, so that skipping costs no reading.
    """

    def __init__(
        self,
        source: ByteSource,
        prefix: bytes,
        header_digest: HeaderDigest | None,
        *,
        required: bool = False,
        enabled: bool = True,
    ) -> None:
        """`prefix`: bytes of the stream that have been taken before. `header_digest`: None if it is not known."""
        self._enabled = enabled
        self._inner = source
        self._begin = source.offset - len(prefix)
        self._header_digest = header_digest
        self._required = required
        self._algorithm = DigestAlgorithm.XXH3
        self._hasher = new_hasher(self._algorithm)
        # Which digest there will be is told by the first record: up to there all is kept, 1 MiB at most.
        self._kept: bytearray | None = bytearray()
        self._announced = False
        self._made = b""
        self.checked: DigestAlgorithm | None = None
        self.source: ByteSource = DigestingSource(source, self._take) if enabled else source
        # A record's header is digested only by `begin`, as that of IMAGE_DIGEST is not.
        self.header_source: ByteSource = DigestingSource(source, self._hold) if enabled else source
        self._header = b""
        self._take(prefix)

    def _take(self, data: ReadableBuffer) -> None:
        if self._kept is not None:
            self._kept += memoryview(data)
        self._hasher.update(data)

    @property
    def announced(self) -> DigestAlgorithm | None:
        """The algorithm that PROVENANCE told of, if it did."""
        return self._algorithm if self._announced else None

    def _hold(self, data: ReadableBuffer) -> None:
        self._header = bytes(data)

    def begin(self, type: int) -> None:
        """A record of this type begins, whose header has been read from `header_source`."""
        if not self._enabled:
            return
        if type == RecordType.IMAGE_DIGEST:
            self._made = self._hasher.digest()
        if type != RecordType.PROVENANCE:
            self._kept = None
        self._take(self._header)

    def take(self, record: object, offset: int) -> None:
        """A record that began at `offset` has been read. BadRecord when it says what does not hold."""
        if not self._enabled:
            return
        if isinstance(record, Provenance):
            self._announce(record.fields.get("integrity"), offset)
            self._kept = None
        elif isinstance(record, ImageDigest):
            self._compare(record, offset)

    def end(self, offset: int) -> None:
        """END has been read: a digest that was announced, or is required, must have come."""
        if self.checked is not None or not self._enabled:
            return
        name = self._inner.name
        if self._announced:
            raise _bad(
                f"{name} is damaged: it says that it has a {self._algorithm.title} digest, but none came",
                offset,
            )
        if self._required:
            raise _bad(f"{name} has no digest, as was required", offset, name=ErrorName.DIGEST_MISSING)

    def _announce(self, fields: object, offset: int) -> None:
        if not isinstance(fields, dict) or "digest" not in fields:
            return
        option = fields["digest"]
        if option not in DIGEST_OPTIONS or option == NO_DIGEST:
            raise _bad(
                f"the image has a digest called {option!r}: it needs a newer version of this program",
                offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            )
        algorithm = DigestAlgorithm[option.upper()]
        if self._announced and algorithm is not self._algorithm:
            raise _bad("the image announces two digests of different algorithms", offset)
        self._announced, self._algorithm = True, algorithm
        if self._algorithm is not DigestAlgorithm.XXH3:
            if self._kept is None:
                raise _bad("the image names the algorithm of its digest too late", offset)
            self._hasher = self._new_hasher(offset)
            self._hasher.update(self._kept)
        recorded = fields.get("before")
        if self._header_digest is not None and recorded not in (None, self._header_digest.fields()):
            raise _bad(
                f"{self._inner.name} is damaged before the image header: its digest there does not hold",
                offset,
                name=ErrorName.DIGEST_MISMATCH,
            )

    def _new_hasher(self, offset: int) -> Hasher:
        try:
            return new_hasher(self._algorithm)
        except MissingPackage as error:
            raise _bad(
                f"the image's digest cannot be checked: {error}", offset, name=ErrorName.PACKAGE_MISSING
            ) from error

    def _compare(self, record: ImageDigest, offset: int) -> None:
        name = self._inner.name
        try:
            algorithm = DigestAlgorithm(record.algorithm)
        except ValueError:
            raise _bad(
                f"the image's digest is of algorithm {record.algorithm}: it needs a newer version of this program",
                offset,
                name=ErrorName.IMAGE_UNSUPPORTED,
            ) from None
        if algorithm is not self._algorithm:
            if self._announced:
                raise _bad(
                    f"{name} is damaged: it says that it has a {self._algorithm.title} digest, "
                    f"but this one is {algorithm.title}",
                    offset,
                )
            self._algorithm = algorithm
            self._made = self._read_again(offset)
        if record.digest != self._made:
            raise _bad(
                f"{name} is damaged: its {algorithm.title} digest is {record.digest.hex()}, "
                f"that of what was read {self._made.hex()}",
                None,  # the damage may be anywhere before
                name=ErrorName.DIGEST_MISMATCH,
            )
        self.checked = algorithm

    def _read_again(self, offset: int) -> bytes:
        """The digest by an algorithm that was not named before: a second pass over a regular file."""
        hasher = self._new_hasher(offset)
        file = self._inner.regular_file
        if file is None:
            raise _bad(
                f"the image's {self._algorithm.title} digest cannot be checked in a stream, as the image does not "
                "name it at its start: use an uncompressed file",
                offset,
                name=ErrorName.NOT_RANDOM_ACCESS,
            )
        for part in file.read_again(self._begin, offset - self._begin):
            hasher.update(part)
        return hasher.digest()


def _bad(problem: str, offset: int | None, name: ErrorName | None = None) -> BadRecord:
    return BadRecord(problem, offset=offset, type=RecordType.IMAGE_DIGEST, name=name)
