"""Messages to libxl, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saverestore.helper.messages import (
    ARGUMENTS,
    FRAME_LENGTH,
    I32,
    LONGEST_FRAME,
    QUESTIONS,
    STRING,
    U32,
    U64,
    Level,
    MessageType,
    pack,
    unpack,
)

GOLDEN = {
    "0200 0300": (MessageType.SUSPEND,),
    "0a00 0700 03000000 01000000": (MessageType.SWITCH_QEMU_LOGDIRTY, 3, 1),
    "0600 0800 03000000": (MessageType.STATIC_DATA_DONE, 3),
    "1200 0900 0cf0fe0000000000 0ff0fe0000000000": (MessageType.RESTORE_RESULTS, 0xFEF00C, 0xFEF00F),
    "0a00 0a00 ffffffff 04000000": (MessageType.COMPLETE, -1, 4),
    "1d00 0100 08000000 ffffffff 05000000 7079786300 06000000 68656c6c6f00": (
        MessageType.LOG,
        Level.ERROR,
        -1,
        "pyxc",
        "hello",
    ),
    "2000 0200 02000000 6100 04000000 62206300 0100000000000000 ff00000000000000": (
        MessageType.PROGRESS,
        "a",
        "b c",
        1,
        255,
    ),
}

VALUES = {
    U32: st.integers(0, 0xFFFFFFFF),
    I32: st.integers(-(1 << 31), (1 << 31) - 1),
    U64: st.integers(0, (1 << 64) - 1),
    STRING: st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=200),
}

messages = st.sampled_from(MessageType).flatmap(
    lambda type: st.tuples(st.just(type), st.tuples(*(VALUES[kind] for kind in ARGUMENTS[type])))
)


@pytest.mark.parametrize(("text", "message"), GOLDEN.items(), ids=lambda value: None)
def test_a_message_is_these_bytes(text, message):
    assert pack(*message).hex() == text.replace(" ", "")


@given(messages)
def test_what_is_packed_unpacks_the_same(message):
    type, values = message
    frame = pack(type, *values)
    assert FRAME_LENGTH.unpack_from(frame)[0] == len(frame) - FRAME_LENGTH.size
    assert unpack(frame[FRAME_LENGTH.size :]) == (type, values)


@given(st.binary(max_size=64))
def test_no_bytes_make_unpacking_fail_but_with_a_value_error(body):
    try:
        type, values = unpack(body)
    except ValueError:
        return
    assert pack(type, *values)[FRAME_LENGTH.size :] == body or STRING in ARGUMENTS[type]


def test_the_longest_texts_fit_a_frame_and_are_cut():
    frame = pack(MessageType.LOG, Level.ERROR, 0, "ä" * 100_000, "ö\0" * 100_000)
    assert len(frame) <= LONGEST_FRAME
    assert unpack(frame[FRAME_LENGTH.size :])[0] == MessageType.LOG


def test_a_wrong_number_of_arguments_is_refused():
    with pytest.raises(ValueError, match="COMPLETE takes 2 arguments, not 1"):
        pack(MessageType.COMPLETE, 1)


def test_libxl_answers_what_its_generator_marks_as_having_an_answer():
    assert {type.name for type in MessageType if type not in QUESTIONS} == {
        "LOG",
        "PROGRESS",
        "RESTORE_RESULTS",
    }
