"""A root file system that is changed and stays as it is: changes go to a folder of their own (overlayfs)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from xenlab.errors import LabError
from xenlab.proc import in_chroot, isolated

_SCRIPT = """set -e
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4"
shift 4
exec "$@"
"""

UPPER, WORK, MERGED = "upper", "work", "merged"


def make(folder: Path) -> None:
    """Make in `folder` what a layer needs: `upper` for the changes, two folders for the kernel."""
    for name in (UPPER, WORK, MERGED):
        (folder / name).mkdir()


def in_overlay(
    lowers: Sequence[Path], folder: Path, binds: Mapping[str, Path], argv: Sequence[str]
) -> list[str]:
    """Return `argv` as run in a chroot of `lowers`, the first on top; what it changes is in `folder`, see `make`.

    `binds` is as for `in_chroot`. The lower folders stay as they are.
    """
    layers = [str(path) for path in (*lowers, folder)]
    if any(set(":,\\") & set(path) for path in layers):
        raise LabError(f"{folder}: a path with a colon, comma or backslash cannot be mounted: move the cache")
    inside = in_chroot(folder / MERGED, binds, argv)
    mount = [":".join(layers[:-1]), *(str(folder / name) for name in (UPPER, WORK, MERGED))]
    return isolated(["sh", "-c", _SCRIPT, "overlay", *mount, *inside])
