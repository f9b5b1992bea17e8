"""What a dry run collects, and what ends it."""

from __future__ import annotations

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.errors import DomainError, ExitCode, ImageError, Interrupted
from saverestore.operations.preflight import Findings


def test_a_dry_run_goes_on_after_what_stands_in_the_way_and_exits_with_the_first_of_it():
    findings = Findings(dry=True)
    for error in (DomainError("a"), ImageError("b")):
        with findings.check():
            raise error
    assert [str(error) for error in findings.errors] == ["a", "b"]
    assert findings.exit_code == ExitCode.DOMAIN


def test_a_real_command_stops_at_the_first():
    with pytest.raises(DomainError), Findings().check():
        raise DomainError("a")


def test_ctrl_c_ends_a_dry_run_and_stands_in_nobodys_way():
    findings = Findings(dry=True)
    with pytest.raises(Interrupted), findings.check():
        raise Interrupted("interrupted by Ctrl-C")
    assert findings.errors == []
