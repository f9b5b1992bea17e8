"""Which digest the result of a conversion has, and what its PROVENANCE says of it.

A new digest of the same kind is made of what is written. Which kind that is must be known before the first byte, so
the image's PROVENANCE must come first and announce it.
"""

from __future__ import annotations

from typing import Any

from saverestore.stream.digest_algorithms import KEEP_DIGEST, DigestAlgorithm, algorithm_for_writing
from saverestore.stream.header_digest import HeaderDigest, integrity_fields
from saverestore.stream.records import Provenance


class DigestPlan:
    """What was asked for, settled by an image's first record.

    `covers_file`: whether the digest covers header and trailer of the file, once it is settled.
    """

    def __init__(self, digest: str, *, plain: bool) -> None:
        """`digest`: an algorithm's option, "none" or "keep"; `plain`: no record of ours.

        UsageError for a digest that cannot be made here.
        """
        self._plain = plain
        self._keeps = digest == KEEP_DIGEST and not plain
        self._algorithm = None if plain or self._keeps else algorithm_for_writing(digest)
        self._integrity: dict[str, Any] | None = None
        self.covers_file = False

    @property
    def keeps_none(self) -> bool:
        """Whether the image's digest was to be kept, and it announced none."""
        return self._keeps and self._algorithm is None

    def settle(
        self, first: object, announced: DigestAlgorithm | None, header: HeaderDigest | None
    ) -> DigestAlgorithm | None:
        """The algorithm, None for no digest. `first`: the image's first record; `announced`: what that announces.

        `header`: of the file's header as it was written; None where there is none around the stream.
        """
        fields = first.fields.get("integrity") if isinstance(first, Provenance) else None
        has_fields = isinstance(fields, dict)
        if self._keeps and has_fields:
            self._algorithm = announced
        # Who wrote a digest without it did not know what lies around the stream, and somebody may take it off again.
        if self._keeps and isinstance(fields, dict) and "before" not in fields:
            header = None
        if self._algorithm is not None:
            self.covers_file = header is not None
            self._integrity = integrity_fields(self._algorithm, header)
        return self._algorithm

    def provenance(self, record: Provenance | None) -> Provenance | None:
        """`record` with what is now true of the digest, which only the first one tells; None: none is to be written.

        `record`: None where the image has none to begin with.
        """
        integrity, self._integrity = self._integrity, None
        if self._plain or (record is None and integrity is None):
            return None
        before = {} if record is None else record.fields
        fields = {name: value for name, value in before.items() if name != "integrity"}
        if integrity is not None:
            fields["integrity"] = integrity
        return Provenance(fields) if fields or not before else None
