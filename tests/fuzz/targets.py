"""What is fuzzed: one function for each reader, which takes any bytes and may raise nothing at all.

What a reader may raise of damage is expected and caught here; a target also checks what can be checked of bytes
that were taken: that they read back the same, or that the kernels and their twin agree. `TARGETS` names them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import zlib
from collections.abc import Callable

import numpy as np

from saverestore.errors import ImageError
from saverestore.migrate.channel import Channel, SaidOtherwise
from saverestore.migrate.data import MessageSource
from saverestore.migrate.messages import MAX_BODY_BYTES, Hello, ProtocolError
from saverestore.migrate.protocol import HEADER, agreed_version, pack, unpack, unpack_header
from saverestore.stream import xor_rle
from saverestore.stream.codecs import Codec, decompress
from saverestore.stream.layout import ByteOrder
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.records import RECORD_CLASSES
from saverestore.stream.survey import survey
from saverestore.stream.undecodable import Undecodable
from saverestore.transport.base import EndOfStream
from saverestore.transport.connection import BadAcknowledgement, BrokenPeer, SocketConnection
from saverestore.transport.fd import FdSource

HEADERS_BYTES = 40
RECORD_HEADER_BYTES = 16
FOOTER_BYTES = 8
LONGEST_DECODED = 1 << 20


def opened(data: bytes) -> FdSource:
    fd = os.memfd_create("image")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return FdSource(fd, "image")


def image(data: bytes) -> None:
    """The whole of an image, whichever of its layers it begins with, in Xen's own format."""
    with opened(data) as source:
        found = survey(source)
    assert found.total_bytes <= len(data)
    if found.error is not None and found.error.offset is not None:
        assert found.error.offset <= len(data)


def with_right_checksums(data: bytes) -> bytes:
    """The image with the checksum of every record put right: damage must get past it to be of use here."""
    order = ">" if data[17:18] == b"\1" else "<"
    header = struct.Struct(order + "IIHHI")
    out, at = bytearray(data), HEADERS_BYTES
    while at + RECORD_HEADER_BYTES + FOOTER_BYTES <= len(out):
        _, length, options, _, _ = header.unpack_from(out, at)
        end = at + RECORD_HEADER_BYTES + length + -length % 8
        if end + FOOTER_BYTES > len(out):
            break
        begin = at if options & 2 else at + RECORD_HEADER_BYTES
        crc = zlib.crc32(memoryview(out)[begin:end]) if options & 1 else 0
        struct.pack_into(order + "I", out, end, crc)
        at = end + FOOTER_BYTES
    return bytes(out)


def draft_b(data: bytes) -> None:
    """An image of the dialect draft-b: once as it is, once with right checksums, read over memory like a domain's."""
    image(data)
    repaired = with_right_checksums(data)
    image(repaired)
    with opened(repaired) as source:
        try:
            reader = LibxcReader(source)
            while not reader.ended:
                record = reader.next()
                if isinstance(record, PageData) and record.nr_data * 4096 <= LONGEST_DECODED:
                    reader.read_pages([bytearray(record.nr_data * 4096)])
        except ImageError as error:
            assert error.offset is not None or "digest" in str(error)  # which does not say where


def deltas(data: bytes) -> None:
    """XOR+RLE: the kernels and their twin take and refuse the same, and make the same pages of it."""
    nr, order = (data[0] & 7) + 1 if data else 1, ByteOrder.BIG if data and data[0] & 8 else ByteOrder.LITTLE
    coded = memoryview(data[1:])
    lengths, good = xor_rle.twin.scan(coded, nr, order)
    try:
        found = xor_rle.lengths_of(coded, nr, order)
    except Undecodable as error:
        assert good < nr or "follow" in str(error)
        return
    assert good == nr
    assert np.array_equal(found, lengths)
    pages, by_twin = (np.full((nr, 4096), 0x11, dtype=np.uint8) for _ in range(2))
    good = xor_rle.twin.decode(coded, lengths, by_twin)
    try:
        xor_rle.decode(coded, lengths, pages)
    except Undecodable:
        assert good < nr
        return
    assert good == nr
    assert np.array_equal(pages, by_twin)


def codecs(data: bytes) -> None:
    """DEFLATE, zstd and LZ4: exactly the bytes that were asked for, or a refusal."""
    if len(data) < 2:
        return
    codec = (Codec.DEFLATE, Codec.ZSTD, Codec.LZ4)[data[0] % 3]
    length = 4096 * (data[1] % 8 + 1)
    with contextlib.suppress(Undecodable):
        assert len(decompress(codec, memoryview(data[2:]), length)) == length


RECORD_TYPES = sorted(RECORD_CLASSES)


def records(data: bytes) -> None:
    """The bodies of all records but PAGE_DATA: what is taken is packed to what is taken as the same again."""
    if not data:
        return
    kind = RECORD_CLASSES[RECORD_TYPES[data[0] % len(RECORD_TYPES)]]
    order = ByteOrder.BIG if data[0] & 0x80 else ByteOrder.LITTLE
    try:
        record = kind.unpack(data[1:], 7, order)
    except ImageError as error:
        assert error.offset == 7
        return
    assert kind.unpack(record.pack(order), 7, order) == record


def conversation(data: bytes) -> None:
    """All that another host sends in a migration: its greeting, an image amid messages, then messages to the end."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(data) + 4096)
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    with theirs, Channel(SocketConnection(ours, "peer", timeout_s=5)) as channel:
        with contextlib.suppress(*SAID_WRONG):
            agreed_version(channel.hear(Hello))
            source = MessageSource(channel)
            assert source.skip_to_end() <= len(data)
        with contextlib.suppress(*SAID_WRONG):
            while True:
                message = channel.next_message()
                if len(data) < MAX_BODY_BYTES // 2:  # fields that are left out have defaults, which take room
                    packed = pack(message)
                    head = unpack_header(packed[: HEADER.size])
                    assert unpack(head, packed[HEADER.size :]) == message


SAID_WRONG = (ProtocolError, SaidOtherwise, BrokenPeer, EndOfStream, BadAcknowledgement)

TARGETS: dict[str, Callable[[bytes], None]] = {
    "image": image,
    "draft-b": draft_b,
    "deltas": deltas,
    "codecs": codecs,
    "records": records,
    "conversation": conversation,
}
