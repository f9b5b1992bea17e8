"""`tools/package`: Debian packages of this checkout, one for each suite, checked by lintian, in dist/.

They are built at native speed in the lab's root file systems, which stay as they are:

    ROOT/package-SUITE/KEY/upper/   what the packages of debian/control's Build-Depends, and lintian, add to one
    ROOT/package-SUITE.log          what apt, dpkg-buildpackage and lintian printed last

Each build starts from there, on a copy of the files that git knows.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xenlab import apt, cache, overlay, push, rootfs
from xenlab.errors import Interrupted, LabError, raise_on_signals, say, step
from xenlab.machine import CHECKOUT
from xenlab.proc import CHROOT_ENV, run_logged
from xenlab.variants import Variant, variant_named

OK, FAILED, INTERRUPTED = 0, 1, 130

RECIPE = "package 1"
SUITES = {"bookworm": "4.17", "trixie": "4.20"}
"""The variant of the lab whose root file system a package is built in, by suite."""

DIST = CHECKOUT / "dist"

INSIDE = "/mnt"
"""Where the folder of a build is in the chroot."""

BUILD_ENV = {
    **CHROOT_ENV,
    "DEBIAN_FRONTEND": "noninteractive",
    # Symbols for a debugger are worth no second package.
    "DEB_BUILD_OPTIONS": "noautodbgsym",
}

_INSTALL = """set -e
export APT_CONFIG=/mnt/apt.conf
apt-get update
apt-get build-dep -y --no-install-recommends /mnt/source
apt-get install -y --no-install-recommends lintian
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
"""

_BUILD = "cd /mnt/pysave && dpkg-buildpackage --build=binary --no-sign"

_LINTIAN = "cd /mnt && lintian --allow-root --no-cfg --info --fail-on error,warning *.changes"


@dataclass(frozen=True)
class Chroot:
    """A suite's root file system with all that builds the package."""

    variant: Variant
    lowers: tuple[Path, ...]

    @contextmanager
    def layer(self) -> Iterator[Path]:
        """A folder for `overlay.in_overlay` that is gone afterwards, with all that was changed."""
        with tempfile.TemporaryDirectory(prefix=".package-", dir=cache.cache_root()) as name:
            folder = Path(name)
            overlay.make(folder)
            yield folder


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    found = argparse.ArgumentParser(
        prog="package",
        description="Build the Debian package of this checkout, check it with lintian, and put it into dist/. Needs "
        "root.",
        epilog="The first time, a root file system is made as for 'tools/lab build', which takes minutes.",
    )
    found.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help=f"{' or '.join(SUITES)}; both when there is none",
    )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Build what was asked for: 0 when all of it was built and lintian found nothing."""
    options = parser().parse_args(argv)
    if unknown := set(options.suites) - SUITES.keys():
        parser().error(f"unknown suite {min(unknown)}: choose {' or '.join(SUITES)}")
    raise_on_signals()
    try:
        for suite in options.suites or SUITES:
            print(build(suite).relative_to(CHECKOUT))
    except LabError as error:
        if error.tail:
            print(error.tail, file=sys.stderr)
        say(f"error: {error}")
        return FAILED
    except (Interrupted, KeyboardInterrupt):
        say("interrupted: cleaned up")
        return INTERRUPTED
    return OK


def build(suite: str) -> Path:
    """Build the package for a suite: its path in dist/. LabError, with the last lines, when a step fails."""
    log = log_of(suite)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    chroot = ensure(suite, log)
    with chroot.layer() as folder:
        place = folder / "build"
        _copy_checkout(place / "pysave", version_for(suite), suite)
        for name, script in (("dpkg-buildpackage", _BUILD), ("lintian", _LINTIAN)):
            argv = overlay.in_overlay(chroot.lowers, folder, {INSIDE: place}, ["sh", "-c", script])
            with step(f"{name} for {suite}"):
                run_logged(argv, log, shown=name, env=BUILD_ENV)
        target = path_of(suite)
        target.parent.mkdir(exist_ok=True)
        return Path(shutil.copy(place / target.name, target))


def path_of(suite: str) -> Path:
    """Return where the package of a suite is when it is built."""
    return DIST / f"pysave_{version_for(suite)}_{variant_named(SUITES[suite]).arch}.deb"


def built_for(variant: str) -> Path | None:
    """Return the package that was built for a variant of the lab; None when there is none."""
    return next(
        (path for suite in SUITES if SUITES[suite] == variant and (path := path_of(suite)).is_file()), None
    )


def log_of(suite: str) -> Path:
    """Return where the output of a suite's last build is."""
    return cache.cache_root() / f"package-{suite}.log"


def ensure(suite: str, log: Path) -> Chroot:
    """Return the chroot of a suite, making it when it is missing or debian/control wants other packages."""
    if os.geteuid() != 0:
        raise LabError("packages are built in a chroot: run `tools/package` as root")
    variant = variant_named(SUITES[suite])
    control = (CHECKOUT / "debian" / "control").read_text()

    with cache.locked(cache.build_lock(), "a build"):
        apt.install_host_packages(variant.arch, log)
        root = rootfs.ensure(variant, log) / "root"

        def install(folder: Path) -> None:
            overlay.make(folder)
            place = folder / "apt"
            place.mkdir()
            apt.write_configuration(place, INSIDE, suite)
            (place / "source" / "debian").mkdir(parents=True)
            (place / "source" / "debian" / "control").write_text(control)
            binds = {INSIDE: place, "/etc/resolv.conf": Path("/etc/resolv.conf")}
            argv = overlay.in_overlay([root], folder, binds, ["sh", "-c", _INSTALL])
            with step(f"packages that build a package for {suite}"):
                run_logged(argv, log, shown="apt-get", env=BUILD_ENV)
            for name in (overlay.WORK, overlay.MERGED, "apt"):
                shutil.rmtree(folder / name)

        key = cache.key_of(RECIPE, rootfs.key(variant), build_depends(control))
        made = cache.ensure(f"package-{suite}", key, install)
    return Chroot(variant, (made / overlay.UPPER, root))


def build_depends(control: str) -> str:
    """Return the field Build-Depends of a debian/control."""
    found = re.search(r"^Build-Depends:.*\n(?:[ \t].*\n)*", control, re.MULTILINE)
    if found is None:
        raise LabError("debian/control has no Build-Depends")
    return found[0]


def version_for(suite: str) -> str:
    """Return the package's version: debian/changelog's, and the release, so that an upgrade of Debian upgrades it."""
    found = re.match(r"pysave \(([^)]+)\)", (CHECKOUT / "debian" / "changelog").read_text())
    if found is None:
        raise LabError("debian/changelog does not start with 'pysave (VERSION)'")
    return f"{found[1]}{_release_of(suite)}"


def _release_of(suite: str) -> str:
    return {"bookworm": "+deb12", "trixie": "+deb13"}[suite]


def _copy_checkout(target: Path, version: str, suite: str) -> None:
    target.mkdir(parents=True)
    push.mirror(CHECKOUT, push.checkout_files(CHECKOUT), target)
    changelog = target / "debian" / "changelog"
    text = re.sub(r"^pysave \([^)]+\) \w+;", f"pysave ({version}) {suite};", changelog.read_text())
    changelog.write_text(text)
