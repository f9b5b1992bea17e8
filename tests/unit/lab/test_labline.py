from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from xenlab.labline import GuestLog, parse_line, parse_log

BOOT = "0123456789abcdef"


def lab(counter: int, uptime: float = 1.5, *, hash_: str = BOOT, corrupt: int = 0, fpu: str = "ok") -> str:
    return (
        f"LAB counter={counter} uptime={uptime:.2f} hash={hash_} vcpus=2 dirtied=10 rate=5 verified=9 "
        f"corrupt={corrupt} fpu={fpu} fpu_checks=8 pages=4096 ymm=1"
    )


def test_line_is_parsed_whatever_stands_before_it() -> None:
    found = parse_line("[  1.2] kernel: x " + lab(17, 18.02))
    assert found is not None
    assert (found.counter, found.uptime_s, found.vcpus, found.pages) == (17, 18.02, 2, 4096)
    assert parse_line("LAB counter=1 uptime=") is None


def test_last_line_counts_only_when_it_is_complete() -> None:
    log = parse_log(lab(1, 1) + "\r\n" + lab(2, 2))
    assert log.last is not None
    assert (log.last.counter, log.lines) == (1, 1)


def test_every_complaint_is_counted_and_the_log_is_not_clean() -> None:
    text = f"{lab(1, 1)}\nCORRUPT pfn=0x1 page=2\r\nx FPU-CORRUPT vcpu=0\n{lab(2, 2, corrupt=1, fpu='CORRUPT')}\n"
    log = parse_log(text)
    assert log.complaints == ["CORRUPT pfn=0x1 page=2", "FPU-CORRUPT vcpu=0"]
    assert log.last is not None
    assert log.last.counter == 2
    assert not log.clean()


def test_word_corrupt_inside_a_lab_line_is_no_complaint_of_its_own() -> None:
    assert parse_log(lab(1, fpu="CORRUPT") + "\n").complaints == []


def test_gap_and_time_going_back_are_seen_within_a_boot_only() -> None:
    log = parse_log("\n".join([lab(5, 5), lab(7, 4), lab(1, 1, hash_="f" * 16), ""]))
    assert log.gaps == [(5, 7)]
    assert log.backwards == [(5.0, 4.0)]
    assert log.boots == 2


def test_guest_that_goes_on_after_a_restore_is_clean() -> None:
    log = parse_log("\n".join([lab(1, 1), lab(2, 2), "xen: resumed", lab(3, 3.1), ""]))
    assert log.clean()
    assert log.gaps == []
    assert parse_log("").clean() is False


@given(st.lists(st.integers(min_value=0, max_value=400), max_size=6))
def test_a_log_read_bit_by_bit_tells_the_same(cuts):
    text = "\r\n".join(
        [lab(5, 5), "CORRUPT pfn=0x1", lab(7, 4), "xen: resumed", lab(1, 1, hash_="f" * 16), lab(2, 2)]
    )
    whole, log, taken = parse_log(text), GuestLog(), 0
    for cut in [*sorted(cuts), len(text)]:
        taken += log.take(text[taken : max(cut, taken)])
    assert log == whole
    assert text[taken:] == lab(2, 2)
