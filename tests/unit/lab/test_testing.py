from __future__ import annotations

import pytest
from xenlab import testing
from xenlab.variants import VARIANTS


def chosen(*arguments: str) -> dict[str, list[str]]:
    return testing.tests_on_xen(testing.parser().parse_args(arguments))


def test_without_options_each_xen_is_booted_once_and_arm64_is_among_them() -> None:
    assert list(chosen()) == ["4.17-arm64", "4.20", "4.17-shadow", "4.17"]
    assert chosen()["4.17-arm64"] == testing.ARM_TESTS


def test_quick_leaves_arm64_out() -> None:
    assert chosen("--quick") == testing.FIRST_ROWS
    assert not [name for name in chosen("--quick") if VARIANTS[name].is_arm64]


def test_slow_adds_the_other_interrupt_controller() -> None:
    assert list(chosen("--slow")) == [*chosen(), "4.17-arm64-gic2"]


def test_of_variants_asked_for_only_these_run_in_the_order_asked() -> None:
    assert list(chosen("--variant", "4.17-arm64-gic2", "--variant", "4.17")) == ["4.17-arm64-gic2", "4.17"]


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
    assert f"'--begin-within={told_s}'" in line
    assert f" timeout {min(testing.XEN_TIMEOUT_S, told_s + testing.LAST_TEST_S)} " in line


@pytest.mark.parametrize("minutes", ["0", "-1", "x", "nan"])
def test_a_limit_that_is_no_time_is_wrong_usage(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        chosen(f"--minutes={minutes}")
    assert ended.value.code == 2
    assert "--minutes" in capsys.readouterr().err
