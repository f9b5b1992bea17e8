"""Framing of the conversation of two hosts, and the version that they agree on. Pure.

    offset  length
      0       2     0x504D ("PM"), big-endian as all of it
      2       2     type (MessageType)
      4       4     length of the body in bytes
      8       …     body: JSON, at most 64 KiB; of DATA bytes of the image stream, at most 64 MiB

The first message in each direction is HELLO, which has the range of versions. Types and bodies are in `messages`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from saverestore.errors import ErrorName
from saverestore.migrate.messages import (
    MAX_BODY_BYTES,
    Hello,
    Message,
    MessageType,
    ProtocolError,
    for_people,
    pack_body,
    unpack_body,
)

MAGIC = 0x504D
HEADER = struct.Struct(">HHI")
MAX_DATA_BYTES = 64 << 20

LOWEST_VERSION = 1
HIGHEST_VERSION = 1


class VersionMismatch(ProtocolError):
    """Both sides speak the protocol, and no version of it that the other does."""

    name = ErrorName.PEER_VERSION


@dataclass(frozen=True)
class Header:
    """The head of a message: its type, and how long its body is."""

    type: MessageType
    length_bytes: int


def pack_header(kind: MessageType, length_bytes: int) -> bytes:
    """The head of a message."""
    return HEADER.pack(MAGIC, kind, length_bytes)


def unpack_header(head: bytes) -> Header:
    """The head of a message, of `HEADER.size` bytes. ProtocolError when it is none, or unknown, or oversized."""
    magic, kind, length_bytes = HEADER.unpack(head)
    if magic != MAGIC:
        shown = for_people(head.decode("ascii", errors="replace"))
        raise ProtocolError(f"what it sent is not a message of this protocol; it begins with {shown!r}")
    try:
        found = MessageType(kind)
    except ValueError:
        raise ProtocolError(f"a message of unknown type {kind}") from None
    most = MAX_DATA_BYTES if found is MessageType.DATA else MAX_BODY_BYTES
    if length_bytes > most:
        raise ProtocolError(f"a message {found.name} of {length_bytes} bytes: {most} are the most")
    return Header(found, length_bytes)


def pack(message: Message) -> bytes:
    """A whole message. DATA is not one: see `pack_header`."""
    body = pack_body(message)
    return pack_header(message.type, len(body)) + body


def unpack(header: Header, body: bytes) -> Message:
    """The message of this head, which is not DATA, and body."""
    if header.type is MessageType.DATA:
        raise ProtocolError("bytes of the image stream where a message belongs")
    return unpack_body(header.type, body)


def agreed_version(peer: Hello, *, lowest: int = LOWEST_VERSION, highest: int = HIGHEST_VERSION) -> int:
    """The highest version that both sides speak. VersionMismatch when there is none."""
    version = min(peer.highest, highest)
    if peer.lowest > peer.highest:
        raise ProtocolError(f"a range of versions from {peer.lowest} to {peer.highest}")
    if version < max(peer.lowest, lowest):
        program = for_people(peer.program, 100) or "it"
        raise VersionMismatch(
            f"{program} speaks versions {peer.lowest} to {peer.highest} of the migration protocol, and this side "
            f"{lowest} to {highest}"
        )
    return version
