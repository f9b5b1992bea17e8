"""Tests on real Xen, run in its control domain: `tools/test` pushes them into the lab and runs them there.

They need root in a dom0 with the lab's guest (`lab-guest`); on any other machine they are skipped with that
reason. With PYSAVE_REQUIRE_XEN=1 its absence is a failure. PYSAVE_XEN_VARIANT names the lab's variant.

Under emulation a PVH guest now and then meets a fault of the emulated processor: Xen reports a triple fault of
a domain, often with the host's own registers in the dump. No hypervisor or guest does that on real hardware,
and a guest nobody saves meets it as well. A test during which Xen reported one is run again, and says so.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from xen_lab import Guest, Pool, run, state_of

ATTEMPTS = 8

WORTH_MOST = ("first_row", "contract", "save_restore", "memory")
"""Run first: when time is short, the rest may not be reached. The first of it must be."""

BEGUN: pytest.StashKey[float] = pytest.StashKey()
NOT_REACHED: pytest.StashKey[list[str]] = pytest.StashKey()

FULL_SPEED = 0
MODERATE_RATE = 2000  # pages a second


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="guests with devices, four vCPUs or 1 GiB, too")
    parser.addoption(
        "--begin-within", type=float, metavar="S", help="begin no test in dom0 later than S seconds from now"
    )


def is_control_domain() -> bool:
    try:
        return "control_d" in Path("/proc/xen/capabilities").read_text()
    except OSError:
        return False


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes under emulation; only with --slow")
    config.stash[BEGUN] = time.monotonic()
    config.stash[NOT_REACHED] = []


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
    for attempt in range(1, ATTEMPTS + 1):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if attempt == ATTEMPTS or not any(report.failed for report in reports):
            break
        # Those since the last failure. A test that has passed met none: its guest would have been gone.
        faults = run("xl", "dmesg", "-c").stdout.count("Triple fault")
        if not faults:
            break
        print(f"\n{item.nodeid}: Xen reported {faults} triple fault(s) of a guest: once more")
        item._initrequest()  # type: ignore[attr-defined]  # fixtures anew, as pytest-rerunfailures does
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def time_is_over(config: pytest.Config) -> bool:
    within: float | None = config.getoption("--begin-within", default=None)
    return within is not None and time.monotonic() - config.stash[BEGUN] > within


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Without the first row nothing has been shown of this Xen: that is a failure, however slow the machine."""
    names = session.config.stash[NOT_REACHED]
    nothing_ran = all(item.get_closest_marker("skip") for item in session.items)
    if names and (nothing_ran or any(f"_{WORTH_MOST[0]}.py" in name for name in names)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A test that was left out for want of time is told by name: nobody shall take it for passed."""
    if names := config.stash[NOT_REACHED]:
        terminalreporter.section(f"{len(names)} tests NOT REACHED: no time was left")
        for name in names:
            terminalreporter.line(name)


@pytest.fixture(scope="session")
def variant() -> str:
    return os.environ.get("PYSAVE_XEN_VARIANT", "4.17")


@pytest.fixture
def on_arm64() -> None:
    """For tests of arm64: elsewhere they are skipped."""
    if platform.machine() != "aarch64":
        pytest.skip("this is no arm64 machine: tools/test --variant 4.17-arm64")


@pytest.fixture(scope="session")
def handles() -> Iterator[Any]:
    """Xen and xenstore; None where there is no Xen."""
    if not is_control_domain():
        yield None
        return
    from saverestore.guest.common.handles import open_handles

    with open_handles() as opened:
        yield opened


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
def nothing_is_left_over(pool: Pool, handles: Any) -> Iterator[None]:
    """After each test there are no domains but those of the pool, and no nodes of ones that are gone."""
    yield
    if not is_control_domain():
        return
    # By the binding: `xl` and `xenstore-list` take half a second under emulation, after each of some hundred tests.
    alive = {str(one.domid) for one in handles.xen.domains()} - {"0"}
    known = {guest.name for guest in pool.guests.values()}
    living = [one.domid for one in handles.xen.domains() if one.domid and not one.dying]
    if {handles.store.read(f"/local/domain/{domid}/name") for domid in living} - known:
        stray = pool.destroy_strays()
        assert stray == [], f"domains left over: {stray}"
    nodes = set(handles.store.list("/local/domain")) - {"0"}
    assert nodes <= alive, f"xenstore still has nodes of domains {sorted(nodes - alive)}"


def pytest_sessionstart() -> None:
    if is_control_domain():
        subprocess.run(["modprobe", "-q", "xen-gntdev"], check=False)
        run("xl", "dmesg", "-c")  # triple faults of before
