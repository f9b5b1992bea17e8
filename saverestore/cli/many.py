"""Several saves or restores at once, each by a process of its own; and one summary.

A save keeps its process's main thread busy and takes signals there, so there is one process for each. It is started
with the options that were read already (`python -m saverestore.cli.one`), and prints its result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from saverestore import interrupts
from saverestore.cli import arguments, common
from saverestore.errors import ExitCode, exit_code_of, name_of
from saverestore.words import counted

PARALLEL = 2
LOOK_S = 0.1
UNDO_S = 600.0
"""How long those under way are waited for after a signal. None is killed: that would leave its domain suspended."""


def add_many(group: argparse._ArgumentGroup, what: str) -> None:
    """--parallel, --within and --on-failure, of the commands that have --all."""
    group.add_argument(
        "--parallel",
        metavar="N",
        type=arguments.rounds,
        help=f"how many {what}s run at the same time; default {PARALLEL}",
    )
    group.add_argument(
        "--within",
        metavar="SECONDS",
        type=arguments.timeout,
        help=f"after this time start no more {what}s, and end those that run: each undoes what it did, as after "
        "Ctrl-C",
    )
    group.add_argument(
        "--on-failure",
        choices=("continue", "stop"),
        help=f"after a {what} that failed: continue (the default) starts the others all the same; stop starts no "
        "more",
    )


@dataclass(frozen=True)
class Result:
    """What became of one. `exit_code` is None where it was not begun; `facts`: its JSON, if it printed any."""

    name: str
    exit_code: int | None
    said: str
    facts: dict[str, Any]
    seconds: float

    @property
    def is_interrupted(self) -> bool:
        """Whether a signal ended it, also one that came before it could heed any: nothing was done by then."""
        return self.exit_code == ExitCode.INTERRUPTED or -(self.exit_code or 0) in interrupts.SIGNALS

    @property
    def error(self) -> str:
        """Why it failed, in one line."""
        if self.exit_code is None:
            return "not begun"
        if self.exit_code < 0 and self.is_interrupted:
            return f"interrupted by {signal.Signals(-self.exit_code).name}"
        return str(
            self.facts.get("error") or self.said.strip().replace("\n", "; ") or "ended without a message"
        )


MOST_ERROR_BYTES = 64 << 10
"""What is kept of what one prints on standard error: a command that it runs may print without end."""


class Running(Protocol):
    """One that is under way."""

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""

    def terminate(self) -> None:
        """Have it undo what it has begun, and end."""

    def output(self) -> tuple[str, str]:
        """After its end: what it printed on standard output, and last on standard error."""


Start = Callable[[str], Running]


class Process:
    """A process that runs one command with these options."""

    def __init__(self, prog: str, name: str, given: argparse.Namespace) -> None:
        import pickle  # those who work on one domain load this module for its options only
        import tempfile

        self._out, self._error = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed by output()
        with tempfile.TemporaryFile() as options:
            options.write(pickle.dumps(given))
            options.seek(0)
            # -P: root's working directory is no place to import from.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "saverestore.cli.one", prog, name],
                stdin=options,
                stdout=self._out,
                stderr=self._error,
            )

    def poll(self) -> int | None:
        """See Running."""
        return self._process.poll()

    def terminate(self) -> None:
        """See Running."""
        self._process.terminate()

    def output(self) -> tuple[str, str]:
        """See Running."""
        texts = []
        for file, most in ((self._out, None), (self._error, MOST_ERROR_BYTES)):
            with file:
                length = file.seek(0, os.SEEK_END)
                file.seek(0 if most is None else max(0, length - most))
                texts.append(file.read().decode(errors="replace"))
        return texts[0], texts[1]


@dataclass
class _Begun:
    running: Running
    at: float


def run_all(
    names: Sequence[str],
    start: Start,
    *,
    parallel: int = PARALLEL,
    within_s: float | None = None,
    stops: bool = False,
    on_end: Callable[[Result], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> list[Result]:
    """Start each, at most so many at a time, and wait for all: their results, in the order of the names.

    One that cannot be started has failed. After `within_s` those under way are terminated and waited for: how long
    they take to undo is theirs. A signal does the same, and is raised when all have ended; `on_end` has been called
    for each that was begun.
    """
    end = None if within_s is None else clock() + within_s
    waiting, begun, done = list(names), dict[str, _Begun](), dict[str, Result]()
    was_ended = has_failed = False

    def note(result: Result) -> None:
        nonlocal has_failed
        done[result.name] = result
        has_failed = has_failed or result.exit_code != ExitCode.DONE
        on_end(result)

    try:
        while waiting or begun:
            is_late = end is not None and clock() >= end
            if is_late or (stops and has_failed):
                waiting.clear()
            while waiting and len(begun) < parallel and not (stops and has_failed):
                with interrupts.shield():
                    name = waiting.pop(0)
                    try:
                        begun[name] = _Begun(start(name), clock())
                    except OSError as error:  # no more processes or memory: the others are not affected
                        note(_not_started(name, error))
            if is_late and not was_ended:
                was_ended = True
                _terminate(begun)
            with interrupts.shield():  # what has ended is known here only
                for result in _ended(begun, clock):
                    note(result)
            if begun:
                wait(LOOK_S)
    except BaseException:
        with interrupts.shield():
            _terminate(begun)
            for _ in range(int(UNDO_S / LOOK_S)):
                if not begun:
                    break
                for result in _ended(begun, clock):
                    note(result)
                wait(LOOK_S)
            for name, one in begun.items():
                why = f"did not end within {UNDO_S:.0f} s after it was asked to"
                note(Result(name, ExitCode.INTERRUPTED, "", {"error": why}, clock() - one.at))
        raise
    return [done.get(name) or _not_begun(name) for name in names]


def _not_begun(name: str) -> Result:
    return Result(name, None, "", {}, 0.0)


def _not_started(name: str, error: OSError) -> Result:
    why = f"no process could be started for it: {error.strerror or error}"
    return Result(name, exit_code_of(error), "", {"error": why, "error_name": str(name_of(error))}, 0.0)


def one_of(given: argparse.Namespace, **more: object) -> argparse.Namespace:
    """The options of one of them."""
    own = {"all": False, "json": not given.dry_run, "quiet": True, "is_one_of_all": True}
    return argparse.Namespace(**{**vars(given), **own, **more})


def run_named(
    given: argparse.Namespace,
    prog: str,
    done: str,
    names: Sequence[str],
    start: Start,
    good: Callable[[Result], str],
    began: float,
    before: Sequence[Result] = (),
) -> list[Result]:
    """`run_all` by the options of `add_many`. Prints a line for each that ends, `good` of one that is done.

    Where that is interrupted, `finish` follows here: what is done already stays so, and must be known. `before`: what
    became of others since `began`, in the same command.
    """
    ended: dict[str, Result] = {}

    def on_end(result: Result) -> None:
        ended[result.name] = result
        if result.exit_code != ExitCode.DONE or not given.quiet:
            say_result(prog, result, good(result))

    try:
        return run_all(
            names,
            start,
            parallel=given.parallel or PARALLEL,
            within_s=None if given.within is None else began + given.within - time.monotonic(),
            stops=given.on_failure == "stop",
            on_end=on_end,
        )
    except BaseException:
        results = [*before, *(ended.get(name) or _not_begun(name) for name in names)]
        finish(given, prog, done, results, began)
        raise


def finish(
    given: argparse.Namespace, prog: str, done: str, results: Sequence[Result], began: float, more: str = ""
) -> int:
    """Print what became of all, also for programs where that was asked for: the exit code."""
    for one in results:
        if one.exit_code is None:
            common.say(f"{prog}: {one.name}: not begun")
    if given.json:
        common.answer(
            json.dumps([{**one.facts, "name": one.name, "exit_code": one.exit_code} for one in results])
        )
    if not given.quiet:
        common.say(summary(prog, done, results, time.monotonic() - began, more))
    return exit_code_of_all(results)


def _terminate(begun: dict[str, _Begun]) -> None:
    for one in begun.values():
        one.running.terminate()


def _ended(begun: dict[str, _Begun], clock: Callable[[], float]) -> list[Result]:
    """Those that have ended, which are taken out."""
    found = []
    for name, one in list(begun.items()):
        code = one.running.poll()
        if code is None:
            continue
        del begun[name]
        out, error = one.running.output()
        try:
            facts = json.loads(out) if out.strip() else {}
        except ValueError:  # of a dry run
            facts, error = {}, f"{out}{error}"
        found.append(Result(name, code, error, facts, clock() - one.at))
    return found


def summary(prog: str, done: str, results: Sequence[Result], seconds: float, more: str = "") -> str:
    """The last line: "pysave: 3 saved, 1 failed, 1 not begun; 45.1 s"."""
    good = sum(one.exit_code == ExitCode.DONE for one in results)
    not_begun = sum(one.exit_code is None for one in results)
    interrupted = sum(one.is_interrupted for one in results)
    bad = len(results) - good - not_begun - interrupted
    parts = [f"{counted(good, 'domain')} {done}", f"{bad} failed"]
    parts += [f"{interrupted} interrupted"] if interrupted else []
    parts += [f"{not_begun} not begun"] if not_begun else []
    parts += [more] if more else []
    return f"{prog}: {', '.join(parts)}; {seconds:.1f} s"


def say_result(prog: str, result: Result, good: str) -> None:
    """A line for one that has ended, and what it said besides."""
    if result.exit_code == ExitCode.DONE:
        for warning in result.said.splitlines():
            common.say(f"{prog}: {result.name}: {warning.removeprefix(f'{prog}: ')}")
        common.say(f"{prog}: {result.name}: {good}, {result.seconds:.1f} s")
    else:
        failed = "" if result.is_interrupted else "FAILED: "
        common.say(f"{prog}: {result.name}: {failed}{result.error.removeprefix(f'{prog}: ')}")


def exit_code_of_all(results: Sequence[Result]) -> int:
    """That of the first that failed; of one that was not begun, as if it had been interrupted."""
    for one in results:
        if one.exit_code is None or one.is_interrupted:
            return ExitCode.INTERRUPTED
        if one.exit_code != ExitCode.DONE:
            return one.exit_code if one.exit_code > 0 else ExitCode.XEN  # killed by a signal
    return ExitCode.DONE
