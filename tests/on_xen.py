"""How tests on real Xen are run: for so long as there is time, and again where the emulated processor failed.

A plugin of pytest, loaded by `tests/conftest.py`. Under emulation a PVH guest now and then meets a fault of the
emulated processor: Xen reports a triple fault of a domain. A guest that nobody saves meets it as well. What becomes
of a test that failed meanwhile is judged in xenlab/triple_faults.py; the run's last lines count the repeats.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

ATTEMPTS = 8


@dataclass
class Emulated:
    """Tests below `folder` run on emulated Xen."""

    folder: Path
    triple_faults: Any
    """The module xenlab/triple_faults.py, which is another one in dom0 and on the machine."""
    faults: Callable[[], Sequence[Any]]
    """Those that Xen reported since this was called last."""
    untouched: Callable[[int], bool]
    """Whether a domain was only booted, so that no save or restore of ours can be the reason of its fault."""
    first: str
    """The file of tests, by its end, without which nothing was shown of this Xen."""
    boots_repeated: list[str] = field(default_factory=list)
    """Guests that did not boot at first, by name; once for each time."""


@dataclass
class Run:
    """What is known of this run."""

    begun_s: float = field(default_factory=time.monotonic)
    emulated: Emulated | None = None
    not_reached: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    maybe_ours: list[str] = field(default_factory=list)


RUN: pytest.StashKey[Run] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="guests with devices, four vCPUs or 1 GiB, too")
    parser.addoption(
        "--begin-within", type=float, metavar="S", help="begin no test on Xen later than S seconds from now"
    )
    parser.addoption("--all-reached", action="store_true", help="a test not reached by then is a failure")
    parser.addoption("--summary", metavar="FILE", help="write there, as JSON, how many of each there were")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before those of conftest.py files, which say where their tests run."""
    config.addinivalue_line("markers", "slow: takes minutes under emulation; only with --slow")
    config.addinivalue_line("markers", "core: on a pair, what runs with --quick")
    config.stash[RUN] = Run()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow under emulation: tools/test --slow"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test again when the emulated processor failed during it; none any more when the time is over."""
    run = item.config.stash[RUN]
    if run.emulated is None or run.emulated.folder not in item.path.parents:
        return None
    if time_is_over(item.config) and not item.get_closest_marker("skip"):
        run.not_reached.append(item.nodeid)
        item.add_marker(pytest.mark.skip(reason="not reached: no time was left"))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports_of(item, nextitem, run, run.emulated):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def reports_of(
    item: pytest.Item, nextitem: pytest.Item | None, run: Run, emulated: Emulated
) -> list[pytest.TestReport]:
    """Run a test, again where the emulator failed: the reports that count. See `triple_faults.judge`."""
    verdicts = emulated.triple_faults.Verdict
    passes_missing = 1
    failed: list[pytest.TestReport] = []
    for _ in range(ATTEMPTS):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not any(report.failed for report in reports):
            passes_missing -= 1
            if not passes_missing:
                return reports
        else:
            failed = reports
            # Those since the last failure. A test that has passed met none: its guest would have been gone.
            faults = emulated.faults()
            verdict = emulated.triple_faults.judge(faults, emulated.untouched, len(run.maybe_ours))
            if verdict in (verdicts.PASS_TWICE, verdicts.FAILED):
                dumps = "\n".join(fault.dump for fault in faults if not fault.by_emulator)
                first = next(report for report in reports if report.failed)
                first.sections.append(("Triple fault with the guest's own registers", dumps))
            if verdict in (verdicts.NO_EXCUSE, verdicts.FAILED):
                return reports
            if verdict is verdicts.PASS_TWICE:
                passes_missing = 2
                run.maybe_ours.append(f"{item.nodeid}\n{dumps}")
            run.repeated.append(item.nodeid)
            print(f"\n{item.nodeid}: Xen reported {len(faults)} triple fault(s): {verdict.value}")
        item._initrequest()  # type: ignore[attr-defined]  # fixtures anew, as pytest-rerunfailures does
    return failed


def time_is_over(config: pytest.Config) -> bool:
    within: float | None = config.getoption("--begin-within")
    return within is not None and time.monotonic() - config.stash[RUN].begun_s > within


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Without the first tests nothing has been shown of this Xen: that is a failure, however slow the machine."""
    run = session.config.stash[RUN]
    if run.emulated is None or not run.not_reached:
        return
    nothing_ran = all(item.get_closest_marker("skip") for item in session.items)
    first = any(f"{run.emulated.first}.py" in name for name in run.not_reached)
    if nothing_ran or first or session.config.getoption("--all-reached"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A test that was left out for want of time is named: nobody shall take it for passed."""
    run = config.stash[RUN]
    if run.not_reached:
        failed = ", which is a failure here" if config.getoption("--all-reached") else ""
        terminalreporter.section(f"{len(run.not_reached)} tests NOT REACHED: no time was left{failed}")
        for name in run.not_reached:
            terminalreporter.line(name)
    if run.repeated:
        terminalreporter.section(f"{len(run.repeated)} repeats after triple faults")
        for name in run.repeated:
            terminalreporter.line(name)
    if run.maybe_ours:
        terminalreporter.section("A triple fault that may be ours: the test passed twice in a row, or failed")
        for text in run.maybe_ours:
            terminalreporter.line(text)
    if path := config.getoption("--summary"):
        stats = terminalreporter.stats
        counts = {
            "passed": len(stats.get("passed", [])),
            "failed": len(stats.get("failed", [])) + len(stats.get("error", [])),
            "not_reached": len(run.not_reached),
            "repeated": len(run.repeated),
            "maybe_ours": len(run.maybe_ours),
            "boots_repeated": len(run.emulated.boots_repeated) if run.emulated else 0,
        }
        Path(path).write_text(json.dumps(counts))
