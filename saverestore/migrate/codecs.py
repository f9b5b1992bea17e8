"""How the pages of a migration are coded: what was asked for, and what the destination can decode.

The destination names in ACCEPTED what it decodes; one that says nothing gets Xen's own format. Each record of the
image says how its pages are coded, so nothing else needs to be agreed on, and the coding may change at any time.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saverestore.engine.auto_coding import CANDIDATES, AutoCoding
from saverestore.engine.settings import WORKERS, XOR_CACHE_BYTES
from saverestore.migrate.messages import Accepted, Message
from saverestore.stream.codecs import PACKAGES, Codec, Coding
from saverestore.transport.base import ByteSink
from saverestore.transport.cores import IdleCores
from saverestore.transport.link_rate import LinkRate
from saverestore.transport.passing import PassingSink

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodecOptions:
    """What was asked for. `coding`: None, whatever lets a batch arrive first; of `Codec.NONE`, Xen's own format.

    `xor_cache_bytes`: see SaveSettings.
    """

    coding: Coding | None = None
    xor_cache_bytes: int = XOR_CACHE_BYTES


def available() -> tuple[str, ...]:
    """The names of the codecs that this host has libraries for, which are not imported for that."""
    return tuple(codec.name.lower() for codec in Codec if codec not in PACKAGES or _is_installed(codec))


def _is_installed(codec: Codec) -> bool:
    module, _, _ = PACKAGES[codec]
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def with_codecs(message: Message) -> Message:
    """ACCEPTED with what this host decodes; any other message as it is."""
    return replace(message, codecs=available()) if isinstance(message, Accepted) else message


class MeasuredSink(PassingSink[ByteSink]):
    """What the image is written to; it finds out how fast the link is."""

    def __init__(self, sink: ByteSink, rate: LinkRate) -> None:
        super().__init__(sink)
        self._rate = rate

    def writev(self, buffers: Sequence[ReadableBuffer]) -> None:
        """See ByteSink."""
        since, before = self._rate.writing(), self.offset
        super().writev(buffers)
        self._rate.wrote(self.offset - before, since)


def coding_for(
    options: CodecOptions, there: tuple[str, ...], peer: str, rate: LinkRate
) -> Coding | AutoCoding | None:
    """How pages are coded for a destination that decodes these codecs; None: not at all, in Xen's own format.

    `rate`: how fast the link is, for who chooses by that.
    """
    coding = options.coding
    if coding is None:
        known = set(there) & set(available())
        candidates = [one for one in CANDIDATES if one.codec.name.lower() in known]
        return AutoCoding(candidates, rate, IdleCores(), workers=WORKERS) if there else None
    if coding.codec is Codec.NONE:
        return None
    if coding.codec.name.lower() not in there:
        LOG.warning("%s cannot decode %s: pages are sent as they are", peer, coding.codec.name.lower())
        return None
    return coding
