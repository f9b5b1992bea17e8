"""The Debian package in dom0: installed from the .deb, used, and gone again without a trace.

`tools/test --slow` builds it and brings it to /root/pysave.deb. Its commands are named by their path: those of the
checkout under test come first on the PATH.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import launcher
import pytest
from xen_lab import Guest, must, run

DEB = Path("/root/pysave.deb")
HELPER = "/usr/bin/pysave-helper"
DPKG_TIMEOUT_S = 900  # all modules are compiled to bytecode, under emulation

one_guest = pytest.mark.parametrize("guest", [("pvh", 1)], indirect=True, ids=["pvh"])


@pytest.fixture
def installed() -> Iterator[None]:
    """The package, purged afterwards."""
    if not DEB.is_file():
        pytest.skip(f"{DEB} is not there: tools/test --slow builds it and brings it here")
    with launcher.cold():  # the launcher has the checkout's modules loaded
        must("dpkg", "-i", str(DEB), timeout_s=DPKG_TIMEOUT_S)
        try:
            yield
        finally:
            must("dpkg", "-P", "pysave", timeout_s=DPKG_TIMEOUT_S)


def owns() -> list[Path]:
    """libxl's helpers, of each Xen that is installed: one in the lab."""
    return list(Path("/usr/lib").glob("xen-[0-9]*/bin/libxl-save-helper"))


@pytest.mark.slow
@one_guest
def test_a_guest_is_saved_and_restored_by_the_package_and_by_xl_on_it(guest: Guest, images: Path, installed):
    before = guest.state()
    must("/usr/bin/pysave", guest.name, str(images / "a.img"))
    must("/usr/bin/pyrestore", str(images / "a.img"))
    guest.goes_on(before)
    assert "it can work here" in must(HELPER, "--check")
    must(HELPER, "--enable")
    assert [own.readlink() for own in owns()] == [Path(HELPER)]
    must("xl", "save", guest.name, str(images / "b.img"))
    assert "pysave-helper" in must("/usr/bin/pyimage", "info", str(images / "b.img"))
    must("xl", "restore", str(images / "b.img"))
    guest.goes_on(before)


@pytest.mark.slow
@one_guest
def test_a_package_that_is_removed_leaves_xl_its_own_helper(guest: Guest, images: Path, installed):
    before = guest.state()
    must(HELPER, "--enable")
    must("dpkg", "-r", "pysave", timeout_s=DPKG_TIMEOUT_S)
    (own,) = owns()
    assert not own.is_symlink()
    assert run("dpkg-divert", "--list", "*libxl-save-helper").stdout == ""
    must("xl", "save", guest.name, str(images / "a.img"))
    assert "pysave-helper" not in must("pyimage", "info", str(images / "a.img"))
    must("xl", "restore", str(images / "a.img"))
    guest.goes_on(before)
