from __future__ import annotations

from xenlab import testing
from xenlab.variants import VARIANTS


def chosen(*arguments: str) -> dict[str, list[str]]:
    return testing.tests_on_xen(testing.parser().parse_args(arguments))


def test_without_options_each_xen_is_booted_once_and_arm64_is_among_them() -> None:
    assert list(chosen()) == ["4.17", "4.17-shadow", "4.20", "4.17-arm64"]
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
