"""Signals as one exception, held back where work must not be cut in two."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from saverestore.errors import ExitCode, Interrupted
from saverestore.interrupts import HEED_S, handled, result_of, shield, waited_for

INT, TERM = signal.SIGINT, signal.SIGTERM


def send(number: int = INT) -> None:
    os.kill(os.getpid(), number)
    # The handler runs at the next bytecode of the main thread at the latest: that is, by now.


@pytest.mark.parametrize(("number", "name"), [(INT, "Ctrl-C"), (TERM, "SIGTERM")])
def test_a_signal_raises_where_it_comes_and_is_named(number, name):
    with handled(), pytest.raises(Interrupted, match=f"interrupted by {name}") as caught:
        send(number)
    assert caught.value.exit_code == ExitCode.INTERRUPTED


def test_a_shield_holds_a_signal_back_until_its_end():
    done = []
    with pytest.raises(Interrupted, match="SIGTERM"), handled():
        with shield():
            send(TERM)
            done.append("inside")
        done.append("after")
    assert done == ["inside"]


def test_the_outermost_shield_raises():
    done = []
    with pytest.raises(Interrupted), handled(), shield():
        with shield():
            send()
        done.append("between")
    assert done == ["between"]


def test_a_shield_that_nothing_came_upon_raises_nothing_and_later_signals_do():
    with handled():
        with shield():
            pass
        with pytest.raises(Interrupted):
            send()


def test_a_signal_while_a_failure_is_undone_does_not_take_its_place():
    with handled(), pytest.raises(ValueError, match="the first cause"):
        try:
            raise ValueError("the first cause")
        except ValueError:
            with shield():
                send()
            raise


def test_nor_does_it_outside_of_a_shield():
    undone = []
    with handled(), pytest.raises(ValueError, match="the first cause"):
        try:
            raise ValueError("the first cause")
        finally:
            send()
            undone.append("all")
    assert undone == ["all"]


def test_an_exception_that_was_being_handled_before_is_none_of_ours():
    try:
        raise ValueError("somebody else's")
    except ValueError:
        with handled(), pytest.raises(Interrupted):
            send()


def test_nor_does_it_at_the_end_of_a_block_that_a_failure_leaves():
    @contextmanager
    def tidied_up():
        try:
            yield
        finally:
            with shield():
                send()

    with handled(), pytest.raises(ValueError, match="the first cause"), tidied_up():
        raise ValueError("the first cause")


def test_if_work_goes_on_after_the_failure_the_signal_is_heeded():
    with pytest.raises(Interrupted), handled():
        try:
            raise ValueError("nothing that matters")
        except ValueError:
            with shield():
                send()
        with shield():
            pass


def test_an_error_inside_a_shield_wins_over_the_signal_that_it_held_back():
    with handled(), pytest.raises(ValueError, match="the error"), shield():
        send()
        raise ValueError("the error")


def test_a_signal_held_back_by_a_shield_that_failed_is_raised_by_the_next():
    """The error is being undone in a shield of its own, and at its end the signal counts again."""
    done = []
    with handled():
        with pytest.raises(ValueError, match="the error"), shield():
            send()
            raise ValueError("the error")
        with pytest.raises(Interrupted), shield():
            done.append("undone")
    assert done == ["undone"]


@pytest.mark.parametrize("second", [INT, TERM])
def test_a_second_signal_is_ignored_while_the_first_is_being_undone(second):
    done = []
    with handled():
        with pytest.raises(Interrupted, match="Ctrl-C"):
            try:
                send(INT)
            finally:
                send(second)
                done.append("undone")
        with shield():
            send(second)
        done.append("still going")
    assert done == ["undone", "still going"]


def test_of_two_signals_held_back_one_exception_comes():
    with handled():
        with pytest.raises(Interrupted), shield():
            send(INT)
            send(TERM)
        with shield():
            pass


def test_handlers_are_as_before_afterwards_whatever_happened():
    before = {number: signal.getsignal(number) for number in (INT, TERM)}
    with pytest.raises(Interrupted), handled():
        assert signal.getsignal(INT) != before[INT]
        send()
    assert {number: signal.getsignal(number) for number in (INT, TERM)} == before


def test_a_new_block_starts_afresh():
    for _ in range(2):
        with pytest.raises(Interrupted), handled():
            send()


def test_a_shield_without_a_handled_block_leaves_ctrl_c_as_it_was():
    with pytest.raises(KeyboardInterrupt), shield():
        send()


def test_a_shield_on_a_worker_holds_nothing_back_from_the_main_thread():
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with shield():
            inside.set()
            leave.wait(10)

    worker = threading.Thread(target=work)
    with handled():
        worker.start()
        try:
            assert inside.wait(10)
            with pytest.raises(Interrupted):
                send()
        finally:
            leave.set()
            worker.join()


def test_a_signal_sent_on_a_worker_raises_in_the_main_thread_only():
    seen: list[BaseException] = []

    def work() -> None:
        try:
            signal.raise_signal(INT)
        except BaseException as error:
            seen.append(error)

    worker = threading.Thread(target=work)
    with pytest.raises(Interrupted), handled():
        worker.start()
        worker.join()
        # The handler ran in this thread, inside join() or here.
    worker.join()
    assert seen == []


def test_a_terminal_that_hangs_up_is_a_signal_like_the_others_unless_nohup_has_it_ignored():
    with handled(), pytest.raises(Interrupted, match="SIGHUP"):
        send(signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class SignalledOnEntry(threading.Condition):
    """A signal comes right after it was locked, before the `with` block has begun: nobody would unlock it."""

    def __enter__(self):
        entered = super().__enter__()
        send()
        return entered


def can_be_locked_by_another(lock: threading.Condition) -> bool:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lock.acquire, timeout=1).result()


def test_a_signal_amid_the_lock_of_a_future_leaves_it_unlocked():
    future: Future[int] = Future()
    future.set_result(1)
    lock = future._condition = SignalledOnEntry()
    with pytest.raises(Interrupted), handled():
        result_of(future)
    assert can_be_locked_by_another(lock)


def test_what_comes_of_a_future_is_given_or_raised():
    good, bad = Future(), Future()
    good.set_result(7)
    bad.set_exception(KeyError("gone"))
    with handled():
        assert result_of(good) == 7
        with pytest.raises(KeyError):
            result_of(bad)


def test_a_signal_ends_the_wait_for_a_future_that_never_comes():
    with pytest.raises(Interrupted), handled():
        threading.Timer(HEED_S / 2, send).start()
        result_of(Future())


def test_within_a_shield_a_wait_goes_on_to_its_end():
    future: Future[int] = Future()
    got = []
    with pytest.raises(Interrupted), handled(), shield():
        send()
        threading.Timer(2 * HEED_S, future.set_result, [7]).start()
        got.append(result_of(future))
    assert got == [7]


def test_while_something_is_undone_a_wait_goes_on_to_its_end():
    future: Future[int] = Future()
    with handled(), pytest.raises(ValueError):
        try:
            raise ValueError("the first cause")
        except ValueError:
            send()
            threading.Timer(2 * HEED_S, future.set_result, [7]).start()
            assert result_of(future) == 7
            raise


def test_another_thread_that_waits_leaves_the_signal_to_the_main_thread():
    future: Future[int] = Future()
    with ThreadPoolExecutor(1) as pool, handled():
        waiting = pool.submit(result_of, future)
        with pytest.raises(Interrupted), shield():
            send()
            time.sleep(2 * HEED_S)
        future.set_result(7)
        assert waiting.result() == 7


def test_a_wait_ends_in_vain_when_its_time_is_over():
    looks = []
    with handled():
        assert not waited_for(lambda seconds: looks.append(seconds) or time.sleep(seconds), 2.5 * HEED_S)
    assert 3 <= len(looks) <= 5
    assert max(looks) <= HEED_S


class _Noisy:
    """Gets a signal while it is being deleted: what is raised there is lost."""

    def __del__(self) -> None:
        send()


def test_a_signal_that_python_could_not_raise_is_raised_by_the_next_shield(capfd):
    done = []
    with pytest.raises(Interrupted, match="Ctrl-C"), handled():
        _Noisy()
        done.append("work")
        with shield():
            done.append("shielded")
        done.append("after")
    assert done == ["work", "shielded"]
    assert capfd.readouterr().err == ""


def test_a_second_signal_is_raised_at_once_where_the_first_one_was_lost():
    with pytest.raises(Interrupted), handled():
        _Noisy()
        send()


def test_what_else_python_cannot_raise_is_told_as_ever(monkeypatch):
    class Broken:
        def __del__(self) -> None:
            raise ValueError("in here")

    told = []
    monkeypatch.setattr("sys.unraisablehook", lambda what: told.append(str(what.exc_value)))
    with handled():
        Broken()
    Broken()
    assert told == ["in here", "in here"]
