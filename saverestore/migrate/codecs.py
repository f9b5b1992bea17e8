"""How the pages of a migration are coded: what was asked for, and what the destination can decode.

The destination names in ACCEPTED what it decodes; one that says nothing gets Xen's own format. Each record of the
image says how its pages are coded, so nothing else needs to be agreed on, and the coding may change at any time.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, field, replace

from saverestore.engine.settings import XOR_CACHE_BYTES
from saverestore.migrate.messages import Accepted, Message
from saverestore.stream.codecs import PACKAGES, Codec, Coding

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CodecOptions:
    """What was asked for. `coding`: of `Codec.NONE`, Xen's own format. `xor_cache_bytes`: see SaveSettings."""

    coding: Coding = field(default_factory=Coding)
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


def coding_for(options: CodecOptions, there: tuple[str, ...], peer: str) -> Coding | None:
    """How pages are coded for a destination that decodes these; None: not at all, in Xen's own format."""
    coding = options.coding
    if coding.codec is Codec.NONE:
        return None
    if coding.codec.name.lower() not in there:
        LOG.warning("%s cannot decode %s: pages are sent as they are", peer, coding.codec.name.lower())
        return None
    return coding
