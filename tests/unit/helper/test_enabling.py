"""`pysave-helper --enable`, `--disable`, `--status`: what is printed, exit codes, and for which Xen."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.cli import helper, helper_diversion
from saverestore.guest.common import handles
from saverestore.toolstack import programs

pytestmark = pytest.mark.skipif(shutil.which("dpkg-divert") is None, reason="dpkg is not installed")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With Xen 4.17 and 4.20; this package is built for the first."""
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    for release in ("4.17", "4.20"):
        own = tmp_path / f"usr/lib/xen-{release}/bin/libxl-save-helper"
        own.parent.mkdir(parents=True)
        own.write_text(release)
    ours = tmp_path / "pysave-helper"
    ours.touch()
    monkeypatch.setattr(programs, "path_of", {"pysave-helper": ours}.__getitem__)
    monkeypatch.setattr(handles, "built_for", lambda: "4.17")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], root: Path) -> list[str]:
    out, err = capsys.readouterr()
    assert err == ""
    return out.replace(f"{root}/", "").splitlines()


def test_the_status_names_each_xen_before_and_after(root, capsys):
    assert helper_diversion.status(root) == 0
    assert printed(capsys, root) == [
        "Xen 4.17: xl starts Xen's own helper",
        "Xen 4.20: xl starts Xen's own helper",
    ]
    helper_diversion.enable(root)
    capsys.readouterr()
    assert helper_diversion.status(root) == 0
    assert printed(capsys, root) == [
        "Xen 4.17: xl starts pysave-helper (Xen's own helper: usr/lib/xen-4.17/bin/libxl-save-helper.stock)",
        "Xen 4.20: xl starts Xen's own helper",
    ]


def test_it_is_enabled_for_the_xen_that_it_was_built_for_only(root, capsys):
    assert helper_diversion.enable(root) == 0
    assert printed(capsys, root) == [
        "Xen 4.20: left as it is; this package was built for Xen 4.17",
        "Xen 4.17: xl starts pysave-helper",
    ]
    assert helper_diversion.enable(root) == 0
    assert printed(capsys, root)[1] == "Xen 4.17: xl starts pysave-helper already"
    assert helper_diversion.disable(root) == 0
    assert printed(capsys, root) == [
        "Xen 4.17: xl starts Xen's own helper again",
        "Xen 4.20: xl starts Xen's own helper",
    ]


def test_where_the_build_did_not_know_its_xen_it_is_enabled_for_all(root, capsys, monkeypatch):
    monkeypatch.setattr(handles, "built_for", lambda: "unknown")
    assert helper_diversion.enable(root) == 0
    assert [line[:8] for line in printed(capsys, root)] == ["Xen 4.17", "Xen 4.20"]


@pytest.mark.parametrize(
    ("releases", "said"), [(["4.20"], "no helper of Xen 4.17"), ([], "has no libxl-save-helper")]
)
def test_without_the_xen_it_was_built_for_enabling_fails_and_disabling_does_not(root, capsys, releases, said):
    for release in {"4.17", "4.20"} - set(releases):
        shutil.rmtree(root / f"usr/lib/xen-{release}")
    assert helper_diversion.enable(root) == 6
    assert said in capsys.readouterr().err
    assert helper_diversion.disable(root) == 0
    assert helper_diversion.status(root) == 0


@pytest.mark.parametrize("work", [helper_diversion.enable, helper_diversion.disable])
def test_nobody_but_root_may(root, capsys, monkeypatch, work):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert work(root) == 5
    assert capsys.readouterr().err == (
        "pysave-helper: only root may change which libxl-save-helper is started; no changes were made\n"
    )
    assert helper_diversion.status(root) == 0


def test_with_one_helper_of_others_nothing_is_enabled(root, capsys, monkeypatch):
    monkeypatch.setattr(handles, "built_for", lambda: "unknown")
    own = root / "usr/lib/xen-4.20/bin/libxl-save-helper"
    own.rename(own.with_name("libxl-save-helper.stock"))
    own.write_text("#!/bin/sh\n")
    assert helper_diversion.enable(root) == 6
    assert "neither Xen's own nor a link" in capsys.readouterr().err
    assert not own.with_name("libxl-save-helper").is_symlink()
    assert "4.17: xl starts Xen's own" in _status(root, capsys)
    assert helper_diversion.disable(root) == 0
    assert "4.20: left as it is: " in capsys.readouterr().out


def _status(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert helper_diversion.status(root) == 0
    return capsys.readouterr().out


def test_what_is_half_done_or_broken_comes_with_what_to_do(root, capsys):
    helper_diversion.enable(root)
    capsys.readouterr()
    (root / "pysave-helper").unlink()
    said = _status(root, capsys)
    assert "xl can save and restore nothing" in said
    assert "--disable" in said
    (root / "usr/lib/xen-4.17/bin/libxl-save-helper").unlink()
    assert "half enabled" in _status(root, capsys)
    assert helper_diversion.disable(root) == 0


def test_the_options_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as caught:
        helper.main(["--enable", "--disable"])
    assert caught.value.code == 2
    assert "excludes" in capsys.readouterr().err


def test_the_command_line_reaches_the_work(monkeypatch):
    done = []
    monkeypatch.setattr(helper_diversion, "WHAT", {"status": lambda: done.append("status") or 0})
    assert helper.main(["--status"]) == 0
    assert done == ["status"]
