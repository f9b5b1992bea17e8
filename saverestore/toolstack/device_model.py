"""The device model of an HVM domain: QEMU, spoken to over its QMP socket (qemu docs/interop/qmp-spec, xen.json).

    running ──stop()──▶ stopped, its state taken ──resume()──▶ running

Its state is what a fresh QEMU is started from: registers of emulated devices, no guest memory.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from pyxc import XenStore
from saverestore import interrupts
from saverestore.errors import Advice, DomainError, ErrorName, Remedy
from saverestore.guest.common.suspend import Suspending
from saverestore.stream.libxl import BODY_MAX, EMULATOR_HEADER, EmulatorId, EmulatorState, LibxlRecordType

RUN_DIR = Path("/run/xen")
TIMEOUT_S = 30.0
"""How long an answer may take. libxl, which may be talking to the same QEMU, waits 10 s for its own."""

AGAIN_S = 5.0
"""The same when it is to run again after a failure: the guest stands still meanwhile. And for all that turns
log-dirty off, which no signal ends.
"""

NOT_IN_STATE = "non-migratable device"
"""How QEMU, from 6.0 on, names a device whose state it would leave out without a word (migration/savevm.c)."""

SHORTEST_S = 0.001
"""To send a command in: no time at all would be another kind of socket."""

LONGEST_ANSWER = 1 << 20
T = TypeVar("T")
PHYSMAP_KEYS = ("start_addr", "size", "name")


class QmpError(DomainError):
    """QEMU does not answer, or answered that it could not."""

    name = ErrorName.DEVICE_MODEL_FAILED


class Qmp:
    """One conversation with QEMU. It serves one at a time; the next waits until this is closed.

    `timeout_s`: how long the greeting and each answer may take. `ends_at`: when the last of them must have come, in
    time.monotonic(). `heeds`: a signal ends the wait for the greeting also in a `shield`: nothing has begun then.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        domid: int,
        timeout_s: float,
        *,
        ends_at: float = math.inf,
        heeds: bool = False,
    ) -> None:
        self.ends_at = ends_at
        self._domid = domid
        self._timeout_s = timeout_s
        self._heeds = heeds
        self._text = b""
        self.closed = False
        try:
            self._socket = connect()
        except BlockingIOError as error:
            raise QmpError(
                f"the device model of domain {domid} is busy: several others wait for it already"
            ) from error
        except OSError as error:
            raise QmpError(
                f"the device model of domain {domid} cannot be reached: {error}; its log is "
                f"/var/log/xen/qemu-dm-*.log"
            ) from error
        try:
            limit_s = self._limit_s()
            self._receive(time.monotonic() + limit_s)  # the greeting
            self.command("qmp_capabilities")
            self._heeds = False
        except TimeoutError as error:
            self.close()
            raise QmpError(
                f"the device model of domain {domid} did not answer within {limit_s:.3g} s; it is busy, stopped "
                "or another program is connected to it"
            ) from error
        except OSError as error:
            self.close()
            raise QmpError(f"the device model of domain {domid}: {error}") from error
        except BaseException:
            self.close()
            raise

    def _limit_s(self) -> float:
        """How long the next answer may take."""
        return max(0.0, min(self._timeout_s, self.ends_at - time.monotonic()))

    def command(self, name: str, *, pass_fd: int | None = None, **arguments: Any) -> Any:
        """Carry out a command: what it returns. QmpError when it failed, or was not answered in time.

        Without an answer, be it because of a signal, the conversation is closed: what came later would be taken for
        the next command's answer.
        """
        limit_s = self._limit_s()
        deadline = time.monotonic() + limit_s
        message = {"execute": name} | ({"arguments": arguments} if arguments else {})
        try:
            data = json.dumps(message).encode() + b"\r\n"
            self._socket.settimeout(max(limit_s, SHORTEST_S))
            if pass_fd is None:
                self._socket.sendall(data)
            else:
                socket.send_fds(self._socket, [data], [pass_fd])
            answer: dict[str, Any] = {}
            while not answer.keys() & {"error", "return"}:  # anything else is an event
                answer = self._receive(deadline)
        except TimeoutError as error:
            self.close()
            raise QmpError(
                f"the device model of domain {self._domid} did not answer {name!r} within {limit_s:.3g} s"
            ) from error
        except OSError as error:
            self.close()
            raise QmpError(f"the device model of domain {self._domid}: {name}: {error}") from error
        except BaseException:
            self.close()
            raise
        if "error" in answer:
            failure = answer["error"]
            reason = failure.get("desc", failure) if isinstance(failure, dict) else failure
            raise QmpError(f"the device model of domain {self._domid} could not {name}: {reason}")
        return answer["return"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._text:
            if (left_s := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            self._socket.settimeout(min(left_s, interrupts.HEED_S) if self._heeds else left_s)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                if self._heeds:
                    interrupts.raise_pending()
                continue
            if not data:
                raise QmpError(f"the device model of domain {self._domid} is gone")
            self._text += data
            if len(self._text) > LONGEST_ANSWER:
                raise QmpError(f"the device model of domain {self._domid} sent an oversized reply")
        line, self._text = self._text.split(b"\n", 1)
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QmpError(f"the device model of domain {self._domid} answers no JSON: {error}") from error
        if not isinstance(answer, dict):
            raise QmpError(f"the device model of domain {self._domid} answers {answer!r}")
        return answer

    def close(self) -> None:
        """End it. Twice is fine."""
        self.closed = True
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DeviceModel:
    """The QEMU of one HVM domain, run by libxl in domain 0.

    A conversation is opened for each step, as libxl must be able to hold its own meanwhile; but one is held from
    before the guest is suspended until it runs again, or another program could keep us from it just then. Where that
    broke, or a signal came amid a command of it, the next step opens one of its own.
    `connect` opens a socket to its monitor; otherwise that is the one which libxl has it listen on.
    """

    def __init__(
        self,
        store: XenStore,
        domid: int,
        *,
        connect: Callable[[], socket.socket] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._store = store
        self._domid = domid
        self._connect = connect or self._connect_to_libxls
        self._timeout_s = timeout_s
        self._state: bytes | None = None
        self._held: Qmp | None = None

    @contextmanager
    def _qmp(self, *, within_s: float = math.inf, heeds: bool = False) -> Iterator[Qmp]:
        """The conversation that is held, or one for this block, which has so long for all of it. See Qmp."""
        ends_at = time.monotonic() + within_s
        held = self._held
        if held is not None and not held.closed:
            held.ends_at = ends_at
            try:
                yield held
            finally:
                held.ends_at = math.inf
            return
        timeout_s = self._timeout_s if self._state is None else min(self._timeout_s, AGAIN_S)
        with Qmp(self._connect, self._domid, timeout_s, ends_at=ends_at, heeds=heeds) as qmp:
            yield qmp

    def hold(self) -> None:
        """Open a conversation for all that follows, until `resume` or `close`. QmpError when it cannot be had."""
        self.close()
        self._held = Qmp(self._connect, self._domid, self._timeout_s)

    def close(self) -> None:
        """End the conversation that is held, if one is. Twice is fine."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _connect_to_libxls(self) -> socket.socket:
        path = RUN_DIR / f"qmp-libxl-{self._domid}"
        found = socket.socket(socket.AF_UNIX)
        try:
            found.settimeout(self._timeout_s)
            found.connect(str(path))
        except BaseException as error:  # a signal, too: QEMU would go on serving this one
            found.close()
            if isinstance(error, OSError):
                error.filename = str(path)
            raise
        return found

    def _expected(self, answer: Any, name: str, kind: type[T]) -> T:
        """One value of an answer. QmpError when it is not there, or of another type."""
        value = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(value, kind):
            raise QmpError(f"the device model of domain {self._domid} answers {answer!r}, without {name!r}")
        return value

    def check(self) -> None:
        """DomainError unless it is one that can be saved, and answers."""
        version = self._store.read(f"/libxl/{self._domid}/dm-version")
        if version != "qemu_xen":
            raise DomainError(
                f"domain {self._domid} has a device model of kind {version or 'unknown'}; "
                "only qemu-xen can be saved"
            )
        if self._store.read(f"/local/domain/{self._domid}/image/device-model-domid") not in (None, "0"):
            raise DomainError(
                f"the device model of domain {self._domid} runs in a stub domain, which cannot be saved yet",
                remedies=[Advice(Remedy.USE_XL)],
            )
        with self._qmp() as qmp:
            qmp.command("query-status")
            answer = qmp.command("query-migrate")
        reasons = answer.get("blocked-reasons") if isinstance(answer, dict) else None
        # Others, such as formats of disks, block what moves a running QEMU; its state on its own is whole.
        lost = [one for one in reasons or [] if isinstance(one, str) and NOT_IN_STATE in one]
        if lost:
            raise DomainError(
                f"the device model of domain {self._domid} has devices whose state it cannot save: "
                f"{'; '.join(lost)}",
                name=ErrorName.DEVICES_UNSUPPORTED,
            )

    def log_dirty(self, *, on: bool) -> None:
        """Have it tell the hypervisor which pages of the domain it writes, or no longer.

        Signals are heeded until it has been asked to, also in a `shield`. To turn it off takes `AGAIN_S` or fails.
        """
        with self._qmp(heeds=True) if on else self._qmp(within_s=AGAIN_S) as qmp:
            qmp.command("xen-set-global-dirty-log", enable=on)

    def stop(self) -> None:
        """Stop it and take its state. It writes none of the domain's memory from now on.

        On failure it may be stopped: `resume` is right then, too.
        """
        self._state = b""
        memory = os.memfd_create("device-model")
        try:
            with self._qmp() as qmp:
                qmp.command("stop")
                # QEMU matches a descriptor by how it was opened, and writes only; a memfd is opened for both.
                write_only = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY)
                try:
                    given = qmp.command("add-fd", pass_fd=write_only)
                finally:
                    os.close(write_only)
                fdset = self._expected(given, "fdset-id", int)
                try:
                    qmp.command("xen-save-devices-state", filename=f"/dev/fdset/{fdset}", live=False)
                except BaseException:
                    with suppress(QmpError):  # the first failure is the one to report
                        qmp.command("remove-fd", **{"fdset-id": fdset})
                    raise
                qmp.command("remove-fd", **{"fdset-id": fdset})
            size = os.fstat(memory).st_size
            if not 0 < size <= BODY_MAX[LibxlRecordType.EMULATOR_CONTEXT] - EMULATOR_HEADER.size:
                raise QmpError(f"the device model of domain {self._domid} gave {size} bytes of state")
            self._state = os.pread(memory, size, 0)
        finally:
            os.close(memory)

    def resume(self) -> None:
        """Let it run again after `stop`; nothing when it was not stopped by this. No conversation is held then."""
        try:
            if self._state is not None:
                with self._qmp() as qmp:
                    qmp.command("cont")
                self._state = None
        finally:
            self.close()

    def recover(self) -> bool:
        """After a save that was killed: log-dirty off, and let it run. Whether it had stopped."""
        with self._qmp() as qmp:
            # QEMU aborts when it is to turn off what is not on; turning it on twice is nothing to it.
            for enable in (True, False):
                qmp.command("xen-set-global-dirty-log", enable=enable)
            stopped = not self._expected(qmp.command("query-status"), "running", bool)
            if stopped:
                qmp.command("cont")
        return stopped

    def records(self) -> list[tuple[LibxlRecordType, bytes]]:
        """What the libxl stream carries of a stopped one, in order."""
        if not self._state:
            raise ValueError("the device model has not been stopped")
        found = []
        if physmap := self._physmap():
            body = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, physmap).pack()
            found.append((LibxlRecordType.EMULATOR_XENSTORE_DATA, body))
        body = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, self._state).pack()
        found.append((LibxlRecordType.EMULATOR_CONTEXT, body))
        return found

    def _physmap(self) -> bytes:
        """Where it has put video memory, as older QEMUs note in xenstore: "key NUL value NUL …"."""
        root = f"/local/domain/0/device-model/{self._domid}"
        text = ""
        for entry in self._store.list(f"{root}/physmap"):
            for name in PHYSMAP_KEYS:
                key = f"physmap/{entry}/{name}"
                text += f"{key}\0{self._store.read(f'{root}/{key}') or ''}\0"
        return text.encode()


class SuspenderWithDeviceModel:
    """Suspends a guest and then its device model; resumes in the same order as libxl does. See Suspending."""

    def __init__(self, guest: Suspending, device_model: DeviceModel) -> None:
        self._guest = guest
        self._device_model = device_model

    @property
    def is_late(self) -> bool:
        """See Suspending."""
        return self._guest.is_late

    @property
    def has_ended(self) -> bool:
        """See Suspending."""
        return self._guest.has_ended

    def suspend(self) -> None:
        """Return once both are stopped. The guest is not asked where its device model cannot be reached."""
        self._device_model.hold()
        self._guest.suspend()
        self._device_model.stop()

    def resume(self) -> None:
        """Resume both. A device model that does not answer keeps nobody from resuming the guest.

        It is no failure where the guest has ended, as the device model then ends, too.
        """
        failure: DomainError | None = None
        try:
            self._device_model.resume()
        except DomainError as error:
            failure = error
        finally:
            self._guest.resume()
        if failure is not None and not self._guest.has_ended:
            raise failure
