"""Stock xl as scripts over a connection: `migrate-receive` and `migrate`, on hosts whose domains are files.

Written from what xl does (tools/xl/xl_migrate.c), not from our own side of it. Each may die at a step, say another
word, or fall silent.
"""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from table_host import TableHost

from saverestore.engine.progress import RestoreReport, Silence
from saverestore.engine.settings import SaveSettings
from saverestore.migrate.copies import check_name_free
from saverestore.migrate.xl_peer import XlReceiver
from saverestore.operations.image import opened_in
from saverestore.operations.requests import FinalState, RestoreRequest, SaveRequest
from saverestore.operations.restore import restoring
from saverestore.operations.save import save_domain
from saverestore.toolstack import domains
from saverestore.transport.connection import SocketConnection

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GO = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"
TIMEOUT_S = 20.0


class Died(Exception):
    """The process is gone; its domains are as they were."""


class Failed(Exception):
    """It exits by itself, with an error."""


@dataclass
class Script:
    """`dies`: the step at which the process is gone. `says`: other bytes than xl's, by the name of a word.

    `silent`: the step at which it stops doing anything, for as long as the peer is there. `lost`: a word that gets
    lost, with the connection. `cannot`: "rename", "unpause", "destroy".
    """

    dies: str = ""
    silent: str = ""
    lost: str = ""
    says: dict[str, bytes] = field(default_factory=dict)
    cannot: tuple[str, ...] = ()


class _Xl:
    def __init__(self, end: socket.socket, script: Script) -> None:
        self.connection = SocketConnection(end, "the other", timeout_s=TIMEOUT_S)
        self.connection.incoming.may_continue = True
        self.script = script

    def step(self, name: str) -> None:
        if self.script.dies == name:
            raise Died(name)
        if self.script.silent == name:
            while self.connection.incoming.read_some(4096):
                pass
            raise Died(name)

    def say(self, name: str, word: bytes) -> None:
        self.step(f"before {name}")
        if self.script.lost == name:
            raise Died(name)
        self.connection.outgoing.write(self.script.says.get(name, word))
        self.step(f"after {name}")

    def hears(self, word: bytes) -> bool:
        """As libxl_read_exactly and a comparison: false at an end, a failure, or other bytes."""
        try:
            return self.connection.incoming.read(len(word)) == word
        except Exception:
            return False


class FakeReceive(_Xl):
    """`xl migrate-receive`."""

    def __init__(self, end: socket.socket, host: TableHost, script: Script, *, paused: bool = False) -> None:
        super().__init__(end, script)
        self.host, self.paused = host, paused

    def run(self) -> None:
        self.say("banner", BANNER)
        domain = self._receive()
        self.say("ready", READY)
        started = self.hears(GO) and self._start(domain)
        self.step("started")
        self.say("report", REPORT)
        self.say("status", b"\0" if started else b"\x03")
        if started:
            return
        if "destroy" in self.script.cannot:
            raise Failed("destroy")
        self.host.destroy(domain)
        self.say("have it back", GO)

    def _receive(self) -> Any:
        request = RestoreRequest(image="-", paused=True)
        with opened_in(self.connection.incoming) as image, ExitStack() as stack:
            self.step("after header")
            self.name = image.config.name
            named = image.config.replaced(name=f"{self.name}--incoming")
            image = replace(image, config=named)
            with restoring(self.host, image, request, {}, stack) as fresh:  # type: ignore[arg-type]
                domid = fresh.fill(Silence(), RestoreReport())
                if self.script.dies != "amid image":
                    fresh.activate()
        self.step("amid image")
        (found,) = [one for one in domains.all_domains(self.host.handles) if one.domid == domid]
        return found

    def _start(self, domain: Any) -> bool:
        self.step("after GO")
        try:
            check_name_free(self.host, self.name)  # type: ignore[arg-type]
        except Exception:
            return False
        if "rename" in self.script.cannot:
            return False
        self.host.store.write(f"/local/domain/{domain.domid}/name", self.name)
        if "unpause" in self.script.cannot:
            return False
        if not self.paused:
            self.host.set_state(domain.domid, "running")
        return True


class Receives:
    """How a host with stock xl is reached. `errors`: what ended each process."""

    def __init__(
        self, host: TableHost, script: Script | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.host, self.script, self.timeout_s = host, script or Script(), timeout_s
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    @contextmanager
    def connect(self, request: Any) -> Iterator[XlReceiver]:
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(theirs, request.paused), daemon=True)
        thread.start()
        self._threads.append(thread)
        with SocketConnection(ours, "b", timeout_s=self.timeout_s) as connection:
            yield XlReceiver(connection)

    def _serve(self, end: socket.socket, paused: bool) -> None:
        xl = FakeReceive(end, self.host, self.script, paused=paused)
        try:
            with xl.connection:
                xl.run()
        except Exception as error:
            self.errors.append(error)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


class FakeMigrate(_Xl):
    """`xl migrate`: a save whose last steps are xl's. `outcome`: what it prints at its end, in short."""

    hands_over = True
    name = "b"
    stored_bytes = None
    cache = None
    left_behind = ""

    def __init__(self, end: socket.socket, host: TableHost, script: Script) -> None:
        super().__init__(end, script)
        self.host = host
        self.sink = self.connection.outgoing
        self.outcome = ""

    def run(self) -> None:
        @contextmanager
        def opened(*_: object) -> Iterator[Any]:
            self.step("before image")
            if not self.hears(BANNER):
                raise Failed("banner")
            yield self

        save = SaveRequest("web1", "b", final_state=FinalState.DESTROY, live=True, plain=True)
        try:
            with self.connection:
                save_domain(save, Silence(), host=self.host, opened_commit=opened)  # type: ignore[arg-type]
        except Died:
            self.outcome = self.outcome or "dead"
        except Failed:
            self.outcome = self.outcome or "resumed"
        except Exception as error:
            self.outcome = self.outcome or f"resumed: {error}"

    def settings(self, wanted: SaveSettings) -> SaveSettings:
        return wanted

    def free_bytes(self) -> None:
        return None

    def finish(self) -> None:
        self.step("image sent")
        if not self.hears(READY):
            raise Failed("ready")
        self._rename("web1--migratedaway")
        try:
            self.step("before GO")
        except Died:
            self.connection.close()
            raise

    def handed_over(self, _error: BaseException | None = None) -> bool:
        return False

    def commit(self) -> None:
        word = self.script.says.get("GO", GO)
        if self.script.lost != "GO":
            self.connection.outgoing.write(word)

    def final_state(self, wanted: FinalState) -> FinalState:
        self.step("after GO")
        if not self.hears(REPORT):
            self.outcome = "undefined"
            raise Failed("report")
        status = self.connection.incoming.read_some(1)
        if status == b"\0":
            self.outcome = "successful"
            return wanted
        if not self.hears(GO):
            self.outcome = "undefined"
            raise Failed("have it back")
        self._rename("web1")
        self.outcome = "given back"
        return FinalState.RUN

    def _rename(self, name: str) -> None:
        self.host.store.write("/local/domain/1/name", name)


def uuid_of_another(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration, of another domain."""
    return config | {"c_info": config["c_info"] | {"uuid": str(uuid.UUID(int=2))}}
