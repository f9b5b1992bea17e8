"""The "newc" cpio archives that Linux unpacks as its first root file system.

Written here rather than by cpio(1): no root needed for device nodes, and the same input gives the
same bytes. Layout: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath


class Archive:
    """A cpio archive that is being filled; parents of an entry are added by themselves."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._names: set[str] = set()
        self._inode = 0

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a folder; adding it twice is fine."""
        if name.strip("/") and name.strip("/") not in self._names:
            self._add(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(name, stat.S_IFCHR | mode, b"", (major, minor))

    def tree(self, name: str, source: Path) -> None:
        """Add what is in the folder `source` under `name`; files stay executable or not."""
        for path in sorted(source.rglob("*")):
            inside = f"{name}/{path.relative_to(source)}"
            if path.is_symlink():
                self.symlink(inside, str(path.readlink()))
            elif path.is_dir():
                self.directory(inside)
            else:
                self.file(inside, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def finish(self) -> bytes:
        """Return the archive, ended by its trailer."""
        return b"".join(self._chunks) + self._entry("TRAILER!!!", 0, 0, b"", (0, 0))

    def _add(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        name = name.strip("/")
        if name in self._names:
            raise ValueError(f"{name} is in the archive already")
        parent = str(PurePosixPath(name).parent)
        if parent != ".":
            self.directory(parent)
        self._names.add(name)
        self._inode += 1
        self._chunks.append(self._entry(name, self._inode, mode, data, device))

    @staticmethod
    def _entry(name: str, inode: int, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # c_ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        # namesize, check
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        head = header + encoded
        return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
