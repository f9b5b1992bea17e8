"""How a domain is to be saved: what the caller chooses, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from saverestore.engine.policy import Limits, OnStall
from saverestore.guest.ports import Throttle
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.coding_choice import CodingChoice
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.header_digest import HeaderDigest
from saverestore.stream.layout import MIB

WORKERS = 2

XOR_CACHE_BYTES = 48 * MIB
"""With the batches, last versions stay below 64 MiB and 16 MiB for each worker, as `tools/bench memory` finds."""


class Storage(Protocol):
    """Where an image is stored, as far as its rounds depend on that."""

    @property
    def stored_bytes(self) -> int | None:
        """What the image takes there so far; None where that is not known."""

    def free_bytes(self) -> int | None:
        """How much room is left; None where that means nothing."""


class BatchCoding(CodingChoice, Protocol):
    """Chooses the coding of each batch, and so how large batches are."""

    @property
    def batch_pfns(self) -> int:
        """How many pfns the next batch has at most. From the thread that writes."""


@dataclass(frozen=True)
class SaveSettings:
    """How to save. `dirty`: "auto", "log" or "digest", how dirty pages are tracked in a live save.

    `digest`: the algorithm of the image's digest, or None for an image without. `header_digest`: of the part of the
    file before the stream, which PROVENANCE names beside the digest.
    `coding`: how pages are coded in an image of the dialect `draft-b`, or who chooses that for each batch; None for
    Xen's own format. `checksums`: whether records of that dialect have one each. `xor_cache_bytes`: how much memory
    is spent on last versions of pages, for `Codec.XOR` and a live save.
    `throttle`: what slows the domain down when `limits` ask for it. `storage`: where the image goes, for its room;
    None: nobody looks.
    `catch_up`: called after the last round in which the domain runs, unless it writes about as fast as is sent; it
    returns when what was written has arrived, or when that takes too long. So that time is no part of the downtime.
    `before_suspending`: called just before the domain is suspended: what is written from then on is waited for by it.
    `broken_s`: for how long there was no way to where the stream goes, in all so far; None: there always is one. When
    it grows while `catch_up` waits, another round follows.
    `batch_pfns`, `hole_pfns`: how many pfns are read, or asked about, at a time; None: what is fastest.
    """

    live: bool = False
    dirty: str = "auto"
    limits: Limits = field(default_factory=Limits)
    provenance: dict[str, Any] | None = None
    digest: DigestAlgorithm | None = None
    header_digest: HeaderDigest | None = None
    workers: int = WORKERS
    coding: Coding | BatchCoding | None = None
    checksums: bool = True
    xor_cache_bytes: int = XOR_CACHE_BYTES
    throttle: Throttle | None = None
    storage: Storage | None = None
    catch_up: Callable[[], None] | None = None
    before_suspending: Callable[[], None] | None = None
    broken_s: Callable[[], float] | None = None
    batch_pfns: int | None = None
    hole_pfns: int | None = None

    def __post_init__(self) -> None:
        if self.limits.on_stall is OnStall.THROTTLE and self.throttle is None:
            raise ValueError("there is nothing to throttle the domain with")

    @property
    def keeps_versions(self) -> bool:
        """Whether pages may be coded against what was sent before: in a single round none has a version before."""
        if self.coding is None or not self.live:
            return False
        return not isinstance(self.coding, Coding) or self.coding.codec is Codec.XOR
