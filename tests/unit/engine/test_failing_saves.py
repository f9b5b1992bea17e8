"""Whatever fails, and whenever: log-dirty is off, the guest runs, and no page stays mapped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from memory_guests import assert_same, image_of, opened, restored_from
from stream_samples import MemorySink

from saverestore.engine.progress import Silence
from saverestore.engine.save import save
from saverestore.engine.settings import SaveSettings
from saverestore.errors import DomainError, Interrupted, TransportError
from saverestore.interrupts import handled
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave

# Small, and sent in small batches: there are as many calls to fail as with large ones.
MAKERS = {
    "pvh": lambda: MemoryDomain.pvh(300, hole=range(50, 80)),
    "pv": lambda: MemoryDomain.pv(300),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)
SETTINGS = {
    "suspended": SaveSettings(batch_pfns=64),
    "log": SaveSettings(live=True, dirty="log", batch_pfns=64),
    "digest": SaveSettings(live=True, dirty="digest", batch_pfns=64),
}
HOW = pytest.mark.parametrize("how", SETTINGS)


def busy(guest: MemorySave) -> MemorySave:
    """Let the guest write between rounds, so that there are several."""
    plain = guest.domain.data_pfns()
    for number in range(2):
        guest.moments.on("check_layout", number, lambda: guest.domain.write(plain[:100], 1))
    return guest


def assert_left_as_it_was(guest: MemorySave) -> None:
    calls = guest.moments.calls
    assert guest.domain.dirty is None, "log-dirty is on"
    assert not guest.domain.suspended, "the guest stands still"
    assert guest.buffers.nr_open == 0, "pages are still mapped"
    if "suspend" not in calls:
        assert "suspended" not in calls
    # Still fit to be saved: nothing about it has changed.
    restored = restored_from(image_of(MemorySave(guest.domain)), guest.domain)
    assert_same(guest.domain, restored)
    restored.close()


def calls_of_a_clean_save(kind: str, how: str) -> list[str]:
    with opened(MAKERS[kind]()) as guest:
        image_of(busy(guest), SETTINGS[how])
        return guest.moments.calls


@KINDS
@HOW
def test_a_failure_at_any_call_leaves_the_guest_as_it_was(kind, how):
    for fail_at in range(len(calls_of_a_clean_save(kind, how))):
        with opened(MAKERS[kind]()) as guest:

            def fail(name: str, total: int, fail_at: int = fail_at) -> None:
                if total == fail_at:
                    raise DomainError(f"{name} failed")

            busy(guest).moments.on_every(fail)
            with pytest.raises(DomainError, match="failed"):
                image_of(guest, SETTINGS[how])
            assert_left_as_it_was(guest)


@pytest.mark.parametrize("name", ["suspend", "suspended"])
def test_a_guest_that_was_asked_to_suspend_is_resumed_even_if_asking_failed(name):
    with opened(MAKERS["pvh"]()) as guest:
        guest.moments.fail(name, 0, DomainError("it did not answer"))
        with pytest.raises(DomainError, match="answer"):
            image_of(guest)
        assert guest.moments.calls[-1] == "resume"
        assert_left_as_it_was(guest)


def test_a_log_that_cannot_be_closed_at_first_is_closed_after_all():
    with opened(MAKERS["pvh"]()) as guest:
        guest.moments.fail("log_dirty.close", 0, DomainError("not now"))
        with pytest.raises(DomainError, match="not now"):
            image_of(guest, SETTINGS["log"])
        assert_left_as_it_was(guest)


def test_a_log_that_can_never_be_closed_keeps_no_guest_suspended():
    with opened(MAKERS["pvh"]()) as guest:
        for number in range(2):
            guest.moments.fail("log_dirty.close", number, DomainError("not now"))
        with pytest.raises(DomainError, match="not now"):
            image_of(guest, SETTINGS["log"])
        assert not guest.domain.suspended


class FailingSink(MemorySink):
    """Fails at its n-th write, with part of it written."""

    def __init__(self, fail_at: int, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self._left = fail_at
        self._error = error

    def writev(self, buffers):
        if self._left == 0:
            super().writev([memoryview(buffers[0])[:1]])
            raise self._error()
        self._left -= 1
        super().writev(buffers)


def no_space() -> TransportError:
    return TransportError("image: No space left on device")


@KINDS
@HOW
@pytest.mark.parametrize("error", [no_space, lambda: Interrupted("Ctrl-C"), MemoryError, KeyboardInterrupt])
def test_a_sink_that_fails_at_any_write_leaves_the_guest_as_it_was(kind, how, error):
    with opened(MAKERS[kind]()) as guest:
        sink = MemorySink()
        save(busy(guest), sink, SETTINGS[how])
    for fail_at in range(sink.calls):
        with opened(MAKERS[kind]()) as guest:
            with pytest.raises(type(error())):
                save(busy(guest), FailingSink(fail_at, error), SETTINGS[how])
            assert_left_as_it_was(guest)


class FailingProgress(Silence):
    """Raises at the n-th thing it is told: as a signal does, on the thread of the save."""

    def __init__(self, fail_at: int) -> None:
        self.told = 0
        self._fail_at = fail_at

    def _tell(self, *_: object, **__: object) -> None:
        self.told += 1
        if self.told == self._fail_at:
            raise Interrupted("interrupted by Ctrl-C")

    phase = round = pages = _tell


@KINDS
@HOW
def test_an_interrupt_at_any_step_leaves_the_guest_as_it_was(kind, how):
    with opened(MAKERS[kind]()) as guest:
        progress = FailingProgress(0)
        save(busy(guest), MemorySink(), SETTINGS[how], progress)
    assert progress.told > 4
    for fail_at in range(1, progress.told + 1):
        with opened(MAKERS[kind]()) as guest:
            with pytest.raises(Interrupted):
                save(busy(guest), MemorySink(), SETTINGS[how], FailingProgress(fail_at))
            assert_left_as_it_was(guest)


@HOW
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_at_any_call_leaves_the_guest_as_it_was(how, number):
    """Whichever thread makes the call, the signal is the main thread's; the save ends with it or is done."""
    names = calls_of_a_clean_save("pv", how)
    for send_at in range(len(names)):
        with opened(MAKERS["pv"]()) as guest:

            def send(name: str, total: int, send_at: int = send_at) -> None:
                if total == send_at:
                    os.kill(os.getpid(), number)

            busy(guest).moments.on_every(send)
            with pytest.raises(Interrupted), handled():
                image_of(guest, SETTINGS[how])
            assert_left_as_it_was(guest)


def test_a_signal_while_log_dirty_is_being_turned_on_turns_it_off_again():
    with opened(MemoryDomain.pvh(64)) as guest:
        guest.moments.on("open_log_dirty", 0, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted), handled():
            image_of(guest, SETTINGS["log"])
        assert "log_dirty.close" in guest.moments.calls
        assert guest.domain.dirty is None


def test_a_second_signal_does_not_keep_the_guest_from_being_resumed():
    with opened(MAKERS["pvh"]()) as guest:

        def send(name: str, total: int) -> None:
            if name in ("suspended", "resume"):
                os.kill(os.getpid(), signal.SIGINT)

        guest.moments.on_every(send)
        with pytest.raises(Interrupted), handled():
            image_of(guest)
        assert guest.moments.calls[-1] == "resume"
        assert_left_as_it_was(guest)
