"""Private copies of batches, and the memory they are in."""

from __future__ import annotations

import numpy as np
import pytest
from memory_guests import opened

from saverestore.engine.copies import Copies
from saverestore.guest.ports import PageBatch
from saverestore.stream.layout import PAGE_SIZE
from saverestore.testing.domain import MemoryDomain

NR_PFNS = 100


@pytest.fixture
def guest():
    with opened(MemoryDomain.pvh(NR_PFNS, hole=range(50, 60))) as found:
        yield found


def read(guest, pfns):
    return guest.read_pages(np.array(pfns, dtype=np.uint64), final=False)


def test_a_copy_has_all_that_the_batch_had_and_the_batch_is_closed(guest):
    guest.domain.write([3], 7)
    with Copies(10).of(read(guest, [3, 55, 4])) as copy:
        assert guest.buffers.nr_open == 0
        assert copy.pfns.tolist() == [3, 55, 4]
        assert copy.with_data.tolist() == [True, False, True]
        assert (copy.data == guest.domain.read(np.array([3, 4], dtype=np.uint64))).all()
        assert b"".join(copy.pages) == copy.data.tobytes()


def test_memory_is_used_again_once_a_copy_is_closed_and_not_before(guest):
    copies = Copies(10)
    first, second = copies.of(read(guest, [1, 2])), copies.of(read(guest, [3, 4]))
    assert not np.shares_memory(first.data, second.data)
    place = first.data.ctypes.data
    first.close()
    first.close()  # twice is once
    third, fourth = copies.of(read(guest, [5, 6])), copies.of(read(guest, [7, 8]))
    assert third.data.ctypes.data == place
    assert not np.shares_memory(third.data, fourth.data)
    assert (second.data == guest.domain.read(np.array([3, 4], dtype=np.uint64))).all()


def test_zero_pages_are_told_whatever_was_in_the_memory_before(guest):
    copies = Copies(10)
    pages = {pfn: bytes(PAGE_SIZE) if pfn % 3 else bytes([pfn]) * PAGE_SIZE for pfn in range(1, 21)}
    for pfn, page in pages.items():
        guest.domain.frames[guest.domain.p2m[pfn]] = np.frombuffer(page, dtype=np.uint8)
    for pfns in ([1, 2, 3, 4], [3, 6, 1, 9], [2, 4, 5], [7, 8, 10, 11], [12, 15, 18]):
        with copies.of(read(guest, pfns)) as copy:
            assert copy.data.tobytes() == b"".join(pages[pfn] for pfn in pfns)
            assert copy.zero.tolist() == [pfn % 3 != 0 for pfn in pfns]
            part = copy.only(np.array([pfn > 3 for pfn in pfns]))
            assert part.zero.tolist() == [pfn % 3 != 0 for pfn in pfns if pfn > 3]


def test_a_part_of_a_copy_is_in_memory_of_its_own_and_gives_back_that_of_the_whole(guest):
    copies = Copies(10)
    whole = copies.of(read(guest, [1, 55, 2]))
    place = whole.data.ctypes.data
    part = whole.only(np.array([False, True, True]))
    again = copies.of(read(guest, [3, 4]))
    assert again.data.ctypes.data == place
    assert part.pfns.tolist() == [55, 2]
    assert (part.data == guest.domain.read(np.array([2], dtype=np.uint64))).all()


def test_all_of_a_copy_is_the_copy_itself(guest):
    whole = Copies(10).of(read(guest, [1, 55, 2]))
    assert whole.only(np.ones(3, dtype=bool)) is whole


class Uncopyable(PageBatch):
    """A batch whose memory is gone when it is read, and that knows whether it was closed."""

    closed = False

    def copy_data(self, out, zero=None):
        raise MemoryError

    def close(self):
        self.closed = True


def test_a_batch_that_cannot_be_copied_is_closed_all_the_same(guest):
    with read(guest, [1, 2]) as batch:
        uncopyable = Uncopyable(batch.pfns, batch.types, (), batch.deferred)
        with pytest.raises(MemoryError):
            Copies(10).of(uncopyable)
        assert uncopyable.closed


def test_copies_begin_where_a_page_does(guest):
    with Copies(10).of(read(guest, [1, 2])) as copy:
        assert copy.data.ctypes.data % PAGE_SIZE == 0
