"""Which coding the pages of a record get, and what came of it: the port of whoever chooses record by record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from saverestore.stream.codecs import Coding
    from saverestore.stream.layout import U8Array


@dataclass(frozen=True)
class Coded:
    """What was written by one coding: how many records, and their pages' bytes before and after.

    Pages that are all zero do not count: they take a bit each.
    """

    batches: int = 0
    in_bytes: int = 0
    out_bytes: int = 0

    def __add__(self, other: Coded) -> Coded:
        return Coded(
            self.batches + other.batches, self.in_bytes + other.in_bytes, self.out_bytes + other.out_bytes
        )

    def __sub__(self, other: Coded) -> Coded:
        return Coded(
            self.batches - other.batches, self.in_bytes - other.in_bytes, self.out_bytes - other.out_bytes
        )


@dataclass(frozen=True)
class Trial:
    """One record coded. `seconds`: of the thread's processor. `known_bytes`: of pages that had a version before."""

    coding: Coding
    in_bytes: int
    out_bytes: int
    seconds: float
    known_bytes: int = 0


class CodingChoice(Protocol):
    """Chooses for each record. All of it may be called from any thread."""

    @property
    def keeps_versions(self) -> bool:
        """Whether what is sent now is to be kept, so that later records may be coded against it."""

    def choose(self, sample: Callable[[int], U8Array], known_share: Callable[[], float]) -> Coding:
        """How to code the next record.

        `sample`: copies so many of its pages, shape (n, 4096), or all there are. `known_share`: computes how many of
        them have a version that was kept, 0 to 1.
        """

    def note(self, trial: Trial) -> None:
        """What came of it."""
