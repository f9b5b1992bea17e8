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
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from xenlab import apt, boot, cache, emulator, layer, push, qemu, rootfs, runstate, shadow, ssh
from xenlab.errors import LabError, say, step
from xenlab.runstate import RunState
from xenlab.variants import DEFAULT, variant_named

MEMORY_MIB = 6144
DOM0_MEMORY_MIB = 2560
ARM64_MEMORY_MIB = 3072
ARM64_DOM0_MEMORY_MIB = 1536
CHECKOUT = Path(__file__).resolve().parents[2]


class Machine:
    """The lab machine of one variant. Holds no resources itself: any number of objects may speak of it."""

    def __init__(self, variant: str = DEFAULT, place: str | None = None) -> None:
        """Raises LabError for a variant that does not exist.

        `place` is where its run-time state is; by default that of the variant's one machine.
        """
        self.variant = variant_named(variant)
        self.place = place or variant
        self.folder = runstate.run_folder(self.place)

    @property
    def label(self) -> str:
        """What people call it."""
        return self.variant.name

    @property
    def how_to_start(self) -> str:
        """The command for people."""
        return f"tools/lab up --xen {self.variant.name}"

    @property
    def state(self) -> RunState | None:
        """What runs now; None when the machine is down or not ready yet."""
        state = runstate.read(self.place)
        return state if state is not None and state.ready else None

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
            called = () if self.variant.is_arm64 else emulator.command(emulator.ensure(log))
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
            emulator=called,
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
        parts += [] if self.variant.is_arm64 else [emulator.path().parent]
        return dom0 is not None and dom0.is_dir() and all(part.is_dir() for part in parts)

    def up(self, *, memory_mib: int | None = None, dom0_memory_mib: int | None = None) -> RunState:
        """Boot the machine and return when its dom0 is ready; a machine that is up is left as it is.

        Raises LabError when dom0 is not ready in time; then nothing is left running.
        """
        memory_mib = memory_mib or self.memory_mib
        dom0_memory_mib = dom0_memory_mib or self.dom0_memory_mib
        require_room(memory_mib, dom0_memory_mib)
        with cache.locked(self.folder / "lock", f"the {self.label} machine"):
            state = self.state
            if state is not None:
                return state
            self.down()  # one that a killed `up` left half booted
            built = dataclasses.replace(self.build(), memory_mib=memory_mib, dom0_memory_mib=dom0_memory_mib)
            with step(f"booting Xen {self.variant.name}"):
                for attempt in range(3):
                    booting = boot.start(self.place, built)
                    try:
                        return self.finish(booting)
                    except boot.PortTaken:
                        say(f"the port was taken by another program (attempt {attempt + 1})")
            raise LabError("found no free port on 127.0.0.1: run `tools/lab up` again")

    def finish(self, booting: boot.Booting) -> RunState:
        """Wait until dom0 is ready and answers; on any failure or interruption QEMU is ended."""
        try:
            state = booting.wait()
            self.run("xl info >/dev/null", timeout=60)
        except BaseException:
            booting.abandon()
            raise
        return state

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
        argv = ssh.command(self.place, self.require_up(), words)
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
                f"what {self.label} is made of has changed since it was booted: switch it off and on again"
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
        return self._end((signal.SIGTERM, signal.SIGKILL))

    def _end(self, signals: Sequence[signal.Signals]) -> bool:
        """Send QEMU these signals until it has ended."""
        state = runstate.read(self.place)
        if state is None:
            runstate.forget(self.place)
            return False
        ssh.end_shared_connection(self.place, state)
        for number in signals:
            if runstate.read(self.place) is not None:
                os.kill(state.pid, number)
            deadline = time.monotonic() + 10
            while runstate.read(self.place) is not None and time.monotonic() < deadline:
                time.sleep(0.05)
        if runstate.read(self.place) is not None:
            raise LabError(f"QEMU (pid {state.pid}) does not end: look at what it waits for")
        runstate.forget(self.place)
        return True

    def require_up(self) -> RunState:
        """Return the state of the running machine; raises LabError when it is down."""
        state = self.state
        if state is None:
            raise LabError(f"the {self.label} lab is down: run `{self.how_to_start}`")
        return state


def require_room(memory_mib: int, dom0_memory_mib: int) -> None:
    """Raise LabError where dom0 leaves no memory for guests."""
    if memory_mib < dom0_memory_mib + 512:
        raise LabError(
            f"{memory_mib} MiB hold no dom0 of {dom0_memory_mib} MiB and guests: give --memory more"
        )
