"""How tests on Xen are run, with a Xen whose triple faults a test makes up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = Path(__file__).parents[2]
TOOLS = TESTS.parent / "tools"

CONFTEST = """
import sys
from pathlib import Path

sys.path.insert(0, {tools!r})

from on_xen import RUN, Emulated
from xenlab import triple_faults

DUMP = "(XEN) d5v0 Triple fault - invoking HVM shutdown action 1\\n(XEN) RIP:    {program_counter}"


def pytest_configure(config):
    config.stash[RUN].emulated = Emulated(
        folder=Path(__file__).parent,
        triple_faults=triple_faults,
        faults=lambda: triple_faults.parse(DUMP),
        untouched=lambda domid: False,
        first="_first",
    )
"""

XENS_OWN = "e008:[<ffff82d0402e9f3d>]"
THE_GUESTS = "0010:[<ffffffff81000000>]"

FAILS_TWICE = """
runs = []

def test_that_fails_at_first():
    runs.append(1)
    assert len(runs) > 2, f"failed in run {len(runs)}"
"""


def ran(pytester: pytest.Pytester, program_counter: str, *arguments: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST.format(tools=str(TOOLS), program_counter=program_counter))
    pytester.makepyfile(test_at_first=FAILS_TWICE)
    return pytester.runpytest_inprocess("-p", "on_xen", *arguments)


@pytest.fixture(autouse=True)
def plugin_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setattr(sys, "path", [str(TESTS), *sys.path])


def test_a_test_that_the_emulator_failed_is_run_again(pytester: pytest.Pytester) -> None:
    done = ran(pytester, XENS_OWN)
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["*2 repeats after triple faults*"])


def test_a_fault_that_may_be_ours_costs_two_passes_and_is_shown(pytester: pytest.Pytester) -> None:
    done = ran(pytester, THE_GUESTS)
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["*A triple fault that may be ours*"])


def test_a_failure_without_a_fault_is_one(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        CONFTEST.format(tools=str(TOOLS), program_counter="").replace("parse(DUMP)", "parse('')")
    )
    pytester.makepyfile(test_at_first=FAILS_TWICE)
    done = pytester.runpytest_inprocess("-p", "on_xen")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*failed in run 1*"])


def test_a_test_for_which_no_time_is_left_is_named_and_without_the_first_ones_the_run_has_failed(
    pytester: pytest.Pytester,
) -> None:
    done = ran(pytester, XENS_OWN, "--begin-within=-1")
    done.assert_outcomes(skipped=1)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.fnmatch_lines(["*1 tests NOT REACHED*", "*test_that_fails_at_first"])


def test_counts_are_written_for_the_one_who_started_the_run(pytester: pytest.Pytester) -> None:
    ran(pytester, XENS_OWN, "--summary=counts.json")
    counts = (pytester.path / "counts.json").read_text()
    assert '"passed": 1' in counts
    assert '"repeated": 2' in counts
