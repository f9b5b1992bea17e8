"""Tests on real Xen, run in its control domain: `tools/test` pushes them into the lab and runs them there.

They need root in a dom0 with the lab's guest (`lab-guest`); on any other machine they are skipped with that
reason. With PYSAVE_REQUIRE_XEN=1 its absence is a failure. PYSAVE_XEN_VARIANT names the lab's variant.

Under emulation a PVH guest now and then meets a fault of the emulated processor: Xen reports a triple fault of a
domain. A guest that nobody saves meets it as well. What becomes of a test that failed meanwhile is judged in
xenlab/triple_faults.py; the run's last lines count the repeats.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import launcher
import pytest
import xen_lab
from _pytest.runner import runtestprotocol
from xen_lab import Guest, Pool, run, state_of

ATTEMPTS = 8

WORTH_MOST = ("first_row", "contract", "save_restore", "memory")
"""Run first: when time is short, the rest may not be reached. The first of it must be."""

BEGUN: pytest.StashKey[float] = pytest.StashKey()
NOT_REACHED: pytest.StashKey[list[str]] = pytest.StashKey()
REPEATED: pytest.StashKey[list[str]] = pytest.StashKey()
MAYBE_OURS: pytest.StashKey[list[str]] = pytest.StashKey()
SERVER: pytest.StashKey[ExitStack] = pytest.StashKey()

COLD_ON = "4.17"

FULL_SPEED = 0
MODERATE_RATE = 300  # pages a second; 2000 take three quarters of a processor under emulation, from dom0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="guests with devices, four vCPUs or 1 GiB, too")
    parser.addoption(
        "--begin-within", type=float, metavar="S", help="begin no test in dom0 later than S seconds from now"
    )
    parser.addoption("--all-reached", action="store_true", help="a test not reached by then is a failure")
    parser.addoption("--summary", metavar="FILE", help="write there, as JSON, how many of each there were")


def is_control_domain() -> bool:
    try:
        return "control_d" in Path("/proc/xen/capabilities").read_text()
    except OSError:
        return False


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes under emulation; only with --slow")
    config.addinivalue_line(
        "markers", "cold: on the default variant, commands are started as a user does, not by the launcher"
    )
    config.stash[BEGUN] = time.monotonic()
    config.stash[NOT_REACHED] = []
    config.stash[REPEATED] = []
    config.stash[MAYBE_OURS] = []


def worth(item: pytest.Item) -> int:
    """Where it belongs in the order; those of one place keep the order they had."""
    return next((at for at, end in enumerate(WORTH_MOST) if item.path.stem.endswith(end)), len(WORTH_MOST))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if is_control_domain():
        items.sort(key=worth)
    if not config.getoption("--slow", default=False):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow under emulation: tools/test --slow"))
    if (is_control_domain() and shutil.which("lab-guest")) or os.environ.get("PYSAVE_REQUIRE_XEN"):
        return
    reason = "needs Xen's control domain with the lab's guest (tools/test runs it there)"
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test again when the emulated processor failed during it; none any more when the time is over."""
    if not is_control_domain():
        return None
    if time_is_over(item.config) and not item.get_closest_marker("skip"):
        item.config.stash[NOT_REACHED].append(item.nodeid)
        item.add_marker(pytest.mark.skip(reason="not reached: no time was left"))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in reports_of(item, nextitem):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def reports_of(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run a test, again where the emulator failed: the reports that count. See `triple_faults.judge`."""
    from triple_faults import Verdict, judge  # of the lab's dom0

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
            faults = triple_faults_until_now()
            verdict = judge(faults, xen_lab.only_booted, len(item.config.stash[MAYBE_OURS]))
            if verdict in (Verdict.PASS_TWICE, Verdict.FAILED):
                dumps = "\n".join(fault.dump for fault in faults if not fault.by_emulator)
                first = next(report for report in reports if report.failed)
                first.sections.append(("Triple fault with the guest's own registers", dumps))
            if verdict in (Verdict.NO_EXCUSE, Verdict.FAILED):
                return reports
            if verdict is Verdict.PASS_TWICE:
                passes_missing = 2
                item.config.stash[MAYBE_OURS].append(f"{item.nodeid}\n{dumps}")
            item.config.stash[REPEATED].append(item.nodeid)
            print(f"\n{item.nodeid}: Xen reported {len(faults)} triple fault(s): {verdict.value}")
        item._initrequest()  # type: ignore[attr-defined]  # fixtures anew, as pytest-rerunfailures does
    return failed


def triple_faults_until_now() -> list[Any]:
    """Those that Xen reported since this was asked last."""
    from triple_faults import parse  # of the lab's dom0

    return list(parse(run("xl", "dmesg", "-c").stdout))


def time_is_over(config: pytest.Config) -> bool:
    within: float | None = config.getoption("--begin-within", default=None)
    return within is not None and time.monotonic() - config.stash[BEGUN] > within


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Without the first row nothing has been shown of this Xen: that is a failure, however slow the machine."""
    config = session.config
    names = config.stash[NOT_REACHED]
    nothing_ran = all(item.get_closest_marker("skip") for item in session.items)
    first_row = any(f"_{WORTH_MOST[0]}.py" in name for name in names)
    if names and (nothing_ran or first_row or config.getoption("--all-reached", default=False)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if SERVER in config.stash:
        config.stash[SERVER].close()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A test that was left out for want of time is told by name: nobody shall take it for passed."""
    repeated, names = config.stash[REPEATED], config.stash[NOT_REACHED]
    if names:
        failed = ", which is a failure here" if config.getoption("--all-reached", default=False) else ""
        terminalreporter.section(f"{len(names)} tests NOT REACHED: no time was left{failed}")
        for name in names:
            terminalreporter.line(name)
    if repeated:
        terminalreporter.section(f"{len(repeated)} repeats after triple faults")
        for name in repeated:
            terminalreporter.line(name)
    if maybe := config.stash[MAYBE_OURS]:
        terminalreporter.section("A triple fault that may be ours: the test passed twice in a row, or failed")
        for text in maybe:
            terminalreporter.line(text)
    if path := config.getoption("--summary", default=None):
        stats = terminalreporter.stats
        counts = {
            "passed": len(stats.get("passed", [])),
            "failed": len(stats.get("failed", [])) + len(stats.get("error", [])),
            "not_reached": len(names),
            "repeated": len(repeated),
            "maybe_ours": len(config.stash[MAYBE_OURS]),
            "boots_repeated": len(xen_lab.boots_repeated),
        }
        Path(path).write_text(json.dumps(counts))


@pytest.fixture(scope="session")
def variant() -> str:
    return os.environ.get("PYSAVE_XEN_VARIANT", "4.17")


@pytest.fixture
def on_arm64() -> None:
    """For tests of arm64: elsewhere they are skipped."""
    if platform.machine() != "aarch64":
        pytest.skip("this is no arm64 machine: tools/test --variant 4.17-arm64")


@pytest.fixture(autouse=True)
def commands_as_users_start_them(request: pytest.FixtureRequest, variant: str) -> Iterator[None]:
    """For a test marked `cold`, on one Xen; others have their commands from the launcher."""
    everywhere = request.config.getoption("--slow")
    if request.node.get_closest_marker("cold") and (everywhere or variant == COLD_ON):
        with launcher.cold():
            yield
    else:
        yield


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Guests that stay booted from test to test."""
    found = Pool()
    yield found
    found.destroy_all()


@pytest.fixture
def images() -> Iterator[Path]:
    """A folder in memory for images, emptied afterwards: dom0's disk is slow and would be measured instead."""
    folder = Path("/dev/shm/pysave-tests")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def taken(request: pytest.FixtureRequest, pool: Pool, rate: int, words: str = "") -> Iterator[Guest]:
    kind, vcpus = request.param
    found = pool.take(kind, vcpus, rate, words)
    yield found
    found.assert_clean()
    assert found.is_running(), f"the test left {found.name} {state_of(found.name)}"


@pytest.fixture
def guest(request: pytest.FixtureRequest, pool: Pool) -> Iterator[Guest]:
    """A running, healthy guest of the parametrised (kind, vcpus); the test leaves it running and healthy."""
    yield from taken(request, pool, MODERATE_RATE)


@pytest.fixture
def busy_guest(request: pytest.FixtureRequest, pool: Pool) -> Iterator[Guest]:
    """The same, its dirtier rewriting pages as fast as it can."""
    yield from taken(request, pool, FULL_SPEED)


@pytest.fixture
def guest_for_xl(request: pytest.FixtureRequest, pool: Pool) -> Iterator[Guest]:
    """A guest for tests in which `xl` resumes it: libxc then loses its ymm registers, so it leaves them alone."""
    yield from taken(request, pool, MODERATE_RATE, "lab.ymm=0")


@pytest.fixture(autouse=True)
def nothing_is_left_over(pool: Pool) -> Iterator[None]:
    """After each test there are no domains but those of the pool, and no nodes of ones that are gone."""
    yield
    if not is_control_domain():
        return
    handles = xen_lab.handles()
    alive = {str(one.domid) for one in handles.xen.domains()} - {"0"}
    known = {guest.name for guest in pool.guests.values()}
    living = [one.domid for one in handles.xen.domains() if one.domid and not one.dying]
    if {handles.store.read(f"/local/domain/{domid}/name") for domid in living} - known:
        stray = pool.destroy_strays()
        assert stray == [], f"domains left over: {stray}"
    nodes = set(handles.store.list("/local/domain")) - {"0"}
    assert nodes <= alive, f"xenstore still has nodes of domains {sorted(nodes - alive)}"


def pytest_sessionstart(session: pytest.Session) -> None:
    if is_control_domain():
        subprocess.run(["modprobe", "-q", "xen-gntdev"], check=False)
        run("xl", "dmesg", "-c")  # triple faults of before
        session.config.stash[SERVER] = ExitStack()
        session.config.stash[SERVER].enter_context(launcher.serving())
