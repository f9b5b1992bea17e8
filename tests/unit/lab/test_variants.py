from __future__ import annotations

import pytest
from xenlab.errors import LabError
from xenlab.variants import VARIANTS, of_architecture


def test_the_same_xen_on_another_architecture_is_found_by_name() -> None:
    assert of_architecture("4.17", "arm64") == "4.17-arm64"
    assert of_architecture("4.17", "amd64") == "4.17"
    assert of_architecture("4.17-arm64-gic2", "arm64") == "4.17-arm64-gic2"


def test_a_xen_that_the_lab_has_not_on_that_architecture_is_refused_with_those_it_has() -> None:
    with pytest.raises(LabError, match=r"no variant '4\.20' on arm64: choose one of .*4\.17-arm64"):
        of_architecture("4.20", "arm64")


def test_variants_of_an_architecture_share_their_root_file_system_and_others_do_not() -> None:
    assert VARIANTS["4.17-arm64"].place == VARIANTS["4.17-arm64-gic2"].place
    assert VARIANTS["4.17-arm64"].packages == VARIANTS["4.17-arm64-gic2"].packages
    assert VARIANTS["4.17-arm64"].place != VARIANTS["4.17"].place == "bookworm"


def test_packages_are_of_the_variants_own_architecture() -> None:
    assert "xen-hypervisor-4.17-arm64" in VARIANTS["4.17-arm64"].packages
    assert not [name for name in VARIANTS["4.17-arm64"].packages if "amd64" in name]
