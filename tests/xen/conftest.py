"""Tests on real Xen, run in its control domain: `tools/test` pushes them into the lab and runs them there.

They need root in a dom0 with the lab's guest (`lab-guest`); on any other machine they are skipped with that
reason. With PYSAVE_REQUIRE_XEN=1 its absence is a failure. PYSAVE_XEN_VARIANT names the lab's variant. How they are
run, and which are repeated, is in tests/on_xen.py.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import launcher
import pytest
import xen_lab
from on_xen import RUN, Emulated
from xen_lab import Guest, Pool, run, state_of

WORTH_MOST = ("first_row", "contract", "save_restore", "memory")
"""Run first: when time is short, the rest may not be reached. The first of it must be."""

SERVER: pytest.StashKey[ExitStack] = pytest.StashKey()

COLD_ON = "4.17"

FULL_SPEED = 0
MODERATE_RATE = 300  # pages a second; 2000 take three quarters of a processor under emulation, from dom0


def is_control_domain() -> bool:
    try:
        return "control_d" in Path("/proc/xen/capabilities").read_text()
    except OSError:
        return False


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cold: on the default variant, commands are started as a user does, not by the launcher"
    )
    if is_control_domain():
        import triple_faults  # of the lab's dom0

        config.stash[RUN].emulated = Emulated(
            folder=Path(__file__).parents[1],  # the contract as well
            triple_faults=triple_faults,
            faults=lambda: triple_faults.parse(run("xl", "dmesg", "-c").stdout),
            untouched=xen_lab.only_booted,
            first=f"_{WORTH_MOST[0]}",
            boots_repeated=xen_lab.boots_repeated,
        )


def worth(item: pytest.Item) -> int:
    """Where it belongs in the order; those of one place keep the order they had."""
    return next((at for at, end in enumerate(WORTH_MOST) if item.path.stem.endswith(end)), len(WORTH_MOST))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if is_control_domain():
        items.sort(key=worth)
    if (is_control_domain() and shutil.which("lab-guest")) or os.environ.get("PYSAVE_REQUIRE_XEN"):
        return
    reason = "needs Xen's control domain with the lab's guest (tools/test runs it there)"
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if SERVER in session.config.stash:
        session.config.stash[SERVER].close()


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


def taken(request: pytest.FixtureRequest, pool: Pool, rate: int, *, ymm: bool = True) -> Iterator[Guest]:
    kind, vcpus = request.param
    found = pool.take(kind, vcpus, rate, ymm=ymm)
    try:
        yield found
        found.assert_clean()
        assert found.is_running(), f"the test left {found.name} {state_of(found.name)}"
    finally:
        pool.rest()


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
    yield from taken(request, pool, MODERATE_RATE, ymm=False)


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
