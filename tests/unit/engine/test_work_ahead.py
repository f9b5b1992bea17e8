"""The pipeline: in order, bounded, and nothing that was begun is left open."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from saverestore.engine.pipeline import ahead
from saverestore.errors import Interrupted


class Result:
    """Something that must be closed."""

    made: list[Result]

    def __init__(self, item: int) -> None:
        self.item = item
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def made() -> list[Result]:
    return []


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


def maker(made: list[Result]):
    def work(item: int) -> Result:
        result = Result(item)
        made.append(result)
        return result

    return work


def test_results_come_in_the_order_of_the_items_whichever_worker_is_faster(pool):
    second_done = threading.Event()

    def work(item: int) -> Result:
        if item == 0:
            assert second_done.wait(10)
        if item == 1:
            second_done.set()
        return Result(item)

    with ahead(pool, work, range(20), depth=4) as results:
        assert [result.item for result in results] == list(range(20))


def test_no_items_are_no_results(pool, made):
    with ahead(pool, maker(made), [], depth=3) as results:
        assert list(results) == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_than_depth_are_begun_and_not_taken(pool, depth):
    begun = []

    def items():
        for i in range(30):
            begun.append(i)
            yield i

    with ahead(pool, Result, items(), depth=depth) as results:
        for taken, _ in enumerate(results):
            assert len(begun) - taken <= depth + 1


def test_a_failure_comes_where_its_result_would_have_come_and_the_rest_is_closed(pool, made):
    def work(item: int) -> Result:
        if item == 3:
            raise ValueError("third")
        return maker(made)(item)

    taken = []

    def take_all() -> None:
        with ahead(pool, work, range(10), depth=4) as results:
            for result in results:
                taken.append(result.item)
                result.close()

    with pytest.raises(ValueError, match="third"):
        take_all()
    assert taken == [0, 1, 2]
    assert all(result.closed for result in made)


def test_leaving_early_closes_what_was_begun(pool, made):
    with ahead(pool, maker(made), range(100), depth=4) as results:
        next(results).close()
    assert len(made) < 100
    assert all(result.closed for result in made)


def test_a_failure_of_the_taker_closes_what_was_begun(pool, made):
    def take() -> None:
        with ahead(pool, maker(made), range(100), depth=4) as results:
            for result in results:
                raise OSError(f"disk full at {result.item}")

    with pytest.raises(OSError, match="disk full at 0"):
        take()
    assert len(made) > 0
    assert all(result.closed for result in made)


def test_items_that_fail_close_what_was_begun(pool, made):
    def items():
        yield from range(3)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"), ahead(pool, maker(made), items(), depth=9) as results:
        list(results)
    assert all(result.closed for result in made)


class InterruptedOnce(Future):
    """A signal comes while its result is being waited for: the worker still gets done."""

    def result(self, timeout: float | None = None) -> Result:
        found = super().result(timeout)
        if not hasattr(self, "was_waited_for"):
            self.was_waited_for = True
            raise Interrupted("interrupted by Ctrl-C")
        return found


class InterruptingPool:
    def submit(self, work, item):
        future = InterruptedOnce() if item == 0 else Future()
        future.set_result(work(item))
        return future


def test_a_signal_while_waiting_for_a_result_closes_that_result_too(made):
    with (
        pytest.raises(Interrupted),
        ahead(InterruptingPool(), maker(made), range(9), depth=3) as results,
    ):
        next(results)
    assert made
    assert all(result.closed for result in made)


def test_a_signal_right_after_taking_a_result_closes_that_result_too(pool, made):
    """Between the pipeline's giving it and the taker's `with` there is a moment."""

    def take() -> None:
        with ahead(pool, maker(made), range(9), depth=3) as results:
            next(results)
            raise Interrupted("interrupted by Ctrl-C")

    with pytest.raises(Interrupted):
        take()
    assert all(result.closed for result in made)


def test_one_result_that_cannot_be_closed_does_not_keep_the_others_open(pool, made):
    def work(item: int) -> Result:
        result = maker(made)(item)
        if item == 1:
            result.close = lambda: 1 / 0
        return result

    with pytest.raises(ZeroDivisionError), ahead(pool, work, range(9), depth=5) as results:
        next(results)
    assert all(result.closed for result in made if result.item != 1)
