"""Ctrl-C, SIGTERM and a terminal that hangs up as one exception, at moments when it can be taken back.

Work that may be given up at any point runs as it is: the signal raises `Interrupted` in the main thread. Steps
that must not be cut in two (a domain has been created but its number not yet noted; a guest is being resumed)
run in `shield()`, which holds the signal back until they are done. Only the first signal raises: by the
second, what was begun is being undone already. So it is while any exception is being handled.

An exception is lost where Python itself calls back (`__del__`, a callback of a weak reference, of which importing has
some): it is printed, and ignored. Of an `Interrupted` nothing is printed, and it is raised anew at the end of the
next shield.

Waiting for another thread must not be cut in two either. Where an exception comes amid the lock of a `Future` or an
`Event`, that stays locked, and who would wake us waits for it forever; or it is unlocked twice. `result_of` and
`waited_for` heed signals between their looks.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import TypeVar

from saverestore.errors import Interrupted

HEED_S = 0.1
"""How long a signal may go unheeded while another thread is waited for."""

ResultT = TypeVar("ResultT")


class _State:
    def __init__(self) -> None:
        self.depth = 0
        self.name = ""  # of the signal that was raised
        self.hook_before = sys.unraisablehook
        self.pending: str | None = None
        self.raised = False
        self.handled_before: BaseException | None = None


_state = _State()

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _on_signal(number: int, _frame: FrameType | None) -> None:
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    if _state.raised:
        return
    if _state.depth or _is_undoing():
        _state.pending = name
        return
    _state.raised, _state.name = True, name
    raise Interrupted(f"interrupted by {name}")


def _on_lost(what: sys.UnraisableHookArgs) -> None:
    """Python could not raise this: a signal's is kept, for the next shield to raise."""
    if isinstance(what.exc_value, Interrupted):
        _state.pending, _state.raised = _state.name, False
    else:
        _state.hook_before(what)


def _is_undoing() -> bool:
    """Whether an exception is being handled: something is being undone because of it."""
    return sys.exc_info()[1] is not _state.handled_before


@contextmanager
def handled() -> Iterator[None]:
    """Turn these signals into `Interrupted` inside this block; as before afterwards.

    One that is ignored stays so: that is what nohup(1) does.
    """
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in heeded}
    _state.__init__()  # type: ignore[misc]
    sys.unraisablehook = _on_lost
    _state.handled_before = sys.exc_info()[1]
    try:
        yield
    finally:
        sys.unraisablehook = _state.hook_before
        for number, handler in before.items():
            signal.signal(number, handler)


def too_late() -> None:
    """From now on signals change nothing: what was asked for has been done, and only tidying up is left."""
    _state.pending = None
    _state.raised = True


def raise_pending() -> None:
    """Inside a `shield`: let a signal that is held back take effect here, where it can be taken back."""
    if _state.pending and not _state.raised:
        _state.raised = True
        raise Interrupted(f"interrupted by {_state.pending}")


def shield() -> AbstractContextManager[None]:
    """Hold signals back inside this block; one that came is raised at its end, unless that raises itself.

    While an exception is being handled, in a shield or not, that stays what is told: the signal goes on being held
    back, to the end of the next block in which none is.
    """
    # Signals only ever reach the main thread.
    return _SHIELD if threading.current_thread() is threading.main_thread() else _NOTHING


class _Shield(AbstractContextManager[None]):
    # A class, as a generator takes three times as long, and there are several for each batch of pages.
    def __enter__(self) -> None:
        _state.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _state.depth -= 1
        if kind is None and _state.pending and not _state.depth and not _state.raised and not _is_undoing():
            _state.raised = True
            raise Interrupted(f"interrupted by {_state.pending}")


_SHIELD = _Shield()
_NOTHING = nullcontext()


def result_of(future: Future[ResultT]) -> ResultT:
    """What comes of it, or its exception; `Interrupted` when a signal comes first. On any thread."""

    def look(seconds: float) -> bool:
        try:
            future.exception(seconds)
        except TimeoutError:
            return False
        except CancelledError:
            pass
        return True

    waited_for(look)
    with shield():
        return future.result()


def waited_for(look: Callable[[float], bool], timeout_s: float | None = None) -> bool:
    """Call `look(seconds)`, which waits for something that long at most, until it has come: false when in vain.

    A signal that comes meanwhile raises `Interrupted`, as soon as `look` returns; within a `shield`, at its end.
    """
    free = threading.current_thread() is threading.main_thread() and not _state.depth and not _is_undoing()
    end = None if timeout_s is None else time.monotonic() + timeout_s
    with shield():
        while True:
            left = HEED_S if end is None else min(HEED_S, end - time.monotonic())
            if look(max(0.0, left)):
                return True
            if left <= 0:
                return False
            if free:
                raise_pending()
