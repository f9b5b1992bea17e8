"""A root file system of another architecture: its packages are unpacked, and none of their programs runs here.

What their maintainer scripts would have done, as far as this dom0 needs it, is done by `settle`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from xenlab.errors import LabError
from xenlab.proc import run_logged

RECIPE = "foreign 1"
"""Change it when `settle` does something else."""

MMDEBSTRAP = (
    "--arch=arm64",
    "--variant=extract",
    # Links /bin, /lib … into /usr before anything is unpacked.
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
)

SSHD_USER = "sshd:x:104:65534::/run/sshd:/usr/sbin/nologin\n"

LINKS = {
    # of update-alternatives(1)
    "usr/bin/awk": "mawk",
    "usr/bin/pager": "less",
    "usr/lib/aarch64-linux-gnu/libblas.so.3": "blas/libblas.so.3",
    "usr/lib/aarch64-linux-gnu/liblapack.so.3": "lapack/liblapack.so.3",
    "etc/mtab": "/proc/mounts",
}


def settle(root: Path, log: Path) -> None:
    """Make of unpacked packages a system that starts: users, links, the modules' dependencies."""
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / f"etc/{name}")
    with (root / "etc/passwd").open("a") as file:
        file.write(SSHD_USER)
    for name, target in LINKS.items():
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    versions = list((root / "lib/modules").iterdir())
    if len(versions) != 1:
        raise LabError(f"{root}/lib/modules: one kernel is wanted, there are {len(versions)}")
    run_logged(["/sbin/depmod", "-b", str(root), versions[0].name], log, shown="depmod")
