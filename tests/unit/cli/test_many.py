"""Several saves or restores at once: how many at a time, how long, what a failure stops."""

from __future__ import annotations

import argparse
import errno
import functools
import json
import os
import signal
import time

import pytest

from saverestore import interrupts
from saverestore.cli import many
from saverestore.cli.many import Result, exit_code_of_all, run_all, summary
from saverestore.errors import ExitCode, Interrupted


class World:
    """Processes that take some seconds each, on a clock of its own."""

    def __init__(self, **seconds: float) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.codes: dict[str, int] = {}
        self.begun: list[str] = []
        self.under_way: set[str] = set()
        self.most = 0
        self.terminated: list[str] = []
        self.on_wait = lambda: None
        self.cannot_start: dict[str, OSError] = {}

    def start(self, name: str) -> Process:
        if name in self.cannot_start:
            raise self.cannot_start[name]
        self.begun.append(name)
        self.under_way.add(name)
        self.most = max(self.most, len(self.under_way))
        return Process(self, name)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.on_wait()

    def run(self, **more):
        return run_all(list(self.seconds), self.start, clock=lambda: self.now, wait=self.wait, **more)


class Process:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.end = world.now + world.seconds[name]
        self.code = world.codes.get(name, 0)

    def poll(self) -> int | None:
        if self.world.now < self.end:
            return None
        self.world.under_way.discard(self.name)
        return self.code

    def terminate(self) -> None:
        self.world.terminated.append(self.name)
        self.end, self.code = self.world.now + 0.5, ExitCode.INTERRUPTED

    def output(self) -> tuple[str, str]:
        error = {"error": "interrupted by SIGTERM"} if self.code == ExitCode.INTERRUPTED else {}
        return json.dumps({"domain": self.name, **error}), ""


def codes(results):
    return {one.name: one.exit_code for one in results}


@pytest.mark.parametrize(("parallel", "seconds"), [(1, 9), (2, 5), (9, 4)])
def test_no_more_are_under_way_than_were_asked_for(parallel, seconds):
    world = World(a=4, b=3, c=2)
    results = world.run(parallel=parallel)
    assert codes(results) == {"a": 0, "b": 0, "c": 0}
    assert world.most == min(parallel, 3)
    assert seconds <= world.now < seconds + 1


def test_results_come_in_the_order_of_the_names_with_what_each_printed():
    results = World(a=4, b=1).run(parallel=2)
    assert [(one.name, one.facts) for one in results] == [("a", {"domain": "a"}), ("b", {"domain": "b"})]


def test_after_a_failure_the_others_go_on_or_are_not_begun():
    world = World(a=1, b=3, c=1, d=1)
    world.codes["a"] = ExitCode.DOMAIN
    assert codes(world.run(parallel=2)) == {"a": 3, "b": 0, "c": 0, "d": 0}
    world = World(a=1, b=3, c=1, d=1)
    world.codes["a"] = ExitCode.DOMAIN
    results = world.run(parallel=2, stops=True)
    assert codes(results) == {"a": 3, "b": 0, "c": None, "d": None}
    assert exit_code_of_all(results) == ExitCode.DOMAIN


def test_when_the_time_is_over_those_under_way_are_ended_once_and_no_more_are_begun():
    world = World(a=2, b=100, c=1)
    results = world.run(parallel=1, within_s=5)
    assert codes(results) == {"a": 0, "b": 130, "c": None}
    assert world.terminated == ["b"]
    assert world.now < 7
    assert exit_code_of_all(results) == ExitCode.INTERRUPTED


def test_a_signal_ends_all_and_is_raised_when_they_have_ended():
    world = World(a=100, b=100, c=1)

    def interrupt() -> None:
        world.on_wait = lambda: None
        raise Interrupted("interrupted by SIGTERM")

    world.on_wait = interrupt
    with pytest.raises(Interrupted):
        world.run(parallel=2)
    assert world.terminated == ["a", "b"]
    assert world.under_way == set()


@pytest.mark.parametrize(
    ("stops", "found"),
    [(False, {"a": 0, "b": 5, "c": 0, "d": 0}), (True, {"a": 0, "b": 5, "c": None, "d": None})],
)
def test_one_that_cannot_be_started_is_a_failure_of_that_one_only(stops, found):
    world = World(a=3, b=1, c=1, d=1)
    world.cannot_start["b"] = OSError(errno.EAGAIN, "Resource temporarily unavailable")
    said = []
    results = world.run(parallel=3, stops=stops, on_end=said.append)
    assert codes(results) == found
    assert world.terminated == []
    assert said[0] == results[1]
    assert results[1].error == "no process could be started for it: Resource temporarily unavailable"
    assert results[1].facts == {"error": results[1].error, "error_name": "io_failed"}


def run_and_interrupt(monkeypatch: pytest.MonkeyPatch, world: World, *words: str) -> None:
    """As a command does it; a signal comes after 2 s."""

    def interrupt() -> None:
        if world.now > 2:
            world.on_wait = lambda: None
            raise Interrupted("interrupted by Ctrl-C")

    world.on_wait = interrupt
    monkeypatch.setattr(many, "run_all", functools.partial(run_all, clock=lambda: world.now, wait=world.wait))
    parser = argparse.ArgumentParser()
    many.add_many(parser.add_argument_group("several"), "save")
    for name in ("--json", "--quiet"):
        parser.add_argument(name, action="store_true")
    given = parser.parse_args(list(words))
    with pytest.raises(Interrupted):
        many.run_named(
            given, "pysave", "saved", list(world.seconds), world.start, lambda _: "is saved", time.monotonic()
        )


def test_after_a_signal_it_is_said_what_became_of_each(monkeypatch, capsys):
    run_and_interrupt(monkeypatch, World(a=1, b=100, c=100, d=1), "--json")
    out, said = capsys.readouterr()
    assert [(one["name"], one["exit_code"]) for one in json.loads(out)] == [
        ("a", 0),
        ("b", 130),
        ("c", 130),
        ("d", None),
    ]
    assert "pysave: a: is saved, " in said
    assert "pysave: b: interrupted by SIGTERM\n" in said
    assert "pysave: d: not begun" in said
    assert "pysave: 1 domain saved, 0 failed, 2 interrupted, 1 not begun; " in said


def test_what_does_not_end_after_a_signal_is_said_too(monkeypatch, capsys):
    monkeypatch.setattr(many, "UNDO_S", 3.0)
    monkeypatch.setattr(Process, "terminate", lambda _: None)
    run_and_interrupt(monkeypatch, World(a=1, b=100), "--json", "--quiet")
    out, said = capsys.readouterr()
    assert [one["exit_code"] for one in json.loads(out)] == [0, 130]
    assert said == "pysave: b: did not end within 3 s after it was asked to\n"


def test_one_that_a_signal_ended_before_it_could_heed_it_was_interrupted():
    result = Result("a", -signal.SIGINT, "Traceback …", {}, 1.0)
    assert result.error == "interrupted by SIGINT"
    assert (
        summary("pysave", "saved", [result], 1.0) == "pysave: 0 domains saved, 0 failed, 1 interrupted; 1.0 s"
    )
    assert exit_code_of_all([result]) == ExitCode.INTERRUPTED


def test_a_signal_amid_what_is_done_for_one_that_has_ended_does_not_lose_it(monkeypatch, capsys):
    world = World(a=1, b=100)
    output = Process.output

    def signalled(process: Process) -> tuple[str, str]:
        monkeypatch.setattr(Process, "output", output)
        os.kill(os.getpid(), signal.SIGTERM)
        return process.output()

    monkeypatch.setattr(Process, "output", signalled)
    with interrupts.handled():
        run_and_interrupt(monkeypatch, world, "--json")
    assert [one["exit_code"] for one in json.loads(capsys.readouterr().out)] == [0, 130]


def test_of_one_that_prints_without_end_the_last_is_kept(monkeypatch):
    """A --while-suspended command can: all of it would have to fit in memory, with other saves under way."""
    monkeypatch.setattr(many, "MOST_ERROR_BYTES", 10)
    process = many.Process("no-such-command", "web1", argparse.Namespace())
    while process.poll() is None:
        time.sleep(0.01)
    process._error.seek(0)
    process._error.write(b"words " * 1000 + b"the error\n")
    process._error.truncate()
    assert process.output() == ("", "the error\n")


def test_nothing_to_do_is_done():
    assert World().run() == []
    assert exit_code_of_all([]) == ExitCode.DONE


def test_the_summary_counts():
    world = World(a=1, b=1, c=9, d=1)
    world.codes["b"] = ExitCode.XEN
    results = world.run(parallel=1, within_s=3)
    assert (
        summary("pysave", "saved", results, 3.04)
        == "pysave: 1 domain saved, 1 failed, 1 interrupted, 1 not begun; 3.0 s"
    )
