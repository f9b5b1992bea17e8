"""The two outer layers: xl's header and the libxl stream."""

from __future__ import annotations

import struct

import pytest
from stream_samples import MemorySink, StingySource, golden, source_of

from saverestore.errors import ImageError
from saverestore.stream import (
    BadHeader,
    BadRecord,
    LibxlReader,
    LibxlRecordType,
    LibxlWriter,
    OutOfOrder,
    XlHeader,
)
from saverestore.stream.libxl import BODY_MAX, EmulatorId, EmulatorState
from saverestore.stream.xl import CONFIG_MAX, MAGIC
from saverestore.transport import EndOfStream

T = LibxlRecordType
XL_IMAGE = golden("hvm-v2-xl")
LIBXL_AT = XL_IMAGE.index(b"LibxlFmt")


def xl_header(
    mark: int = 0x01020304, mandatory: int = 3, data: bytes = b"", length: int | None = None
) -> bytes:
    return MAGIC + struct.pack("<4I", mark, mandatory, 0, len(data) if length is None else length) + data


def config(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(text) if length is None else length) + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"X" * 48, "not an image of xl"),
        (xl_header(mark=0x04030201), "big-endian"),
        (xl_header(mark=7), "byte order mark is 0x00000007"),
        (xl_header(mandatory=7), "unknown mandatory flags 0x4"),
        (xl_header(mandatory=1), "a legacy image"),
        (xl_header(length=CONFIG_MAX + 5), "declares 16777221 bytes of data"),
        (xl_header(data=b"ab"), "2 bytes of data in xl's header, too few"),
        (xl_header(data=config(b"{}\0", 4)), "a configuration of 4 bytes in 7 bytes of data"),
        (xl_header(data=config(b"{}\0", 0xFFFF_FFFF)), "a configuration of 4294967295 bytes"),
        (xl_header(data=config(b"{}")), "does not end with its one NUL"),
        (xl_header(data=config(b"{\0}\0")), "does not end with its one NUL"),
        (xl_header(mandatory=2, data=config(b"{}\0")), "is not JSON"),
    ],
)
def test_an_xl_header_that_cannot_be_read_is_named(data, message):
    with StingySource(data) as source, pytest.raises(BadHeader, match=message):
        XlHeader.read(source)
    assert source.longest_request <= 48


@pytest.mark.parametrize(
    "data", [xl_header(), xl_header(mandatory=2), xl_header(mandatory=2, data=config(b""))]
)
def test_an_xl_header_may_have_no_configuration(data):
    with source_of(data) as source:
        assert XlHeader.read(source) == XlHeader(None)
        assert source.at_end()


def test_what_a_newer_xl_puts_behind_the_configuration_is_passed_over():
    with source_of(xl_header(data=config(b"{}\0") + b"news") + b"next") as source:
        assert XlHeader.read(source) == XlHeader(b"{}")
        assert source.read(4) == b"next"


def test_a_cut_configuration_is_a_short_image():
    message = "1 more byte was expected for the domain's configuration"
    with source_of(xl_header(data=config(b"{}\0"))[:-1]) as source, pytest.raises(EndOfStream, match=message):
        XlHeader.read(source)


@pytest.mark.parametrize("text", [b"{}", b"{}\0"])
def test_the_configuration_is_written_with_one_nul(text):
    sink = MemorySink()
    XlHeader.write(sink, text)
    assert sink.data == xl_header(data=config(b"{}\0"))


@pytest.mark.parametrize("text", [b"{\0}", b"x" * CONFIG_MAX])
def test_a_configuration_no_reader_takes_is_not_written(text):
    sink = MemorySink()
    with pytest.raises(ImageError, match="cannot go into xl's header"):
        XlHeader.write(sink, text)
    assert not sink.data


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"X", "not a libxl stream"),
        (8, b"\0\0\0\3", "libxl stream of version 3"),
        (12, b"\0\0\0\1", "big-endian libxl stream"),
        (12, b"\0\0\0\4", "unknown options 0x4"),
    ],
)
def test_a_libxl_header_that_cannot_be_read_is_named(offset, value, message):
    data = bytearray(XL_IMAGE[LIBXL_AT:])
    data[offset : offset + len(value)] = value
    with source_of(bytes(data)) as source, pytest.raises(BadHeader, match=message):
        LibxlReader(source)


def test_a_converted_legacy_stream_is_told():
    with source_of(b"LibxlFmt\0\0\0\2\0\0\0\2") as source:
        assert LibxlReader(source).legacy


def libxl_stream(*records: tuple[int, bytes]) -> bytes:
    data = b"LibxlFmt\0\0\0\2\0\0\0\0"
    for type, body in records:
        data += struct.pack("<II", type, len(body)) + body + bytes(-len(body) % 8)
    return data


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([(6, b"")], "unknown libxl record 0x6"),
        ([(1, b""), (0x8000_0000, b"")], "unknown libxl record 0x80000000"),
        ([(0, b"")], "libxl END record at the start, where there could be LIBXC_CONTEXT"),
        ([(3, bytes(8))], "libxl EMULATOR_CONTEXT record at the start"),
        ([(1, b""), (1, b"")], "a second libxl LIBXC_CONTEXT"),
        ([(1, b"x")], "libxl LIBXC_CONTEXT record of 1 bytes, longer than the 0"),
        ([(1, b""), (2, bytes(7))], "libxl EMULATOR_XENSTORE_DATA: body of 7 bytes"),
        ([(1, b""), (3, struct.pack("<II", 3, 0))], "unknown emulator 3"),
        ([(1, b""), (5, b"x")], "libxl CHECKPOINT_STATE: body of 1 bytes"),
    ],
)
def test_a_libxl_record_that_breaks_the_format_is_named(records, message):
    with source_of(libxl_stream(*records)) as source:
        reader = LibxlReader(source)
        with pytest.raises(BadRecord, match=message) as caught:
            while not reader.ended:
                reader.next()
    assert caught.value.offset == 16 + 8 * (len(records) - 1)


@pytest.mark.parametrize("type", list(T))
def test_a_libxl_record_longer_than_its_limit_is_rejected_before_allocation(type):
    data = libxl_stream((1, b"")) if type is not T.LIBXC_CONTEXT else libxl_stream()
    with StingySource(data + struct.pack("<II", type, BODY_MAX[type] + 1)) as source:
        reader = LibxlReader(source)
        with pytest.raises(BadRecord, match="longer than"):
            while True:
                reader.next()
        assert source.longest_request <= 16


def test_nonzero_padding_in_the_libxl_stream_is_refused():
    data = libxl_stream((1, b""), (3, struct.pack("<II", 2, 0) + b"Q"))[:-1] + b"\1"
    with source_of(data) as source:
        reader = LibxlReader(source)
        reader.next()
        with pytest.raises(BadRecord, match="nonzero padding 00000000000001"):
            reader.next()


def test_emulator_records_are_taken_apart():
    state = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"data")
    assert EmulatorState.unpack(state.pack(), 0, T.EMULATOR_CONTEXT) == state


def test_the_libxl_writer_keeps_the_order():
    sink = MemorySink()
    writer = LibxlWriter(sink)
    with pytest.raises(OutOfOrder):
        writer.end()
    writer.libxc_context()
    with pytest.raises(BadRecord):
        writer.record(T.EMULATOR_CONTEXT, b"short")
    writer.record(T.CHECKPOINT_END)
    writer.end()
    assert writer.ended
    with pytest.raises(OutOfOrder, match="after END"):
        writer.record(T.CHECKPOINT_END)
    assert sink.data == libxl_stream((1, b""), (4, b""), (0, b""))


def test_asking_for_more_after_the_end_of_libxl_is_a_mistake_of_the_caller():
    with source_of(libxl_stream((1, b""), (0, b""))) as source:
        reader = LibxlReader(source)
        reader.next()
        reader.next()
        with pytest.raises(RuntimeError):
            reader.next()
