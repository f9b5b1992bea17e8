from __future__ import annotations

import json
from pathlib import Path

import pytest
from xenlab import testing
from xenlab.machine import CHECKOUT
from xenlab.pair import variants_of
from xenlab.variants import VARIANTS


def chosen(*arguments: str) -> dict[str, list[str]]:
    return testing.tests_on_xen(testing.parser().parse_args(arguments))


def test_without_options_each_xen_is_booted_once_and_arm64_is_among_them() -> None:
    assert list(chosen()) == ["4.17-arm64", "4.20", "4.17-shadow", "pair", "4.17"]
    assert chosen()["4.17-arm64"] == testing.ARM_TESTS


def test_quick_leaves_arm64_and_the_pair_out() -> None:
    assert chosen("--quick") == testing.FIRST_ROWS
    assert not [name for name in chosen("--quick") if name in VARIANTS and VARIANTS[name].is_arm64]


def test_slow_adds_the_other_interrupt_controller() -> None:
    assert list(chosen("--slow")) == [*chosen(), "4.17-arm64-gic2"]


def test_slow_adds_the_other_rows_of_the_support_table_on_the_other_xen() -> None:
    slow, usual = chosen("--slow")["4.20"], chosen()["4.20"]
    assert set(usual) < set(slow)
    assert "tests/xen/test_devices.py" in slow
    assert chosen("--slow", "--variant", "4.20") == {"4.20": slow}
    assert chosen("--variant", "4.20") == {"4.20": usual}


def test_of_variants_asked_for_only_these_run_in_the_order_asked() -> None:
    assert list(chosen("--variant", "4.17-arm64-gic2", "--variant", "4.17")) == ["4.17-arm64-gic2", "4.17"]


def test_a_file_of_tests_that_is_named_runs_alone() -> None:
    named = "tests/xen/test_faults.py::test_two_saves"
    assert chosen("--variant", "4.17", "--", named, "-x") == {"4.17": []}
    assert chosen("--variant", "4.17", "--", "-k", "two_saves") == chosen("--variant", "4.17")


def test_a_pair_runs_its_core_tests_and_all_of_them_where_it_is_asked_for() -> None:
    for options in ([], ["--slow"]):
        assert set(chosen(*options)) & set(testing.PAIRS) == {"pair"}
        assert chosen(*options)["pair"] == testing.PAIR_CORE
    assert chosen("--variant", "pair", "--variant", "pair-4.17-4.20") == {
        "pair": testing.PAIR_TESTS,
        "pair-4.17-4.20": testing.PAIR_TESTS,
    }
    for variants in testing.PAIRS.values():
        assert set(variants_of(variants)) == {"a", "b"}


def test_of_a_pairs_tests_quick_runs_those_marked_core() -> None:
    assert chosen("--quick", "--variant", "pair") == {"pair": testing.PAIR_CORE}


def test_quick_with_a_variant_that_has_no_first_row_runs_all_that_it_has() -> None:
    assert chosen("--quick", "--variant", "4.17-arm64") == {"4.17-arm64": testing.ARM_TESTS}
    assert chosen("--quick", "--variant", "4.17") == {"4.17": testing.FIRST_ROWS["4.17"]}


def test_without_a_limit_of_time_all_tests_begin_on_xen_and_only_a_hang_ends_them() -> None:
    line = testing._in_dom0("4.17", ["tests/xen"], None)
    assert "--begin-within" not in line
    assert f"timeout {testing.XEN_TIMEOUT_S} " in line


@pytest.mark.parametrize(("left_s", "told_s"), [(600.4, 600), (0.0, 0), (-3.0, 0), (9999.0, 9999)])
def test_with_a_limit_tests_on_xen_begin_while_time_is_left_and_the_last_has_time_to_end(
    left_s: float, told_s: int
) -> None:
    line = testing._in_dom0("4.17", ["tests/xen"], left_s)
    assert f"--begin-within={told_s}" in line
    assert f" timeout {min(testing.XEN_TIMEOUT_S, told_s + testing.LAST_TEST_S)} " in line


def test_where_all_must_be_reached_what_is_left_then_fails_and_the_run_is_stopped_soon_after() -> None:
    line = testing._in_dom0("4.17", ["tests/xen"], 600.0, all_reached=True)
    assert "--begin-within=600 --all-reached" in line
    assert f" timeout {600 + testing.LAST_FAILED_TEST_S} " in line


def test_ci_ends_within_90_minutes_even_if_its_last_test_hangs() -> None:
    (command,) = [
        line for line in Path(CHECKOUT, ".ci/run").read_text().splitlines() if line.startswith("exec")
    ]
    options = testing.parser().parse_args(command.split()[2:])
    assert options.all_within + testing.LAST_FAILED_TEST_S / 60 < 88


def test_one_may_not_ask_for_both_limits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        chosen("--minutes=5", "--all-within=5")
    assert "not allowed with" in capsys.readouterr().err


def test_counts_are_printed_with_what_was_repeated_and_not_reached() -> None:
    counts = {
        "passed": 230,
        "failed": 0,
        "not_reached": 2,
        "repeated": 4,
        "maybe_ours": 0,
        "boots_repeated": 0,
    }
    told = testing._told(json.dumps(counts))
    assert told == "230 passed, 0 failed, 2 not reached, 4 repeated after triple faults"
    assert "1 of them with the guest's own" in testing._told(json.dumps({**counts, "maybe_ours": 1}))
    assert "1 guests booted again" in testing._told(json.dumps({**counts, "boots_repeated": 1}))


def test_without_counts_it_is_clear_that_pytest_did_not_end() -> None:
    assert "did not come to its end" in testing._told("")


@pytest.mark.parametrize("minutes", ["0", "-1", "x", "nan"])
def test_a_limit_that_is_no_time_is_wrong_usage(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        chosen(f"--minutes={minutes}")
    assert ended.value.code == 2
    assert "--minutes" in capsys.readouterr().err
