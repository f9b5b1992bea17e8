"""What `pyrestore` tells of the wall clock of an ARM guest."""

from __future__ import annotations

import datetime

import pytest

from saverestore.cli.pyrestore import clock_note
from saverestore.stream.records import Provenance

NOW = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("ago", "told"),
    [
        (datetime.timedelta(seconds=5), "5.0 s ago"),
        (datetime.timedelta(minutes=3), "3 min ago"),
        (datetime.timedelta(hours=7), "7 h ago"),
        (datetime.timedelta(days=9), "9 days ago"),
    ],
)
def test_it_is_told_how_long_the_clock_stood_still(ago: datetime.timedelta, told: str) -> None:
    assert told in clock_note("a1", NOW - ago, NOW)


@pytest.mark.parametrize("saved_at", [None, NOW + datetime.timedelta(seconds=1)])
def test_an_image_that_tells_no_time_or_one_in_the_future_is_not_quoted(
    saved_at: datetime.datetime | None,
) -> None:
    note = clock_note("a1", saved_at, NOW)
    assert " ago" not in note
    assert "since it was saved" in note


@pytest.mark.parametrize(
    "fields", [{}, {"time": 5}, {"time": "yesterday"}, {"time": "2026-03-01T12:00:00"}, {"time": None}]
)
def test_a_time_of_the_image_that_cannot_be_read_is_none(fields: dict[str, object]) -> None:
    assert Provenance(fields).time is None


def test_the_time_of_the_image_is_read_with_its_offset() -> None:
    assert Provenance({"time": "2026-03-01T13:00:00+01:00"}).time == NOW
