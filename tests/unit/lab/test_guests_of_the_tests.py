"""What the tests on real Xen read of a log: the same as reading it whole, though they read only what is new."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests/xen"))
    monkeypatch.syspath_prepend(str(ROOT / "tools/xenlab"))
    from xen_lab import Guest

    monkeypatch.setattr(Guest, "log", tmp_path / "guest.log")
    return Guest("web1", "pvh", 1)


def line(counter: int, boot: str = "0" * 16) -> str:
    return (
        f"LAB counter={counter} uptime={counter}.00 hash={boot} vcpus=1 dirtied=5 rate=5 verified=5 "
        f"corrupt=0 fpu=ok fpu_checks=1 pages=8 ymm=1\n"
    )


def whole(text: str) -> dict[str, object]:
    from labline import parse_log

    return parse_log(text).as_dict()


def test_a_log_that_grows_by_any_pieces_is_read_as_if_it_were_read_whole(guest):
    text = "".join(line(at) for at in range(40)) + "CORRUPT pfn=0x1\n" + line(43)
    chance, at = random.Random(1), len(line(0))
    while at < len(text):
        guest.log.write_text(text[:at])
        assert guest.state() == whole(text[:at])
        at += chance.randrange(1, 150)


def test_a_log_that_was_begun_anew_is_read_from_its_start(guest):
    for boot, lines in (("1", 9), ("2", 3), ("3", 20), ("4", 20)):
        text = "".join(line(at, boot * 16) for at in range(lines))
        guest.log.write_text(text)
        assert guest.state() == whole(text)
        assert guest.state()["boots"] == 1
