"""A lab machine: one variant's dom0, from nothing to running and back.

Machine("4.17").up()              built if need be, booted, dom0 ready
Machine("4.17").run("xl list")    a command in dom0
Machine("4.17").push()            the checkout's Python, compiled for that dom0, installed there
Machine("4.17").down()            gone, with its shared ssh connection
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from xenlab import apt, cache, layer, push, qemu, rootfs, runstate, shadow, ssh
from xenlab.errors import LabError, say, step, tail_of
from xenlab.proc import end_group
from xenlab.runstate import RunState
from xenlab.variants import DEFAULT, variant_named

MEMORY_MIB = 6144
DOM0_MEMORY_MIB = 2560
ARM64_MEMORY_MIB = 3072
ARM64_DOM0_MEMORY_MIB = 1536
BOOT_TIMEOUT_S = 240.0
ARM64_BOOT_TIMEOUT_S = 600.0  # 36 s on a machine at rest, 212 s were seen on a busy one
CHECKOUT = Path(__file__).resolve().parents[2]

_FATAL = (b"Panic on CPU", b"Kernel panic", b"LAB-FAILED", b"LAB-DOM0-FAILED")
_READY = b"LAB-DOM0-READY"


class Machine:
    """The lab machine of one variant. Holds no resources itself: any number of objects may speak of it."""

    def __init__(self, variant: str = DEFAULT) -> None:
        """Raises LabError for a variant that does not exist."""
        self.variant = variant_named(variant)
        self.folder = runstate.run_folder(variant)

    @property
    def state(self) -> RunState | None:
        """What runs now; None when the machine is down."""
        return runstate.read(self.variant.name)

    @contextmanager
    def up_meanwhile(self) -> Iterator[Self]:
        """Inside this block the machine is up, with this checkout in it; then off again, unless it was up before."""
        was_up = self.state is not None
        try:
            self.up()
            if not self.variant.stock:
                self.push()
            yield self
        finally:
            if not was_up:
                self.down()

    @property
    def serial_log(self) -> Path:
        """Where the serial console's output of this boot is (of the last one when the machine is down)."""
        return self.folder / "serial.log"

    def build(self) -> qemu.Boot:
        """Build what is missing in the cache and return what to boot (with no port chosen yet)."""
        name = self.variant.name
        with cache.locked(cache.build_lock(), "a build"):
            log = cache.cache_root() / f"build-{name}.log"
            log.write_bytes(b"")
            apt.install_host_packages(self.variant.arch, log)
            base = rootfs.ensure(self.variant, log)
            layer.ensure_ssh_keys(log)
            guest = layer.ensure_guest(self.variant, base / "root", log)
            dom0 = layer.ensure_dom0(self.variant, base / "root", guest)
            xen = shadow.ensure(self.variant, base, log) / "xen" if self.variant.shadow else base / "xen"
        return qemu.Boot(
            xen=xen,
            kernel=base / "vmlinux",
            initrd=dom0 / "initrd",
            disk=base / "disk.img",
            run_folder=self.folder,
            ssh_port=0,
            memory_mib=self.memory_mib,
            dom0_memory_mib=self.dom0_memory_mib,
            gic=self.variant.gic if self.variant.is_arm64 else None,
        )

    @property
    def memory_mib(self) -> int:
        """How much memory the machine gets unless told otherwise."""
        return ARM64_MEMORY_MIB if self.variant.is_arm64 else MEMORY_MIB

    @property
    def dom0_memory_mib(self) -> int:
        """How much of it dom0 gets unless told otherwise."""
        return ARM64_DOM0_MEMORY_MIB if self.variant.is_arm64 else DOM0_MEMORY_MIB

    @property
    def is_built(self) -> bool:
        """Whether everything to boot is in the cache for the sources as they are now."""
        dom0 = layer.dom0_path(self.variant)
        parts = [rootfs.path(self.variant), *([shadow.path(self.variant)] if self.variant.shadow else [])]
        return dom0 is not None and dom0.is_dir() and all(part.is_dir() for part in parts)

    def up(self, *, memory_mib: int | None = None, dom0_memory_mib: int | None = None) -> RunState:
        """Boot the machine and return when its dom0 is ready; a machine that is up is left as it is.

        Raises LabError when dom0 is not ready in time; then nothing is left running.
        """
        memory_mib = memory_mib or self.memory_mib
        dom0_memory_mib = dom0_memory_mib or self.dom0_memory_mib
        if memory_mib < dom0_memory_mib + 512:
            raise LabError(
                f"{memory_mib} MiB hold no dom0 of {dom0_memory_mib} MiB and guests: give --memory more"
            )
        with cache.locked(self.folder / "lock", f"the {self.variant.name} machine"):
            state = self.state
            if state is not None:
                return state
            built = self.build()
            with step(f"booting Xen {self.variant.name}"):
                for attempt in range(3):
                    try:
                        return self._boot(built, memory_mib, dom0_memory_mib)
                    except _PortTaken:
                        say(f"the port was taken by another program (attempt {attempt + 1})")
            raise LabError("found no free port on 127.0.0.1: run `tools/lab up` again")

    def run(
        self,
        command: str | Sequence[str],
        timeout: float | None = 300,
        check: bool = True,
        *,
        stdin: bytes | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in dom0 and return its status and output (bytes; stdout and stderr apart).

        `command` is a line for dom0's shell, or an argv. With `check`, a status other than 0 raises
        LabError with the command's last lines. A timeout (in s) always raises LabError; dom0 may still
        be running the command then.
        """
        words = [command] if isinstance(command, str) else list(command)
        argv = ssh.command(self.variant.name, self.require_up(), words)
        shown = " ".join(words)
        try:
            done = subprocess.run(argv, capture_output=True, timeout=timeout, check=False, input=stdin or b"")
        except subprocess.TimeoutExpired as error:
            raise LabError(f"in dom0: {shown!r}: not finished after {timeout} s") from error
        if check and done.returncode != 0:
            text = (done.stdout + done.stderr).decode("utf-8", "replace")
            tail = "\n".join(text.splitlines()[-25:])
            raise LabError(f"in dom0: {shown!r}: exit status {done.returncode}", tail)
        return done

    def push(self, checkout: Path = CHECKOUT) -> bool:
        """Install the checkout in dom0 (see push); return False when dom0 had just that already."""
        state = self.require_up()
        if self.variant.stock:
            raise LabError(
                f"{self.variant.name} is for stock xl only: its Python is too old for this project"
            )
        base = rootfs.path(self.variant)
        if not base.is_dir():
            raise LabError(
                f"what {self.variant.name} is made of has changed since it was booted: run `tools/lab down` and `up`"
            )
        with cache.locked(push.work_folder(self.variant) / "lock", "a push"):
            payload = push.build_payload(self.variant, base / "root", checkout)
            mark = self.folder / "pushed"
            if mark.is_file() and mark.read_text() == payload.digest:
                return False
            mark.unlink(missing_ok=True)
            self.run(push.INSTALL_SCRIPT, stdin=payload.tar)
            if self.state == state:
                mark.write_text(payload.digest)
        return True

    def down(self) -> bool:
        """Switch the machine off (its disk forgets everything); return False when it was down."""
        state = self.state
        if state is None:
            runstate.forget(self.variant.name)
            return False
        ssh.end_shared_connection(self.variant.name, state)
        for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            if self.state is not None:
                os.kill(state.pid, number)
            deadline = time.monotonic() + seconds
            while self.state is not None and time.monotonic() < deadline:
                time.sleep(0.05)
        if self.state is not None:
            raise LabError(f"QEMU (pid {state.pid}) does not end: look at what it waits for")
        runstate.forget(self.variant.name)
        return True

    def require_up(self) -> RunState:
        """Return the state of the running machine; raises LabError when it is down."""
        state = self.state
        if state is None:
            raise LabError(
                f"the {self.variant.name} lab is down: run `tools/lab up --xen {self.variant.name}`"
            )
        return state

    def _boot(self, built: qemu.Boot, memory_mib: int, dom0_memory_mib: int) -> RunState:
        """Start QEMU and wait for dom0; on any failure or interruption QEMU is ended."""
        if not runstate.path_fits_socket(self.folder / "console.sock"):
            raise LabError(
                f"{self.folder} is too long a path for sockets: set PYSAVE_LAB_CACHE to a shorter one"
            )
        runstate.forget(self.variant.name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.serial_log.unlink(missing_ok=True)
        boot = dataclasses.replace(
            built, ssh_port=_free_port(), memory_mib=memory_mib, dom0_memory_mib=dom0_memory_mib
        )
        output = self.folder / "qemu.log"
        with output.open("wb") as sink:
            process = subprocess.Popen(
                qemu.command_line(boot),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                # QEMU keeps what dom0 writes in an unlinked file there: on the cache's disk, not a tmpfs.
                env={**os.environ, "TMPDIR": str(self.folder)},
                start_new_session=True,
            )
        try:
            state = RunState(
                pid=process.pid,
                start_ticks=runstate.start_ticks(process.pid) or 0,
                ssh_port=boot.ssh_port,
                since_s=time.time(),
                memory_mib=memory_mib,
                dom0_memory_mib=dom0_memory_mib,
                xen_key=f"{boot.xen.parent.name}-{boot.initrd.parent.name}",
            )
            self._wait_for_dom0(process, output)
            runstate.write(self.variant.name, state)
            self.run("xl info >/dev/null", timeout=60)
        except BaseException:
            end_group(process)
            runstate.forget(self.variant.name)
            raise
        return state

    def _wait_for_dom0(self, process: subprocess.Popen[bytes], output: Path) -> None:
        timeout_s = ARM64_BOOT_TIMEOUT_S if self.variant.is_arm64 else BOOT_TIMEOUT_S
        deadline = time.monotonic() + timeout_s
        while True:
            seen = self.serial_log.read_bytes() if self.serial_log.exists() else b""
            if _READY in seen:
                return
            status = process.poll()
            if status is not None:
                said = tail_of(output)
                if "hostfwd" in said or "host forwarding" in said:
                    raise _PortTaken
                raise LabError(f"QEMU ended with status {status}", said + "\n" + tail_of(self.serial_log))
            fatal = next((mark.decode() for mark in _FATAL if mark in seen), "")
            if fatal:
                time.sleep(1)  # the lines after it say why
                raise LabError(f"dom0 does not boot ({fatal})", tail_of(self.serial_log))
            if time.monotonic() > deadline:
                raise LabError(f"dom0 is not ready after {timeout_s:.0f} s", tail_of(self.serial_log))
            time.sleep(0.1)


class _PortTaken(Exception):
    """Another program took the port between choosing it and QEMU's start."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
