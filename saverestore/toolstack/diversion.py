"""Which save helper libxl starts on this host: Xen's own, or ours in its place by a diversion of dpkg's.

    /usr/lib/xen-X.Y/bin/libxl-save-helper         what libxl starts: Xen's own, or a link to ours
    /usr/lib/xen-X.Y/bin/libxl-save-helper.stock   Xen's own, while dpkg diverts it; upgrades of Xen go there, too

A diversion that was made by hand is as good, to whatever name in that folder (".distrib" is dpkg's own suffix).

At each moment of `enable` and `disable` libxl finds a helper under its name. If one of them is killed, either of them
completes what it left. Paths are below a root, which is / but for tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from saverestore.errors import ErrorName, TransportError, XenRefused
from saverestore.toolstack.programs import HELPER

NAME = "libxl-save-helper"
SUFFIX = ".stock"
DIVERT = "dpkg-divert"
LOCALLY = "local diversion of "
"""How dpkg-divert begins a line of its list, of a diversion that is no package's."""


class State(Enum):
    """Whose helper libxl starts."""

    STOCK = auto()
    OURS = auto()
    UNFINISHED = auto()  # an `enable` or `disable` was interrupted, or made by hand in part
    LOST = auto()  # a link to a helper of ours that is no longer there: libxl can start none
    OTHERS = auto()  # somebody else has put a helper there, or a link to ours, or diverts it: left as it is


@dataclass(frozen=True)
class Place:
    """Where the libxl of one release of Xen looks for its helper."""

    root: Path
    folder: Path

    @property
    def release(self) -> str:
        """As "4.17"."""
        return self.folder.parent.name.removeprefix("xen-")

    @property
    def own(self) -> Path:
        """What libxl starts."""
        return self.folder / NAME

    @property
    def stock(self) -> Path:
        """Where Xen's own helper is meanwhile."""
        return self._diverted_to or self.folder / f"{NAME}{SUFFIX}"

    @property
    def _diverted_to(self) -> Path | None:
        """Where a diversion has it that `disable` may take back; None where there is none."""
        match self._diversion():
            case ("LOCAL", name) if (path := self.root / name.lstrip("/")).parent == self.folder:
                return path
        return None

    @property
    def is_diverted_beside(self) -> bool:
        """Whether a diversion has it in the same folder, as `enable` does."""
        return self._diverted_to is not None

    @property
    def _new(self) -> Path:
        """The link to ours before it takes its name."""
        return self.folder / f".{NAME}.new"

    @property
    def target(self) -> Path | None:
        """What the link to a helper of ours points to; None when libxl's helper is no such link."""
        if not self.own.is_symlink():
            return None
        target = self.own.readlink()
        return target if target.name == HELPER else None

    @property
    def state(self) -> State:
        """What is there, by dpkg's database and the files."""
        diverted = self._diversion()
        if diverted and self._diverted_to is None:
            return State.OTHERS
        if self.target is not None:
            if not self.own.exists():
                return State.LOST
            if diverted:
                return State.OURS
            # By hand, with Xen's own who knows where: without the link libxl would have none.
            return State.UNFINISHED if self.stock.exists() else State.OTHERS
        if not os.path.lexists(self.own):
            return State.UNFINISHED
        if self.own.is_symlink():
            return State.OTHERS
        stock = self.stock
        if stock.exists() and not self.own.samefile(stock):
            return State.OTHERS
        return State.UNFINISHED if diverted or stock.exists() else State.STOCK

    def enable(self, ours: Path) -> bool:
        """Have libxl start the helper at `ours`: whether anything had to be changed. Not for OTHERS."""
        if self.state is State.OURS and self.target == ours:
            return False
        stock = self.stock
        if self._diversion() is None:
            # Renaming is done below: dpkg-divert would leave libxl without a helper for a moment.
            self._divert("--local", "--no-rename", "--divert", self._inside(stock), "--add")
        if self.own.exists() and self.target is None and not stock.exists():
            stock.hardlink_to(self.own)
        self._new.unlink(missing_ok=True)
        self._new.symlink_to(ours)
        self._new.replace(self.own)
        return True

    def disable(self) -> bool:
        """Have libxl start Xen's own helper again: whether anything had to be changed. Not for OTHERS."""
        self._new.unlink(missing_ok=True)
        if self.state is State.STOCK:
            return False
        stock = self.stock
        if stock.exists():
            if self.own.exists() and self.own.samefile(stock):
                stock.unlink()  # rename(2) does nothing with two links to one file
            else:
                stock.replace(self.own)
        elif self.target is not None:  # Xen was removed meanwhile
            self.own.unlink()
        if self._diversion() is not None:
            self._divert("--local", "--no-rename", "--remove")
        return True

    def _inside(self, path: Path) -> str:
        return f"/{path.relative_to(self.root)}"

    def _diversion(self) -> tuple[str, str] | None:
        """Whose diversion there is ("LOCAL", or a package) and where to; None without one."""
        whose = self._divert("--listpackage")
        return (whose, self._divert("--truename")) if whose else None

    def _divert(self, *options: str) -> str:
        """What dpkg-divert prints, with these options, for libxl's helper. XenRefused when it fails."""
        return _dpkg_divert(self.root, *options, self._inside(self.own), what=str(self.own))


def _dpkg_divert(root: Path, *words: str, what: str) -> str:
    """What dpkg-divert prints. XenRefused, naming `what`, when it fails."""
    command = [DIVERT, "--root", str(root), *words]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise XenRefused(
            f"{DIVERT} is missing: only hosts with dpkg are supported", name=ErrorName.HOST_UNSUPPORTED
        ) from error
    if done.returncode != 0:
        raise XenRefused(
            f"{DIVERT}, for {what}: {done.stderr.strip().removeprefix(f'{DIVERT}: error: ')}",
            name=ErrorName.HOST_UNSUPPORTED,
        )
    return done.stdout.strip()


def places(root: Path = Path("/")) -> list[Place]:
    """One for each release of Xen whose helper, or what took its place, is installed."""
    folders = {path.parent for path in root.glob(f"usr/lib/xen-[0-9]*/bin/{NAME}*")}
    found = (Place(root, folder) for folder in sorted(folders))
    return [one for one in found if os.path.lexists(one.own) or one.stock.exists()]


def left_over(root: Path = Path("/")) -> list[Place]:
    """Those where only a diversion is left, which `disable` may take back: somebody has removed the files. Xen that
    is installed there again would have its helper where nobody starts it. None where there is no dpkg.
    """
    if shutil.which(DIVERT) is None:
        return []
    listed = _dpkg_divert(root, "--list", f"/usr/lib/xen-*/bin/{NAME}", what=NAME)
    names = (
        line.removeprefix(LOCALLY).partition(" to ")[0]
        for line in listed.splitlines()
        if line.startswith(LOCALLY)
    )
    there = places(root)
    found = (Place(root, (root / name.lstrip("/")).parent) for name in sorted(names))
    return [one for one in found if one not in there and one.is_diverted_beside]


def require_root() -> None:
    """TransportError (permission_denied) for anybody else."""
    if os.geteuid() != 0:
        raise TransportError(
            f"only root may change which {NAME} is started; no changes were made",
            name=ErrorName.PERMISSION_DENIED,
        )


def require_unclaimed(found: list[Place]) -> None:
    """XenRefused when somebody else has put a helper into one of these places, or diverts it."""
    for place in found:
        if place.state is State.OTHERS:
            raise XenRefused(
                f"{place.own} is neither Xen's own nor a link to {HELPER} with Xen's own beside it, or is "
                "diverted for somebody else; no changes were made",
                name=ErrorName.HOST_UNSUPPORTED,
            )
