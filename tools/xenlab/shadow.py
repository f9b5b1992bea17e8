"""Xen with shadow paging, from the suite's source package.

Debian builds Xen without CONFIG_SHADOW_PAGING, and log-dirty of a PV guest needs shadow mode. This is
Debian's source and Debian's configuration with that one option added: KEY/xen.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
from pathlib import Path

from xenlab import cache, sources
from xenlab.errors import LabError, step
from xenlab.proc import CHROOT_ENV, in_chroot, run_logged
from xenlab.variants import Variant

RECIPE = "shadow 1"

_BUILD_SCRIPT = """set -e
cd /mnt
dpkg-source --no-check -x *.dsc source
cd source/xen
cp /boot/xen-"$1"-amd64.config .config
sed -i '/CONFIG_SHADOW_PAGING/d' .config
echo CONFIG_SHADOW_PAGING=y >> .config
make olddefconfig
grep -qx CONFIG_SHADOW_PAGING=y .config
make -j"$2"
cp "$(ls xen.gz ../xen/xen.gz 2>/dev/null | head -n 1)" /mnt/xen.gz
"""


def key(variant: Variant) -> str:
    """Return the key of the variant's hypervisor. Like the emulator's, it names no packages of tests."""
    return cache.key_of(RECIPE, variant.suite, variant.xen, _BUILD_SCRIPT)


def path(variant: Variant) -> Path:
    """Return where the variant's hypervisor is when it is built."""
    return cache.artefact_path(f"xen-{variant.name}", key(variant))


def ensure(variant: Variant, base: Path, log: Path) -> Path:
    """Return the folder with the hypervisor, building it in the root file system of `base` if missing."""

    def build(folder: Path) -> None:
        if os.geteuid() != 0:
            raise LabError("Xen is to be built: run `tools/lab build` as root")
        with step("source package of Xen"):
            status = (base / "root/var/lib/dpkg/status").read_text()
            # Another version of the same release has the same interface to the tools.
            installed = installed_version(status, f"xen-hypervisor-{variant.xen}-amd64")
            sources.fetch("xen", variant.xen, variant.suite, folder, log, preferred=[installed])
        with step("Xen with shadow paging"):
            jobs = str(os.cpu_count() or 1)
            argv = ["sh", "-c", _BUILD_SCRIPT, "build", variant.xen, jobs]
            run_logged(in_chroot(base / "root", {"/mnt": folder}, argv), log, shown="make", env=CHROOT_ENV)
        for leftover in list(folder.iterdir()):
            if leftover.name == "xen.gz":
                (folder / "xen").write_bytes(gzip.decompress(leftover.read_bytes()))
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    return cache.ensure(f"xen-{variant.name}", key(variant), build)


def installed_version(dpkg_status: str, package: str) -> str:
    """Return the source version of an installed package, from dpkg's status file."""
    for paragraph in dpkg_status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"\S+: ", line))
        if fields.get("Package") == package:
            explicit = re.search(r"\((.+)\)", fields.get("Source", ""))
            return explicit[1] if explicit else fields["Version"]
    raise LabError(f"{package} is not in the root file system: remove the cache and run `tools/lab build`")
