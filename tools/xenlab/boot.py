"""Starting QEMU, and waiting for the dom0 in it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from xenlab import qemu, runstate
from xenlab.errors import LabError, tail_of
from xenlab.proc import end_group
from xenlab.runstate import RunState

TIMEOUT_S = 240.0
ARM64_TIMEOUT_S = 600.0  # 36 s on a machine at rest, 212 s were seen on a busy one

DEVICES_NICE = -10

_FATAL = (b"Panic on CPU", b"Kernel panic", b"LAB-FAILED", b"LAB-DOM0-FAILED")
_READY = b"LAB-DOM0-READY"


class PortTaken(Exception):
    """Another program took the port between choosing it and QEMU's start."""


@dataclass
class Booting:
    """A machine whose QEMU was started: to be waited for, or to be abandoned."""

    place: str
    boot: qemu.Boot
    process: subprocess.Popen[bytes]
    state: RunState

    @property
    def _serial_log(self) -> Path:
        return self.boot.run_folder / "serial.log"

    def wait(self) -> RunState:
        """Return when dom0 is ready.

        Raises LabError when it will not be, PortTaken when QEMU did not get its port: start it again.
        """
        timeout_s = TIMEOUT_S if self.boot.gic is None else ARM64_TIMEOUT_S
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self._serial_log.read_bytes() if self._serial_log.exists() else b""
            if _READY in seen:
                with contextlib.suppress(PermissionError, ProcessLookupError):
                    # QEMU's first thread, which serves disks and cards: its processors would keep it waiting.
                    os.setpriority(os.PRIO_PROCESS, self.process.pid, DEVICES_NICE)
                ready = dataclasses.replace(self.state, ready=True)
                runstate.write(self.place, ready)
                return ready
            status = self.process.poll()
            if status is not None:
                said = tail_of(self.boot.run_folder / "qemu.log")
                if "hostfwd" in said or "host forwarding" in said:
                    raise PortTaken
                raise LabError(f"QEMU ended with status {status}", said + "\n" + tail_of(self._serial_log))
            fatal = next((mark.decode() for mark in _FATAL if mark in seen), "")
            if fatal:
                time.sleep(1)  # the lines after it say why
                raise LabError(f"dom0 does not boot ({fatal})", tail_of(self._serial_log))
            if time.monotonic() > deadline:
                raise LabError(f"dom0 is not ready after {timeout_s:.0f} s", tail_of(self._serial_log))
            time.sleep(0.1)

    def abandon(self) -> None:
        """End QEMU; nothing of this boot is left but its logs."""
        end_group(self.process)
        runstate.forget(self.place)


def start(place: str, built: qemu.Boot) -> Booting:
    """Start QEMU with a free port for ssh."""
    folder = built.run_folder
    if not runstate.path_fits_socket(folder / "console.sock"):
        raise LabError(f"{folder} is too long a path for sockets: set PYSAVE_LAB_CACHE to a shorter one")
    runstate.forget(place)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "serial.log").unlink(missing_ok=True)
    boot = dataclasses.replace(built, ssh_port=_free_port())
    with (folder / "qemu.log").open("wb") as sink:
        process = subprocess.Popen(
            qemu.command_line(boot),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            # QEMU keeps what dom0 writes in an unlinked file there: on the cache's disk, not a tmpfs.
            env={**os.environ, "TMPDIR": str(folder)},
            start_new_session=True,
        )
    try:
        state = RunState(
            pid=process.pid,
            start_ticks=runstate.start_ticks(process.pid) or 0,
            ssh_port=boot.ssh_port,
            since_s=time.time(),
            memory_mib=boot.memory_mib,
            dom0_memory_mib=boot.dom0_memory_mib,
            xen_key=f"{boot.xen.parent.name}-{boot.initrd.parent.name}",
            ready=False,
        )
        runstate.write(place, state)
    except BaseException:
        end_group(process)
        raise
    return Booting(place, boot, process, state)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
