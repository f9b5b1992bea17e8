"""Child processes: each in a session of its own, none outlives a command that is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from xenlab.errors import LabError, tail_of

CHROOT_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}

_GRACE_S = 10.0


def end_group(process: subprocess.Popen[bytes], grace_s: float = _GRACE_S) -> None:
    """End a child that was started in its own session, with its children; reap it."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(grace_s)
            return
        except subprocess.TimeoutExpired:
            continue


def _wait(process: subprocess.Popen[bytes], deadline: float | None, shown: str) -> int:
    """Wait for the child; on a terminal, show how long it has been running."""
    start = time.monotonic()
    on_terminal = bool(shown) and sys.stderr.isatty()
    while True:
        try:
            status = process.wait(0.5)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            if deadline is not None and now > deadline:
                raise
            if on_terminal:
                sys.stderr.write(f"\rlab:   {shown} {now - start:.0f} s ")
                sys.stderr.flush()
        else:
            if on_terminal:
                sys.stderr.write("\r\033[K")
            return status


def run_logged(
    argv: Sequence[str],
    log: Path,
    *,
    shown: str,
    timeout_s: float = 1800,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run a command with its output appended to `log`.

    Raises LabError with the log's last lines if it fails, takes longer than `timeout_s`, or is not
    installed. However this returns, the command and its children are gone.
    """
    with log.open("ab") as sink:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise LabError(f"{argv[0]} is not installed: run `tools/lab build` as root") from error
        try:
            status = _wait(process, time.monotonic() + timeout_s, shown)
        except subprocess.TimeoutExpired:
            end_group(process)
            raise LabError(f"{shown}: not finished after {timeout_s:.0f} s", tail_of(log)) from None
        except BaseException:
            end_group(process)
            raise
    if status != 0:
        raise LabError(f"{shown}: {argv[0]} failed with status {status}", tail_of(log))


def isolated(argv: Sequence[str]) -> list[str]:
    """Return `argv` in mount and pid name spaces of its own.

    What it mounts or leaves running is gone when it ends or is killed.
    """
    return [
        "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
        "--", *argv,
    ]  # fmt: skip


_CHROOT_SCRIPT = """set -e
root=$1; shift
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
for node in null zero random urandom; do
    [ -c "$root/dev/$node" ] || { : > "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; }
done
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$root" "$@"
"""


def in_chroot(root: Path, binds: Mapping[str, Path], argv: Sequence[str]) -> list[str]:
    """Return `argv` as run inside the root file system `root`, in name spaces of its own.

    `binds` maps a folder inside (which must exist there, such as /mnt) to one of the machine.
    """
    pairs = [word for inside, outside in binds.items() for word in (str(outside), inside)]
    return isolated(["sh", "-c", _CHROOT_SCRIPT, "chroot", str(root), *pairs, "--", *argv])
