"""What is known about a running lab machine: ROOT/run/PLACE/ and the state file in it.

The place of a machine is its variant's name; that of a host of a pair is pair/a or pair/b.

state.json      pid, its start time, ssh port, when it was booted, with how much memory, whether dom0 was ready
process.json    pid and start time of a process that is no machine: the cable of a pair
serial.log      everything the machine wrote on its serial console since boot
console.sock    its serial console;  monitor.sock: QEMU's monitor;  ssh.sock: the shared ssh connection
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from xenlab import cache

_GONE_WITH_THE_MACHINE = (
    "state.json", "process.json", "console.sock", "monitor.sock", "ssh.sock", "cable.sock", "pushed",
)  # fmt: skip


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
    ready: bool = True
    """Whether dom0 was ready. A state that stays without it is of a command that was killed while it booted."""


def run_folder(place: str) -> Path:
    """Return the folder for run-time state of the machine at that place."""
    return cache.cache_root() / "run" / place


def start_ticks(pid: int) -> int | None:
    """Return when process `pid` started, in clock ticks since boot; None if there is none alive."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): field 2, the name, may hold spaces and parentheses; 3 is the state, 20 the number of threads, 22 the
    # start time. The state is the first thread's: it may be a zombie while others still hold files and their locks.
    fields = text.rpartition(")")[2].split()
    is_gone = fields[0] in ("Z", "X") and int(fields[17]) <= 1
    return None if is_gone else int(fields[19])


def write(place: str, state: RunState) -> None:
    """Record that the machine runs."""
    write_whole(run_folder(place) / "state.json", asdict(state))


def read(place: str) -> RunState | None:
    """Return the machine's state if its process lives; a stale, torn or absent file means None."""
    try:
        state = RunState(**json.loads((run_folder(place) / "state.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if start_ticks(state.pid) == state.start_ticks else None


def write_process(place: str, pid: int) -> None:
    """Record a process that is no machine."""
    write_whole(run_folder(place) / "process.json", {"pid": pid, "start_ticks": start_ticks(pid)})


def read_process(place: str) -> int | None:
    """Return the pid of the process recorded there, if it lives."""
    try:
        found = json.loads((run_folder(place) / "process.json").read_text())
        pid, ticks = int(found["pid"]), int(found["start_ticks"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return pid if start_ticks(pid) == ticks else None


def write_whole(path: Path, found: object) -> None:
    """Write a JSON file that is never seen in part."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(found))
    temporary.replace(path)


def forget(place: str) -> None:
    """Remove records and sockets; logs stay."""
    for name in _GONE_WITH_THE_MACHINE:
        (run_folder(place) / name).unlink(missing_ok=True)


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
