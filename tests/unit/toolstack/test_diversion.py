"""libxl's helper, diverted and put back by the real dpkg-divert below a root of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from saverestore.cli import helper_diversion
from saverestore.errors import ErrorName, TransportError, XenRefused
from saverestore.toolstack import diversion
from saverestore.toolstack.diversion import Place, State

pytestmark = pytest.mark.skipif(shutil.which("dpkg-divert") is None, reason="dpkg is not installed")

STOCK = "Xen's own\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def ours(root: Path) -> Path:
    path = root / "usr/bin/pysave-helper"
    path.parent.mkdir(parents=True)
    path.write_text("ours\n")
    return path


@pytest.fixture
def place(root: Path) -> Place:
    install_xen(root, "4.17")
    (found,) = diversion.places(root)
    return found


def install_xen(root: Path, release: str) -> None:
    folder = root / f"usr/lib/xen-{release}/bin"
    folder.mkdir(parents=True)
    (folder / "libxl-save-helper").write_text(STOCK)
    (folder / "pygrub").touch()


def divert(root: Path, *options: str) -> str:
    command = ["dpkg-divert", "--root", str(root), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def diversions(root: Path) -> str:
    return divert(root, "--list")


def upgrade_xen(place: Place) -> None:
    """What dpkg does: the new file goes to where the old one is diverted to."""
    name = divert(place.root, "--truename", f"/{place.own.relative_to(place.root)}").strip()
    target = place.root / name.lstrip("/")
    new = target.with_name("libxl-save-helper.dpkg-new")
    new.write_text("Xen's own, newer\n")
    new.replace(target)


def test_each_release_of_xen_is_found_by_its_helper(root):
    assert diversion.places(root) == []
    for release in ("4.20", "4.17"):
        install_xen(root, release)
    (root / "usr/lib/xen-common/bin").mkdir(parents=True)
    assert [(one.release, one.state) for one in diversion.places(root)] == [
        ("4.17", State.STOCK),
        ("4.20", State.STOCK),
    ]


def test_enabled_libxl_starts_ours_and_xens_own_is_kept_aside(place, ours):
    assert place.enable(ours)
    assert place.state is State.OURS
    assert place.own.read_text() == "ours\n"
    assert place.stock.read_text() == STOCK
    assert "local diversion of /usr/lib/xen-4.17/bin/libxl-save-helper to" in diversions(place.root)


def test_disabled_all_is_as_before(place, ours):
    before = names_in(place.folder)
    place.enable(ours)
    assert place.disable()
    assert place.state is State.STOCK
    assert (place.own.is_symlink(), place.own.read_text()) == (False, STOCK)
    assert names_in(place.folder) == before
    assert diversions(place.root) == ""


def test_a_second_time_changes_nothing(place, ours):
    assert not place.disable()
    place.enable(ours)
    before = place.own.lstat()
    assert not place.enable(ours)
    assert place.own.lstat() == before
    place.disable()
    assert not place.disable()


def test_a_helper_elsewhere_takes_the_place_of_the_one_before(place, ours, tmp_path):
    place.enable(ours)
    other = tmp_path / "local/pysave-helper"
    other.parent.mkdir()
    other.touch()
    assert place.enable(other)
    assert place.target == other
    assert place.stock.read_text() == STOCK


def test_an_upgrade_of_xen_leaves_ours_in_place_and_its_helper_comes_back(place, ours):
    place.enable(ours)
    upgrade_xen(place)
    assert place.state is State.OURS
    place.disable()
    assert place.own.read_text() == "Xen's own, newer\n"


def test_what_was_made_by_hand_is_recognised(place, ours):
    name = f"/{place.own.relative_to(place.root)}"
    divert(place.root, "--local", "--rename", "--divert", f"{name}.stock", "--add", name)
    assert place.state is State.UNFINISHED
    place.own.symlink_to(ours)
    assert place.state is State.OURS
    place.disable()
    assert place.own.read_text() == STOCK


def test_what_was_made_by_hand_with_dpkgs_own_suffix_is_recognised_and_taken_back(place, ours):
    """What 'dpkg-divert --local --rename --add' does without --divert."""
    name = f"/{place.own.relative_to(place.root)}"
    divert(place.root, "--local", "--rename", "--add", name)
    assert place.state is State.UNFINISHED
    place.own.symlink_to(ours)
    assert place.state is State.OURS
    assert place.stock == place.folder / "libxl-save-helper.distrib"
    assert not place.enable(ours)
    ours.unlink()
    assert place.state is State.LOST
    place.disable()
    assert (place.state, place.own.read_text(), diversions(place.root)) == (State.STOCK, STOCK, "")


def test_when_xen_was_removed_meanwhile_one_that_was_made_by_hand_is_still_found(place, ours):
    divert(place.root, "--local", "--rename", "--add", f"/{place.own.relative_to(place.root)}")
    assert [one.state for one in diversion.places(place.root)] == [State.UNFINISHED]


def test_a_link_that_was_made_by_hand_with_xens_own_nobody_knows_where_is_left(
    place, ours, capsys, monkeypatch
):
    """Without the link xl would have no helper at all."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    place.own.rename(place.folder / "libxl-save-helper.orig")
    place.own.symlink_to(ours)
    assert helper_diversion.disable(place.root) == 0
    assert place.own.read_text() == "ours\n"
    assert f"left as it is: xl starts {ours}, which was not put there by" in capsys.readouterr().out
    with pytest.raises(XenRefused, match="Xen's own beside it"):
        diversion.require_unclaimed([place])


@pytest.mark.parametrize(
    "options",
    [
        ("--package", "other", "--divert", "/usr/lib/xen-4.17/bin/libxl-save-helper.other"),
        ("--local", "--divert", "/srv/libxl-save-helper"),
    ],
    ids=["by a package", "into another folder"],
)
def test_a_diversion_that_is_not_ours_to_take_back_is_left_and_whose_helper_it_is_is_true(
    place, ours, options, capsys
):
    (place.root / "srv").mkdir()
    divert(place.root, *options, "--rename", "--add", f"/{place.own.relative_to(place.root)}")
    place.own.symlink_to(ours)
    assert place.state is State.OTHERS
    helper_diversion.status(place.root)
    told = capsys.readouterr().out
    assert f"xl starts {ours}, which was not put there by 'pysave-helper --enable'" in told
    ours.unlink()
    helper_diversion.status(place.root)
    nothing = f"xl can save and restore nothing: {place.own} points to {ours}, which does not exist"
    assert nothing in capsys.readouterr().out


class Killed(BaseException):
    """What no code of ours catches."""


CHANGES = [(subprocess, "run"), (Path, "hardlink_to"), (Path, "symlink_to"), (Path, "replace")]


@pytest.mark.parametrize("then", ["enable", "disable"])
@pytest.mark.parametrize("first", ["enable", "disable"])
@pytest.mark.parametrize("at", range(12))
def test_a_second_run_completes_what_a_killed_one_left_and_libxl_always_had_a_helper(
    place, ours, monkeypatch, first, then, at
):
    if first == "disable":
        place.enable(ours)
    calls = 0

    def killed_before(real):
        def call(*arguments, **more):
            nonlocal calls
            assert place.own.exists()
            calls += 1
            if calls > at:
                raise Killed
            return real(*arguments, **more)

        return call

    with monkeypatch.context() as patched:
        for owner, name in CHANGES:
            patched.setattr(owner, name, killed_before(getattr(owner, name)))
        try:
            place.enable(ours) if first == "enable" else place.disable()
        except Killed:
            assert at < 12
    assert place.own.exists()
    assert place.state in (State.STOCK, State.OURS, State.UNFINISHED)
    place.enable(ours) if then == "enable" else place.disable()
    assert place.state is (State.OURS if then == "enable" else State.STOCK)
    if then == "enable":
        assert place.stock.read_text() == STOCK
    else:
        assert place.own.read_text() == STOCK
        assert diversions(place.root) == ""
        assert names_in(place.folder) == ["libxl-save-helper", "pygrub"]


def test_a_link_to_a_helper_that_is_gone_is_reported_and_taken_back(place, ours):
    place.enable(ours)
    ours.unlink()
    assert place.state is State.LOST
    place.disable()
    assert place.own.read_text() == STOCK


def test_when_xen_was_removed_meanwhile_disabling_leaves_nothing(place, ours):
    place.enable(ours)
    place.stock.unlink()
    assert place.state is State.OURS
    place.disable()
    assert not os.path.lexists(place.own)
    assert diversion.places(place.root) == []
    assert diversions(place.root) == ""


def test_when_even_the_folder_was_removed_disabling_takes_the_diversion_back(
    place, ours, capsys, monkeypatch
):
    """Xen that is installed again would have its helper where nobody starts it."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    place.enable(ours)
    shutil.rmtree(place.folder.parent)
    helper_diversion.status(place.root)
    assert capsys.readouterr().out == (
        "Xen 4.17: is not installed, and still diverted; 'pysave-helper --disable' takes that back\n"
    )
    assert helper_diversion.disable(place.root) == 0
    assert capsys.readouterr().out == "Xen 4.17: is not installed, and no longer diverted\n"
    assert diversions(place.root) == ""
    assert helper_diversion.disable(place.root) == 0
    assert "no Xen was found" in capsys.readouterr().out


def test_without_dpkg_nothing_is_diverted(place, monkeypatch):
    monkeypatch.setattr(diversion, "DIVERT", "/nonexistent/dpkg-divert")
    assert diversion.left_over(place.root) == []


def test_diversions_of_packages_into_other_folders_and_of_other_files_are_not_left_over(place):
    elsewhere = "/usr/lib/xen-4.14/bin/libxl-save-helper"
    divert(place.root, "--local", "--no-rename", "--divert", "/srv/helper", "--add", elsewhere)
    name = "/usr/lib/xen-4.20/bin/libxl-save-helper"
    divert(place.root, "--package", "other", "--no-rename", "--divert", f"{name}.other", "--add", name)
    other = "/usr/lib/xen-4.20/bin/xenconsole"
    divert(place.root, "--local", "--no-rename", "--divert", f"{other}.other", "--add", other)
    assert diversion.left_over(place.root) == []


def wrapper(place: Place) -> None:
    place.own.rename(place.folder / "real-helper")
    place.own.symlink_to("real-helper")


def file_of_others(place: Place) -> None:
    place.own.rename(place.stock)
    place.own.write_text("#!/bin/sh\n")


def diverted_elsewhere(place: Place) -> None:
    name = f"/{place.own.relative_to(place.root)}"
    divert(place.root, "--package", "other", "--no-rename", "--divert", f"{name}.other", "--add", name)


@pytest.mark.parametrize("change", [wrapper, file_of_others, diverted_elsewhere])
def test_what_others_have_put_there_is_refused(place, change):
    change(place)
    assert place.state is State.OTHERS
    with pytest.raises(XenRefused, match=r"no changes were made") as caught:
        diversion.require_unclaimed([place])
    assert caught.value.name is ErrorName.HOST_UNSUPPORTED


def test_only_root_may(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    diversion.require_root()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TransportError, match="only root") as caught:
        diversion.require_root()
    assert caught.value.name is ErrorName.PERMISSION_DENIED


def test_a_failure_of_dpkg_names_the_file(place, ours):
    shutil.rmtree(place.root / "var/lib/dpkg")
    with pytest.raises(XenRefused, match=r"dpkg-divert, for .*/libxl-save-helper: ") as caught:
        place.enable(ours)
    assert caught.value.name is ErrorName.HOST_UNSUPPORTED
    assert place.own.read_text() == STOCK


def test_without_dpkg_the_host_is_unsupported(place, monkeypatch):
    monkeypatch.setattr(diversion, "DIVERT", "/nonexistent/dpkg-divert")
    with pytest.raises(XenRefused, match="only hosts with dpkg"):
        place.state  # noqa: B018
