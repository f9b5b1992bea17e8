"""What stock xl says, as bytes: whole, in part, or something else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saverestore.errors import ErrorName
from saverestore.migrate.xl_words import (
    BANNER,
    GRANT,
    LONGEST_SAID,
    NOT_STARTED,
    READY,
    RECEIVE,
    RECEIVE_PAUSED,
    REPORT,
    STARTED,
    AskedFor,
    Left,
    NotXl,
    asked_for,
    is_whole,
    left_there,
)

WORDS = (BANNER, READY, GRANT, REPORT)
words = st.sampled_from(WORDS)


def test_words_have_the_lengths_that_xl_reads():
    assert [len(word) for word in WORDS] == [54, 34, 44, 39]
    assert [word.endswith(b"\0") for word in WORDS] == [False, True, True, True]


@given(words, st.data())
def test_the_beginning_of_a_word_is_not_whole_and_no_error(word, data):
    n = data.draw(st.integers(0, len(word)))
    assert is_whole(word[:n], word, "b", "word") is (n == len(word))


@given(words, st.binary(min_size=1, max_size=80))
def test_what_is_not_the_word_is_refused_at_once_and_shown_without_control_characters(word, said):
    if word.startswith(said):
        return
    with pytest.raises(NotXl) as caught:
        is_whole(said, word, "b", "word")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert caught.value.name is ErrorName.PROTOCOL_VIOLATED


@given(words, st.data())
def test_a_single_wrong_byte_is_found(word, data):
    at = data.draw(st.integers(0, len(word) - 1))
    said = bytearray(word)
    said[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(NotXl):
        is_whole(bytes(said[: at + 1]), word, "b", "word")


@given(st.booleans(), st.integers(1, 255), st.booleans())
def test_a_receiver_that_has_removed_its_copy_is_believed(said_ready, status, all_sent):
    said = (READY if said_ready else b"") + REPORT + bytes([status]) + GRANT
    assert left_there(said, all_sent=all_sent) is Left.NOTHING
    assert len(said) <= LONGEST_SAID


@given(st.binary(max_size=LONGEST_SAID), st.booleans())
def test_any_other_last_words_leave_it_open(said, all_sent):
    expected = Left.INCOMPLETE if not said and not all_sent else Left.UNKNOWN
    assert left_there(said, all_sent=all_sent) is expected


@pytest.mark.parametrize("cut", [1, len(GRANT), len(GRANT) + 1, len(GRANT) + 5])
def test_a_report_that_is_cut_short_leaves_it_open(cut):
    said = READY + REPORT + NOT_STARTED + GRANT
    assert left_there(said[:-cut], all_sent=True) is Left.UNKNOWN
    assert left_there(READY + REPORT + STARTED + GRANT, all_sent=True) is Left.UNKNOWN


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (RECEIVE, AskedFor()),
        (RECEIVE_PAUSED, AskedFor(paused=True)),
        ("xl -t migrate-receive", AskedFor()),
        ("xl -t -T -vvv migrate-receive -e -d -p", AskedFor(paused=True, watched=False)),
        ("  xl  migrate-receive  -d ", AskedFor()),
    ],
)
def test_what_xl_migrate_asks_ssh_for_is_taken_apart(command, asked):
    assert asked_for(command) == asked


@pytest.mark.parametrize(
    "command",
    [
        *(
            "",
            "xl",
            "xl list",
            "xl migrate-receive; id",
            "xl migrate-receive -r",
            "xl migrate-receive --colo",
        ),
        *(
            "xl migrate-receive -p x",
            "/bin/xl migrate-receive",
            "xl -f migrate-receive",
            "xl migrate-receive\0",
        ),
    ],
)
def test_anything_else_is_not_what_xl_migrate_asks_for(command):
    assert asked_for(command) is None
