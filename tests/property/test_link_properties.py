"""Several links that delay, reorder and break at will: each byte arrives once, in order; no older page is last."""

from __future__ import annotations

import struct
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_links import SCRIPTS, WINDOW, Ends, Script, by_tls

from saverestore.errors import TransportError
from saverestore.transport.links import LinkedConnection

PAGES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 900)), max_size=60)
"""A write each: which page, and how many bytes."""
ROW = struct.Struct("<III")


def write_pages(connection: LinkedConnection, pages: list[tuple[int, int]]) -> None:
    for version, (page, size) in enumerate(pages):
        connection.outgoing.writev([ROW.pack(page, version, size), bytes([version % 256]) * size])


def read_pages(connection: LinkedConnection, nr: int, newest: dict[int, int]) -> None:
    for version in range(nr):
        page, found, size = ROW.unpack(connection.incoming.read(ROW.size))
        assert found == version > newest.get(page, -1)
        newest[page] = found
        assert connection.incoming.read(size) == bytes([version % 256]) * size


LINKS = given(scripts=SCRIPTS, wanted=st.sampled_from([1, 2, 4]), there=PAGES, back=PAGES)


@LINKS
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_links_do_no_older_page_comes_behind_a_newer_one_and_none_is_lost(
    scripts, wanted, there, back
):
    check_order(Ends(scripts, wanted), there, back)


@LINKS
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_holds_over_tls_with_certificates_made_for_it(scripts, wanted, there, back):
    pytest.importorskip("cryptography")
    check_order(Ends(scripts, wanted, over=by_tls), there, back)


def check_order(ends: Ends, there: list[tuple[int, int]], back: list[tuple[int, int]]) -> None:
    """Write these pages in both directions, and see what arrives."""
    failures: list[BaseException] = []
    newest: list[dict[int, int]] = [{}, {}]

    def run(work, *given) -> threading.Thread:
        def inner() -> None:
            try:
                work(*given)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=inner, daemon=True)
        thread.start()
        return thread

    threads = [
        run(write_pages, ends.one, there),
        run(write_pages, ends.other, back),
        run(read_pages, ends.other, len(there), newest[0]),
        run(read_pages, ends.one, len(back), newest[1]),
    ]
    end = time.monotonic() + 60
    while any(thread.is_alive() for thread in threads):
        assert failures == []  # the others may wait for it forever
        assert time.monotonic() < end
        time.sleep(0.001)
    assert failures == []
    assert newest == [{page: version for version, (page, _) in enumerate(pages)} for pages in (there, back)]
    ends.close()


@pytest.mark.parametrize("wanted", [1, 4])
def test_a_link_that_passes_nothing_any_more_is_noticed_within_the_silence(wanted):
    ends = Ends([Script(cut_after=3000, silently=True)], wanted, timeout_s=0.5)
    pages = [(n % 5, 700) for n in range(40)]
    newest: dict[int, int] = {}
    writer = threading.Thread(target=write_pages, args=(ends.one, pages))
    begun = time.monotonic()
    writer.start()
    read_pages(ends.other, len(pages), newest)
    writer.join()
    assert time.monotonic() - begun < 20  # nothing else ends it: the relay waits for 30 s
    assert 0 < ends.one.resent_bytes <= WINDOW
    ends.close()


@pytest.mark.parametrize("wanted", [1, 4])
def test_a_link_that_has_broken_for_one_side_alone_is_replaced_at_once(wanted):
    ends = Ends([Script(cut_after=3000, for_one_side=True)] * wanted, wanted)
    begun = time.monotonic()
    check_order(ends, *[[(n % 5, 700) for n in range(40)]] * 2)
    assert time.monotonic() - begun < 10  # the silence is 20 s
    assert ends.other.breaks.mended == 0


def test_room_that_is_gone_again_as_a_link_breaks_does_no_harm():
    ends = Ends([], 1)
    answers = iter([True])  # and False when looked at once more: what was on its way waits again
    ends.one.wait_until(ends.one._room, lambda: next(answers, False), "took nothing")
    ends.close()


def test_without_a_new_link_in_time_both_sides_give_up():
    ends = Ends([Script(cut_after=300)], 1, resume_for_s=0.3)
    ends.one._keeper.open_link = lambda _attempt: (_ for _ in ()).throw(TransportError("no way"))
    begun = time.monotonic()
    with pytest.raises(TransportError, match="cannot be reached any more"):
        ends.one.outgoing.write(bytes(50_000))
    with pytest.raises(TransportError, match="cannot be reached any more"):
        ends.other.incoming.read(50_000)
    assert 0.2 < time.monotonic() - begun < 20
    ends.close()
