"""Debian packages: what `tools/package` builds, what is in them, and that they install and go without a trace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from xenlab import overlay, package, push, rootfs
from xenlab.proc import CHROOT_ENV
from xenlab.variants import variant_named

import saverestore
from saverestore.cli.pages import settings_file
from saverestore.cli.parsers import COMMANDS

ROOT = package.CHECKOUT
DEBIAN = ROOT / "debian"
PYTHON = "usr/lib/python3/dist-packages"
UNITS = sorted(path.name for path in (ROOT / "saverestore/systemd").iterdir())

# ---- the folder debian/


def test_its_version_is_that_of_the_project():
    assert (DEBIAN / "changelog").read_text().startswith(f"pysave ({saverestore.__version__}) ")


def test_the_package_of_a_suite_is_upgraded_with_the_suite():
    assert package.version_for("bookworm") == f"{saverestore.__version__}+deb12"
    assert package.version_for("bookworm") < package.version_for("trixie")


def test_each_extra_of_the_project_can_be_had_from_debian():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"pillow": "pil"}
    wanted = {
        re.split(r"[>=]", one)[0].lower()
        for extra in ("picture", "blake3", "lz4", "tls", "metrics", "route")
        for one in project["optional-dependencies"][extra]
    }
    control = (DEBIAN / "control").read_text()
    assert [name for name in wanted if f"python3-{names.get(name, name)}" not in control] == []


def test_the_packages_that_build_it_are_read_from_one_field():
    text = "Source: x\nBuild-Depends: a (= 13),\n               b | c\nStandards-Version: 4\n"
    assert package.build_depends(text) == "Build-Depends: a (= 13),\n               b | c\n"
    with pytest.raises(package.LabError, match="no Build-Depends"):
        package.build_depends("Source: x\n")


def test_a_package_is_for_the_xen_of_its_suite_once_it_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(package, "DIST", tmp_path)
    assert package.built_for("4.20") is None
    package.path_of("trixie").touch()
    assert package.built_for("4.20") == tmp_path / f"pysave_{saverestore.__version__}+deb13_amd64.deb"
    assert package.built_for("4.17-shadow") is None


def test_an_unknown_suite_is_a_mistake(capsys):
    with pytest.raises(SystemExit) as caught:
        package.main(["bullseye"])
    assert caught.value.code == 2
    assert "unknown suite bullseye" in capsys.readouterr().err


def test_a_path_that_cannot_be_mounted_is_refused():
    with pytest.raises(package.LabError, match="move the cache"):
        overlay.in_overlay([Path("/a:b")], Path("/c"), {}, ["true"])


# ---- what was built


@pytest.fixture(params=package.SUITES)
def built(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A suite and its package."""
    path = package.path_of(request.param)
    if not path.is_file():
        pytest.skip(f"{path.relative_to(ROOT)} is not there: sudo tools/package {request.param}")
    return request.param, path


def contents(path: Path) -> set[str]:
    """The files in a package."""
    lines = subprocess.run(["dpkg-deb", "-c", str(path)], capture_output=True, text=True, check=True).stdout
    return {line.split()[5].removeprefix("./") for line in lines.splitlines() if not line.startswith("d")}


@pytest.mark.slow
def test_the_package_has_all_that_belongs_to_it_and_no_more(built):
    suite, path = built
    units = {"bookworm": "lib/systemd/system", "trixie": "usr/lib/systemd/system"}[suite]
    files = [str(file) for file in push.checkout_files(ROOT) if file.parts[0] in ("pyxc", "saverestore")]
    expected = {
        *(f"{PYTHON}/{name}" for name in files),
        *(f"{PYTHON}/{name}.abi3.so" for name in ("pyxc/_xen", "pyxc/_libxl", "saverestore/_kernels")),
        *(f"usr/bin/{name}" for name in COMMANDS),
        *(f"usr/share/man/man1/{name}.1.gz" for name in COMMANDS),
        *(f"usr/share/bash-completion/completions/{name}" for name in COMMANDS),
        *(f"usr/share/zsh/vendor-completions/_{name}" for name in COMMANDS),
        *(f"{units}/{name}" for name in UNITS),
        "etc/xen/pysave.toml",
        *(
            f"usr/share/doc/pysave/{name}"
            for name in ("CHANGELOG.md.gz", "README.md.gz", "changelog.gz", "copyright")
        ),
    }
    found = {name for name in contents(path) if ".dist-info/" not in name}
    assert (found - expected, expected - found) == (set(), set())


def field(path: Path, name: str) -> str:
    return subprocess.run(
        ["dpkg-deb", "-f", str(path), name], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_it_depends_on_the_very_xen_that_it_was_built_against(built):
    suite, path = built
    needed = re.findall(r"libxenmisc([\d.]+) ", field(path, "Depends"))
    assert needed == [package.SUITES[suite]]


@pytest.mark.slow
def test_no_script_of_the_package_starts_or_stops_a_unit(built, tmp_path):
    """Stopping pysave-domains.service saves all domains of the host."""
    subprocess.run(["dpkg-deb", "-e", str(built[1]), str(tmp_path / "control")], check=True)
    scripts = {name: (tmp_path / "control" / name).read_text() for name in ("postinst", "prerm", "postrm")}
    preinst = tmp_path / "control" / "preinst"
    scripts["preinst"] = preinst.read_text() if preinst.exists() else ""
    assert "deb-systemd-helper" in scripts["postinst"]
    assert [name for name, text in scripts.items() if re.search(r"deb-systemd-invoke|invoke-rc", text)] == []
    assert (tmp_path / "control" / "conffiles").read_text().split() == ["/etc/xen/pysave.toml"]


@pytest.fixture
def chroot(built: tuple[str, Path]) -> Iterator[Installed]:
    """A dom0 of the lab, not booted, in which the package is installed."""
    suite, path = built
    if os.geteuid() != 0:
        pytest.skip("needs root")
    variant = variant_named(package.SUITES[suite])
    root = rootfs.path(variant) / "root"
    if not root.is_dir():
        pytest.skip(f"{root} is not there: sudo tools/lab build --xen {variant.name}")
    with package.Chroot(variant, (root,)).layer() as folder:
        (folder / "build").mkdir()
        shutil.copy(path, folder / "build/pysave.deb")
        yield Installed(root, folder)


class Installed:
    """The package in its chroot."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        # The lab has no man pages on its disks.
        self.run("rm /etc/dpkg/dpkg.cfg.d/99mmdebstrap")
        self.before = self.files()
        self.install()

    def install(self) -> None:
        """Once more is an upgrade."""
        self.run("dpkg -i /mnt/pysave.deb")

    def run(self, line: str, code: int = 0) -> str:
        """What a shell line prints, after it has ended with this code."""
        argv = overlay.in_overlay(
            [self._root], self._folder, {"/mnt": self._folder / "build"}, ["sh", "-ec", line]
        )
        env = {**CHROOT_ENV, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def files(self) -> set[str]:
        """All paths, without what dpkg keeps for itself."""
        found = self.run("find / -xdev -not -path '/proc*' -not -path '/tmp*' -not -path '/mnt*'")
        kept = re.compile(r"/(var/lib/dpkg|var/log|var/cache|run|opt)(/|$)")
        return {path for path in found.splitlines() if not kept.match(path)}


@pytest.mark.slow
def test_installed_it_knows_its_xen_and_has_its_files(built, chroot):
    version = chroot.run("pysave --version")
    assert f"(built for Xen {package.SUITES[built[0]]}, with libxl; compiled kernels)" in version
    assert chroot.run("cat /etc/xen/pysave.toml") == settings_file()
    assert "pysave.1.gz" in chroot.run("ls /usr/share/man/man1")


@pytest.mark.slow
def test_units_are_installed_and_none_is_enabled(chroot):
    names = " ".join(name for name in UNITS if "@" not in name and name != "pysave-snapshots.service")
    assert set(chroot.run(f"systemctl is-enabled {names}", 1).split()) == {"disabled"}
    assert chroot.run("find /etc/systemd -name 'py*'") == ""


@pytest.mark.slow
def test_an_upgrade_keeps_the_diversion_and_a_removal_takes_it_back(built, chroot):
    own = f"/usr/lib/xen-{package.SUITES[built[0]]}/bin/libxl-save-helper"
    stock = chroot.run(f"md5sum < {own}")
    chroot.run("pysave-helper --enable")
    assert chroot.run(f"readlink {own}") == "/usr/bin/pysave-helper\n"
    assert "xl starts /usr/bin/pysave-helper" in chroot.run("pysave-helper --status")
    chroot.install()
    assert chroot.run(f"readlink {own}; md5sum < {own}.stock") == f"/usr/bin/pysave-helper\n{stock}"
    chroot.run("dpkg -r pysave")
    assert chroot.run(f"md5sum < {own}; dpkg-divert --list '*libxl-save-helper'") == stock


@pytest.mark.slow
def test_settings_that_were_changed_survive_a_removal_and_a_purge_leaves_nothing(chroot):
    chroot.run("echo 'workers = 3' >> /etc/xen/pysave.toml; pysave-helper --enable")
    chroot.install()
    chroot.run("dpkg -r pysave")
    assert "workers = 3" in chroot.run("cat /etc/xen/pysave.toml")
    chroot.run("dpkg -P pysave")
    assert chroot.files() - chroot.before == set()
    assert chroot.before - chroot.files() == set()
