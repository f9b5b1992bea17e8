"""QEMU's own migration of a stopped guest, as a peer: a QEMU of Debian trixie in a root file system of its own.

The guest is never started (-S, no accelerator needed). Its RAM is a file on tmpfs with the bytes that we save: QEMU
reads what we read. What a migration takes is QEMU's own figure.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xenlab import apt, cache
from xenlab.errors import LabError, step
from xenlab.proc import end_group, in_chroot, isolated, run_logged

from benchmarks.errors import BenchError

SUITE = "trixie"
PACKAGE = "qemu-system-x86"
RECIPE = "bench qemu 1"
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/lib/x86_64-linux-gnu/dri/*")

INSIDE = "/mnt"
OUT_INSIDE = "/srv"
"""Where the guest's own folder is, and where that of another place for what is written."""

START_TIMEOUT_S = 60.0
MIGRATION_TIMEOUT_S = 300.0
POLL_S = 0.02

WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "QEMU exec:cat >/dev/null": ("exec:cat >/dev/null", ()),
    "QEMU file:": ("file:{out}", ()),
    "QEMU mapped-ram": ("file:{out}", ("mapped-ram",)),
    "QEMU mapped-ram, multifd of 2": ("file:{out}", ("mapped-ram", "multifd")),
}
"""Name: (URI, capabilities)."""

CAPABILITIES = ("mapped-ram", "multifd")
DIRECT_CAPABILITIES = ("mapped-ram", "multifd")
"""Those with which QEMU takes direct-io (9.1 and later)."""

TLS_SERVER, TLS_CLIENT = "server", "client"
"""Names of credentials, and the ends that they are for."""

TLS_FILES = {
    "ca-cert.pem": "ca.pem",
    "server-cert.pem": "cert.pem",
    "server-key.pem": "key.pem",
    "client-cert.pem": "cert.pem",
    "client-key.pem": "key.pem",
}
"""What QEMU calls a host's certificates, and we do."""


def root_file_system() -> Path:
    """Return one with QEMU in it, made when there is none. BenchError, with the reason, where it cannot be had."""
    key = cache.key_of(RECIPE, SUITE, PACKAGE, *EXCLUDED)
    log = cache.cache_root() / "bench-qemu.log"
    log.parent.mkdir(parents=True, exist_ok=True)

    def build(folder: Path) -> None:
        if os.geteuid() != 0:
            raise LabError("a root file system with QEMU is to be made: run as root once")
        apt.install_packages(apt.missing_host_packages({"mmdebstrap": "mmdebstrap"}), log)
        argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={PACKAGE}"]
        argv += ['--aptopt=APT::Install-Recommends "0"']
        argv += [f"--aptopt={option}" for option in apt.acquire_options()]
        argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
        argv += [SUITE, str(folder / "root"), *(source.line(SUITE) for source in apt.machine_sources())]
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        with step(f"QEMU of {SUITE}"):
            run_logged(isolated(argv), log, shown="mmdebstrap", env=env)

    try:
        with cache.locked(cache.build_lock(), "a build"):
            return cache.ensure("bench-qemu", key, build) / "root"
    except LabError as error:
        raise BenchError(f"no QEMU of {SUITE}: {error}") from error


class StoppedGuest:
    """A QEMU whose guest has the RAM in a file. Use `stopped_guest`."""

    def __init__(self, connection: socket.socket, folder: Path, out: Path | None = None) -> None:
        self._lines = connection.makefile("rwb", buffering=0)
        self._folder = folder
        self._out = out
        self._next()  # the greeting
        self._ask("qmp_capabilities")
        self._ask("migrate-set-parameters", {"max-bandwidth": 0, "multifd-channels": 2})

    def listen(self, port: int, channels: int, *, tls: bool) -> None:
        """Of one that was started to be migrated to: wait for that at this port of loopback."""
        self._prepare(channels, TLS_SERVER if tls else "")
        self._ask("migrate-incoming", {"uri": f"tcp:127.0.0.1:{port}"})

    def migrate_to(self, port: int, channels: int, *, tls: bool) -> float:
        """Migrate to one that listens there, by multifd: seconds."""
        self._get_ready()
        self._prepare(channels, TLS_CLIENT if tls else "")
        self._ask("migrate", {"uri": f"tcp:127.0.0.1:{port}"})
        return self._await_end(f"QEMU multifd of {channels}")

    def _prepare(self, channels: int, credentials: str) -> None:
        states = [{"capability": name, "state": name == "multifd"} for name in CAPABILITIES]
        self._ask("migrate-set-capabilities", {"capabilities": states})
        self._ask("migrate-set-parameters", {"multifd-channels": channels, "tls-creds": credentials})

    def migrate(self, way: str) -> float:
        """Migrate the guest in one of `WAYS`: seconds. What it wrote is gone afterwards."""
        uri, wanted = WAYS[way]
        self._get_ready()
        states = [{"capability": name, "state": name in wanted} for name in CAPABILITIES]
        self._ask("migrate-set-capabilities", {"capabilities": states})
        out = self._folder / "qemu-out"
        try:
            self._ask("migrate", {"uri": uri.format(out=f"{INSIDE}/{out.name}")})
            return self._await_end(way)
        finally:
            out.unlink(missing_ok=True)

    def migrate_to_disk(self, way: str, *, direct_io: bool) -> float:
        """Migrate to a file in `out`, by mapped-ram and multifd, and bring it to the disk: seconds, fsync and all.

        By our clock: QEMU's own figure ends before all is written.
        """
        assert self._out is not None
        self._get_ready()
        states = [{"capability": name, "state": name in DIRECT_CAPABILITIES} for name in CAPABILITIES]
        self._ask("migrate-set-capabilities", {"capabilities": states})
        self._ask("migrate-set-parameters", {"direct-io": direct_io})
        out = self._out / "qemu-out"
        started = time.perf_counter()
        try:
            self._ask("migrate", {"uri": f"file:{OUT_INSIDE}/{out.name}"})
            self._await_end(way)
            with out.open("rb+") as file:
                os.fsync(file.fileno())
            return time.perf_counter() - started
        finally:
            out.unlink(missing_ok=True)
            self._ask("migrate-set-parameters", {"direct-io": False})

    def _await_end(self, way: str) -> float:
        deadline = time.monotonic() + MIGRATION_TIMEOUT_S
        while True:
            told = self._ask("query-migrate")
            if told.get("status") == "completed":
                return float(told["total-time"]) / 1000
            if told.get("status") in ("failed", "cancelled") or time.monotonic() > deadline:
                raise BenchError(f"{way}: {told.get('error-desc', told.get('status', 'not finished'))}")
            time.sleep(POLL_S)

    def _get_ready(self) -> None:
        """A guest that has been migrated is not migrated again before a reset."""
        if self._ask("query-status")["status"] == "postmigrate":
            self._ask("system_reset")
        while self._ask("query-status")["status"] == "postmigrate":
            time.sleep(POLL_S)

    def _ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._lines.write(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._next()
            if "error" in answer:
                raise BenchError(f"QEMU: {command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise BenchError("QEMU ended unexpectedly")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def stopped_guest(
    root: Path,
    folder: Path,
    ram: Path,
    *,
    name: str = "qemu",
    incoming: bool = False,
    tls: bool = False,
    out: Path | None = None,
) -> Iterator[StoppedGuest]:
    """QEMU with the RAM in `ram`, a file in `folder`; ended with the block. BenchError when it does not start.

    `incoming`: one that is migrated to. `tls`: it finds certificates in `folder`, as `TLS_FILES` are called there.
    All of its memory is mapped before this returns. `out`: a folder elsewhere, for `migrate_to_disk`.
    """
    size = ram.stat().st_size
    control = folder / f"{name}-qmp"
    more = ["-incoming", "defer"] if incoming else []
    if tls:
        for credentials in (TLS_SERVER, TLS_CLIENT):
            more += ["-object", f"tls-creds-x509,id={credentials},dir={INSIDE},endpoint={credentials}"]
    argv = [
        "/usr/bin/qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-accel", "tcg",
        "-machine", "q35,memory-backend=ram", "-m", f"{size >> 20}M",
        "-object", f"memory-backend-file,id=ram,size={size},mem-path={INSIDE}/{ram.name},share=on,prealloc=on",
        "-qmp", f"unix:{INSIDE}/{control.name},server=on,wait=off", *more,
    ]  # fmt: skip
    said = folder / f"{name}-said"
    with said.open("wb") as errors:
        process = subprocess.Popen(
            in_chroot(root, {INSIDE: folder, **({} if out is None else {OUT_INSIDE: out})}, argv),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
    try:
        with _connection(control, process, said) as connection:
            yield StoppedGuest(connection, folder, out)
    finally:
        end_group(process)
        for path in (control, said):
            path.unlink(missing_ok=True)


def _connection(control: Path, process: subprocess.Popen[bytes], said: Path) -> socket.socket:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            connection.connect(str(control))
            return connection
        connection.close()
        time.sleep(POLL_S)
    raise BenchError(f"QEMU does not start: {said.read_text(errors='replace').strip()[-300:]}")
