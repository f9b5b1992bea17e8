"""What is used of QEMU's monitor, held by the fake and by a QEMU of this host, where one is installed. No Xen needed.

Log-dirty is left out: turned off when it is not on, a QEMU for Xen aborts, and others ignore the command.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from saverestore.testing.qmp import FakeQemu

NOT_IN_STATE = "non-migratable device"
"""See toolstack.device_model, which cannot be imported where there is no Xen."""

PROGRAMS = ("qemu-system-x86_64", "qemu-system-i386", "/usr/libexec/xen-qemu-system-i386")
DEADLINE_S = 60
BRIEFLY_S = 0.3

Connect = Callable[[], socket.socket]


@contextmanager
def real_qemu(folder: Path, *machine: str) -> Iterator[Connect]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no QEMU here: {', '.join(PROGRAMS)}")
    path, log = folder / "qmp", folder / "log"
    # A QEMU for Xen has no TCG; "qtest" runs nothing, as this test does.
    command = [program, *(machine or ("-M", "none")), "-accel", "tcg", "-accel", "qtest", "-nodefaults"]
    command += ["-display", "none"]
    command += ["-qmp", f"unix:{path},server=on,wait=off"]
    with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:

        def connect() -> socket.socket:
            found = socket.socket(socket.AF_UNIX)
            found.connect(str(path))
            return found

        started = b""
        try:
            deadline = time.monotonic() + DEADLINE_S
            while not started and process.poll() is None and time.monotonic() < deadline:
                # Its socket is there a moment before it listens.
                with contextlib.suppress(OSError), connect() as first:
                    first.settimeout(DEADLINE_S)
                    started = first.recv(1)
                time.sleep(0.02)
            if not started:
                pytest.skip(f"{program} does not run here: {log.read_text()}")
            yield connect
        finally:
            process.kill()


@pytest.fixture
def connect(monitor_kind: str, tmp_path: Path) -> Iterator[Connect]:
    if monitor_kind == "qemu":
        with real_qemu(tmp_path) as found:
            yield found
    else:
        with FakeQemu() as qemu:
            yield qemu.connect


class Client:
    """Sends and receives lines, and judges none of them."""

    def __init__(self, connect: Connect) -> None:
        self.socket = connect()
        self.socket.settimeout(DEADLINE_S)
        self.lines = self.socket.makefile("rb")

    def receive(self) -> dict[str, Any]:
        return json.loads(self.lines.readline())

    def ask(self, name: str, *, fd: int | None = None, **arguments: Any) -> list[dict[str, Any]]:
        """All that comes up to the answer, which is the last."""
        message = json.dumps({"execute": name, "arguments": arguments}).encode()
        socket.send_fds(self.socket, [message], [] if fd is None else [fd])
        found = [self.receive()]
        while not {"return", "error"} & found[-1].keys():
            found.append(self.receive())
        return found

    def returned(self, name: str, *, fd: int | None = None, **arguments: Any) -> Any:
        return self.ask(name, fd=fd, **arguments)[-1]["return"]

    def failure(self, name: str, **arguments: Any) -> str:
        error = self.ask(name, **arguments)[-1]["error"]
        assert error["desc"]
        return error["class"]

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@pytest.fixture
def client(connect: Connect) -> Iterator[Client]:
    found = Client(connect)
    assert "version" in found.receive()["QMP"]
    yield found
    found.close()


@pytest.fixture
def ready(client: Client) -> Client:
    assert client.returned("qmp_capabilities") == {}
    return client


def test_nothing_is_carried_out_before_capabilities_are_negotiated_and_they_are_once(client):
    assert client.failure("query-status") == "CommandNotFound"
    assert client.returned("qmp_capabilities") == {}
    assert client.failure("qmp_capabilities") == "CommandNotFound"
    assert client.returned("query-status")["running"]


def test_an_unknown_command_fails(ready):
    assert ready.failure("no-such-command") == "CommandNotFound"


def test_stop_and_cont_are_events_before_they_are_answered_and_nothing_the_second_time(ready):
    for command, event, running in (("stop", "STOP", False), ("cont", "RESUME", True)):
        assert [one.get("event") for one in ready.ask(command)] == [event, None]
        assert ready.returned("query-status")["running"] is running
        assert len(ready.ask(command)) == 1


def test_the_next_client_is_greeted_when_the_first_has_hung_up(connect, ready):
    second = Client(connect)
    second.socket.settimeout(BRIEFLY_S)
    with pytest.raises(TimeoutError):
        second.socket.recv(1, socket.MSG_PEEK)
    ready.close()
    second.socket.settimeout(DEADLINE_S)
    assert "QMP" in second.receive()
    second.close()


def test_a_descriptor_must_come_with_its_command(ready):
    assert ready.failure("add-fd") == "GenericError"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR])
def test_the_state_of_devices_goes_into_a_descriptor_that_was_opened_for_writing_only(ready, flags):
    memory = os.memfd_create("state")
    given = os.open(f"/proc/self/fd/{memory}", flags)
    ready.returned("stop")
    number = ready.returned("add-fd", fd=given)["fdset-id"]
    os.close(given)
    filename = f"/dev/fdset/{number}"
    if flags == os.O_WRONLY:
        assert ready.returned("xen-save-devices-state", filename=filename, live=False) == {}
        assert os.fstat(memory).st_size > 0
    else:
        assert ready.failure("xen-save-devices-state", filename=filename, live=False) == "GenericError"
    assert ready.returned("remove-fd", **{"fdset-id": number}) == {}
    os.close(memory)


def test_a_set_of_descriptors_that_there_never_was_is_no_place_for_it(ready):
    assert ready.failure("xen-save-devices-state", filename="/dev/fdset/99", live=False) == "GenericError"
    assert ready.failure("remove-fd", **{"fdset-id": 99}) == "GenericError"


def test_nothing_blocks_the_state_of_usual_devices(ready):
    assert not ready.returned("query-migrate").get("blocked-reasons")


def test_a_device_whose_state_cannot_be_saved_is_named(monitor_kind, tmp_path):
    """QEMU 7.2 crashes when it is asked for the state of an NVMe disk."""
    if monitor_kind == "qemu":
        (tmp_path / "disk").write_bytes(bytes(1 << 20))
        disk = f"if=none,id=disk,format=raw,file={tmp_path / 'disk'}"
        nvme = ("-M", "pc", "-S", "-drive", disk, "-device", "nvme,drive=disk,serial=1")
        with real_qemu(tmp_path, *nvme) as connect:
            named(connect)
        return
    with FakeQemu() as qemu:
        qemu.blocked = ["non-migratable device: 0000:00:02.0/nvme"]
        named(qemu.connect)


def named(connect: Connect) -> None:
    client = Client(connect)
    client.receive()
    client.returned("qmp_capabilities")
    (reason,) = client.returned("query-migrate")["blocked-reasons"]
    client.close()
    assert NOT_IN_STATE in reason
    assert "nvme" in reason
