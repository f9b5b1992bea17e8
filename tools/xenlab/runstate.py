"""What is known about a running lab machine: ROOT/run/VARIANT/ and the state file in it.

state.json      pid, its start time, ssh port, when it was booted, with how much memory
serial.log      everything the machine wrote on its serial console since boot
console.sock    its serial console;  monitor.sock: QEMU's monitor;  ssh.sock: the shared ssh connection
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from xenlab import cache


@dataclass(frozen=True)
class RunState:
    """A machine that was started."""

    pid: int
    start_ticks: int
    """The process's start time as the kernel counts it: tells a reused pid."""
    ssh_port: int
    since_s: float
    """Unix time of the boot."""
    memory_mib: int
    dom0_memory_mib: int
    xen_key: str
    """Of what was booted (hypervisor and initrd): tells an outdated machine."""


def run_folder(variant: str) -> Path:
    """Return the variant's folder for run-time state."""
    return cache.cache_root() / "run" / variant


def start_ticks(pid: int) -> int | None:
    """Return when process `pid` started, in clock ticks since boot; None if there is none alive."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): field 2, the name, may hold spaces and parentheses; 3 is the state, 22 the start time.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def write(variant: str, state: RunState) -> None:
    """Record that the variant runs."""
    path = run_folder(variant) / "state.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(state)))
    temporary.replace(path)


def read(variant: str) -> RunState | None:
    """Return the variant's state if its process lives; a stale, torn or absent file means None."""
    try:
        state = RunState(**json.loads((run_folder(variant) / "state.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if start_ticks(state.pid) == state.start_ticks else None


def forget(variant: str) -> None:
    """Remove the record and the sockets; the serial log stays."""
    for name in ("state.json", "console.sock", "monitor.sock", "ssh.sock", "pushed"):
        (run_folder(variant) / name).unlink(missing_ok=True)


def age_text(seconds: float) -> str:
    """Return a duration as people say it: 45s, 12m, 3h05m, 2d04h."""
    minutes, hours = int(seconds) // 60, int(seconds) // 3600
    if minutes < 1:
        return f"{int(seconds)}s"
    if hours < 1:
        return f"{minutes}m"
    if hours < 24:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{hours // 24}d{hours % 24:02d}h"


def path_fits_socket(path: Path) -> bool:
    """Return whether a unix socket can have this path (unix(7): 108 bytes with the end)."""
    return len(os.fsencode(path)) < 100
