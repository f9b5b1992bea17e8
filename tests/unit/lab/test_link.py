from __future__ import annotations

import pytest
from xenlab import link
from xenlab.errors import LabError
from xenlab.link import CUT, Link


def test_rate_delay_and_loss_are_read_as_people_write_them() -> None:
    assert link.parse("100mbit", "20ms", "0.1%") == Link(100_000_000, 20_000, 0.1)
    assert link.parse("1.5gbit") == Link(1_500_000_000)
    assert link.parse(delay="150us") == Link(delay_us=150)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"rate": "100"}, "bit, kbit, mbit, gbit"),
        ({"rate": "fast"}, "bit, kbit, mbit, gbit"),
        ({"rate": "0mbit"}, "greater than 0"),
        ({"delay": "20"}, "us, ms, s"),
        ({"delay": "-20ms"}, "us, ms, s"),
        ({"loss": "0.1"}, "%"),
        ({"loss": "101%"}, "at most 100%"),
    ],
)
def test_a_value_that_is_none_is_refused_with_how_it_is_written(
    values: dict[str, str], complaint: str
) -> None:
    with pytest.raises(LabError, match=complaint):
        link.parse(**values)


def test_what_is_on_the_way_at_full_rate_has_room_in_the_queue() -> None:
    assert Link(100_000_000).queue_frames == link.LEAST_QUEUE
    slow = Link(1_000_000_000, delay_us=100_000)
    assert slow.queue_frames * link.FULL_FRAME_BYTES > 1_000_000_000 // 8 // 10


def test_dom0_is_given_bytes_and_microseconds() -> None:
    assert Link(8_000_000, 20_000, 0.1).arguments() == [
        "--rate-bytes=1000000",
        "--delay-us=20000",
        "--loss-percent=0.1",
        "--limit=1000",
    ]
    assert "--loss-percent=100" in CUT.arguments()


def test_a_link_is_printed_in_words() -> None:
    assert str(Link(100_000_000, 20_000, 0.1)) == "at 100 Mbit/s, 20 ms late, 0.1% lost"
    assert str(Link()) == "at any rate, 0 ms late, 0% lost"
    assert str(CUT) == "nothing (cut)"
