"""Headers that cannot be read say what they are."""

from __future__ import annotations

import pytest
from stream_samples import golden, source_of

from saverestore.errors import ExitCode
from saverestore.stream import BadHeader, LibxcReader
from saverestore.transport import EndOfStream


def changed(offset: int, value: str) -> bytes:
    data = bytearray(golden("pv-v3"))
    data[offset : offset + len(bytes.fromhex(value))] = bytes.fromhex(value)
    return bytes(data)


@pytest.mark.parametrize(
    ("offset", "value", "message", "place"),
    [
        (0, "fe", "not a libxc image: it starts with the bytes feff", 0),
        (8, "46", "not a libxc image", 0),
        (12, "00000000", "version 0: versions 1 .draft-b., 2 and 3 can be read", 0),
        (12, "00000004", "version 4: versions 1 .draft-b., 2 and 3 can be read", 0),
        (12, "03000000", "version 50331648", 0),
        (16, "0001", "big-endian image", 0),
        (16, "0002", "reserved bits are set in the image header", 0),
        (20, "01", "reserved bits are set in the image header", 0),
        (24, "00", "unknown domain type 0; known are 1 X86_PV, 2 X86_HVM, 3 ARM64", 24),
        (24, "04", "unknown domain type 4", 24),
        (28, "0d", "page shift 13", 24),
        (30, "01", "reserved bits are set in the domain header", 24),
    ],
)
def test_a_header_that_cannot_be_read_is_named(offset, value, message, place):
    with source_of(changed(offset, value)) as source, pytest.raises(BadHeader, match=message) as caught:
        LibxcReader(source)
    assert caught.value.offset == place
    assert caught.value.exit_code == ExitCode.IMAGE
    assert "image: " in str(caught.value)


@pytest.mark.parametrize(
    ("length", "what"),
    [(0, "has no data: the image header"), (23, "the image header"), (39, "the domain header")],
)
def test_a_source_that_ends_within_a_header_is_too_short(length, what):
    with source_of(golden("pv-v3")[:length]) as source, pytest.raises(EndOfStream, match=what):
        LibxcReader(source)


def test_bytes_taken_before_to_tell_the_format_are_handed_over():
    with source_of(golden("hvm-v3")) as source:
        prefix = source.read(8)
        assert LibxcReader(source, prefix).domain.xen_minor == 20
