"""A FUSE file system in memory with odd answers, for tests: `python mini_fuse.py FOLDER [ODDITY …]` (linux/fuse.h).

One flat folder. It mounts itself, says "mounted" on standard output, and ends when it is unmounted. Oddities:
nlink0 (no link counts), no-statfs (all zeroes), no-link, no-fsync, no-truncate, short-writes, late-eio (fsync and
flush fail), quota-at-fsync, quota-at-close (as a server of NFS may tell it), no-direct (a file
opened with O_DIRECT can be opened, not written).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from enum import IntEnum


class Op(IntEnum):
    LOOKUP, FORGET, GETATTR, SETATTR = 1, 2, 3, 4
    UNLINK, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 10, 12, 13, 14, 15, 16, 17, 18
    FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 20, 25, 26, 27, 28, 29, 30
    CREATE, BATCH_FORGET, RENAME2 = 35, 42, 45


REQUEST = struct.Struct("<IIQQIIII")
ANSWER = struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<6Q10I")
ROOT = 1
SETS_SIZE = 1 << 3
BIGGEST_WRITE = 1 << 17
BIG_WRITES = 1 << 5
"""fuse.h: of more than a page. With a call for each page a domain of 128 MiB takes minutes under emulation."""


class MiniFuse:
    def __init__(self, oddities: list[str]) -> None:
        self.odd = frozenset(oddities)
        self.names: dict[bytes, int] = {}
        self.data: dict[int, bytearray] = {}

    def attributes(self, node: int) -> bytes:
        is_root = node == ROOT
        size = 0 if is_root else len(self.data[node])
        mode = stat.S_IFDIR | 0o755 if is_root else stat.S_IFREG | 0o600
        links = 2 if is_root else 0 if "nlink0" in self.odd else 1
        times = (0,) * 6
        body = ATTRIBUTES.pack(node, size, -(-size // 512), *times, mode, links, 0, 0, 0, 4096, 0)
        return struct.pack("<QII", 0, 0, 0) + body

    def entry(self, node: int) -> bytes:
        return struct.pack("<QQQ", node, 0, 0) + self.attributes(node)

    def answer(self, op: Op, node: int, body: bytes) -> bytes:
        """What a request is answered with; OSError when it fails."""
        answers: dict[Op, Callable[[int, bytes], bytes]] = {
            Op.INIT: self.start,
            Op.LOOKUP: lambda _node, body: self.entry(self.found(body)),
            Op.GETATTR: lambda node, _body: self.attributes(node),
            Op.SETATTR: self.set_attributes,
            Op.CREATE: self.create,
            Op.OPEN: lambda _node, _body: struct.pack("<QII", 0, 0, 0),
            Op.OPENDIR: lambda _node, _body: struct.pack("<QII", 0, 0, 0),
            Op.READ: self.read,
            Op.WRITE: self.write,
            Op.STATFS: self.statfs,
            Op.UNLINK: self.unlink,
            Op.LINK: self.link,
            Op.RENAME: lambda node, body: self.rename(node, body[8:]),
            Op.RENAME2: lambda node, body: self.rename(node, body[16:]),
            Op.FSYNC: self.sync,
            Op.FLUSH: self.flush,
        }
        if op in (Op.READDIR, Op.RELEASE, Op.RELEASEDIR, Op.FSYNCDIR):
            return b""
        if op not in answers:
            raise OSError(errno.ENOSYS, "no such call")
        return answers[op](node, body)

    def start(self, _node: int, _body: bytes) -> bytes:
        return struct.pack(
            "<IIIIHHIIHHI7I", 7, 31, 65536, BIG_WRITES, 8, 6, BIGGEST_WRITE, 1, 32, 0, 0, *[0] * 7
        )

    def found(self, body: bytes) -> int:
        name = body.split(b"\0")[0]
        if name not in self.names:
            raise OSError(errno.ENOENT, "no such name")
        return self.names[name]

    def set_attributes(self, node: int, body: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & SETS_SIZE:
            if "no-truncate" in self.odd:
                raise OSError(errno.ENOSYS, "no truncate")
            data = self.data[node]
            data[:] = data[:size].ljust(size, b"\0")
        return self.attributes(node)

    def create(self, _node: int, body: bytes) -> bytes:
        node = ROOT + 1 + len(self.data)
        self.names[body[16:].split(b"\0")[0]] = node
        self.data[node] = bytearray()
        return self.entry(node) + struct.pack("<QII", 0, 0, 0)

    def read(self, node: int, body: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self.data[node][offset : offset + size])

    def write(self, node: int, body: bytes) -> bytes:
        _, offset, size, _, _, flags = struct.unpack_from("<QQIIQI", body)
        if "no-direct" in self.odd and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct writes")
        if "short-writes" in self.odd:
            size = max(1, size // 3)
        data = self.data[node]
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + size] = body[40 : 40 + size]
        return struct.pack("<II", size, 0)

    def statfs(self, _node: int, _body: bytes) -> bytes:
        if "no-statfs" in self.odd:
            return struct.pack("<5Q4I6I", *[0] * 15)
        blocks = 1 << 28
        return struct.pack("<5Q4I6I", blocks, blocks, blocks, 0, 0, 4096, 255, 4096, 0, *[0] * 6)

    def unlink(self, _node: int, body: bytes) -> bytes:
        self.found(body)
        del self.names[body.split(b"\0")[0]]
        return b""

    def link(self, _node: int, body: bytes) -> bytes:
        if "no-link" in self.odd:
            raise OSError(errno.ENOSYS, "no link")
        (old,) = struct.unpack_from("<Q", body)
        self.names[body[8:].split(b"\0")[0]] = old
        return self.entry(old)

    def rename(self, _node: int, names: bytes) -> bytes:
        old, new = names.split(b"\0")[:2]
        self.found(old)
        self.names[new] = self.names.pop(old)
        return b""

    def sync(self, node: int, body: bytes) -> bytes:
        if "no-fsync" in self.odd:
            raise OSError(errno.EINVAL, "no fsync")
        if "quota-at-fsync" in self.odd:
            raise OSError(errno.EDQUOT, "too much")
        if "quota-at-close" in self.odd:
            return b""
        return self.flush(node, body)

    def flush(self, _node: int, _body: bytes) -> bytes:
        if "late-eio" in self.odd:
            raise OSError(errno.EIO, "the disk is gone")
        if "quota-at-close" in self.odd:
            raise OSError(errno.EDQUOT, "too much")
        return b""


def serve(device: int, files: MiniFuse) -> None:
    while True:
        try:
            message = os.read(device, BIGGEST_WRITE + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # unmounted
            continue
        length, number, unique, node, *_ = REQUEST.unpack_from(message)
        if number in (Op.FORGET, Op.BATCH_FORGET):
            continue
        error_number, body = 0, b""
        try:
            op = Op(number) if number in list(Op) else None
            if op is None:
                raise OSError(errno.ENOSYS, "no such call")
            body = files.answer(op, node, message[REQUEST.size : length])
        except OSError as error:
            error_number = error.errno or errno.EIO
        try:
            os.write(device, ANSWER.pack(ANSWER.size + len(body), -error_number, unique) + body)
        except OSError:
            continue  # whoever asked has gone


def main(folder: str, oddities: list[str]) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"mini", folder.encode(), b"fuse", 0, options):
        sys.exit(f"mounting failed: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    serve(device, MiniFuse(oddities))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
