"""A root file system of another architecture: its packages are unpacked, and none of their programs runs here.

What their maintainer scripts would have done, as far as this dom0 needs it, is done by `settle`.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from xenlab.errors import LabError
from xenlab.proc import run_logged

RECIPE = "foreign 2"
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
    _compile_python(root, log)


def _compile_python(root: Path, log: Path) -> None:
    """Python's own modules and the packaged ones: compiled at each start, they would cost a minute of emulation.

    Left as they are where this machine's Python is another one: what it makes would be of no use.
    """
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('python%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if version and (root / "usr/lib" / version).is_dir():
        folders = [f"{root}/usr/lib/{version}", f"{root}/usr/lib/python3/dist-packages"]
        argv = [
            "/usr/bin/python3",
            "-m",
            "compileall",
            "-q",
            "-x",
            "/test",
            "-s",
            str(root),
            "-p",
            "/",
            *folders,
        ]
        run_logged(argv, log, shown="compileall")
