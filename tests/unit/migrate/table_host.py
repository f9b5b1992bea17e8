"""Hosts without Xen whose domains are files in a folder, so that they outlive the process that made them.

Only their memory does not: that is an in-memory guest's, and is compared while the process lives.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from memory_guests import CHANNELS

from saverestore.engine.progress import Silence
from saverestore.guest.kinds import X86_HOST
from saverestore.migrate.addresses import parse
from saverestore.migrate.channel import Channel
from saverestore.migrate.copies import HostCopy
from saverestore.migrate.destination import receive
from saverestore.migrate.journal import Journals
from saverestore.migrate.requests import MigrateRequest
from saverestore.migrate.source import migrate_domain
from saverestore.migrate.source_link import LinkReport
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like
from saverestore.toolstack import config as configs
from saverestore.toolstack.condition import Condition, Found
from saverestore.toolstack.domains import Domain, check_free
from saverestore.transport.connection import SocketConnection

UUID = "00000000-0000-4000-8000-000000000001"
CONFIG = {
    "c_info": {"type": "pvh", "name": "web1", "uuid": UUID},
    "b_info": {"max_vcpus": 1, "max_memkb": 1024, "target_memkb": 1024},
}
NR_PFNS = 256
NAP_S = 0.1


class TableStore:
    """Xenstore: a file for each node. One transaction at a time, which always succeeds."""

    def __init__(self, folder: Path, is_there: Callable[[str], bool]) -> None:
        """`is_there`: whether there is a domain of this number, in digits."""
        self._folder = folder
        self._is_there = is_there
        folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def transaction(self) -> Iterator[TableStore]:
        yield self

    def _file(self, path: str) -> Path:
        return self._folder / path.strip("/").replace("/", "|")

    def read(self, path: str) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return self._file(path).read_text()
        home, _, domid = path.rpartition("/")
        return "" if home == "/local/domain" and self._is_there(domid) else None

    def write(self, path: str, value: str) -> None:
        self._file(path).write_text(value)

    def remove(self, path: str) -> None:
        self._file(path).unlink(missing_ok=True)

    def forget(self, domid: int) -> None:
        """A new domain has no nodes of one that had its number before."""
        for file in self._folder.glob(f"local|domain|{domid}|*"):
            file.unlink()


class TableGuest(MemorySave):
    """An in-memory guest whose being suspended is written into the table."""

    def __init__(self, domain: MemoryDomain, host: TableHost, domid: int) -> None:
        super().__init__(domain)
        self._host, self._domid = host, domid

    def suspend(self) -> None:
        super().suspend()
        self._host.set_state(self._domid, "suspended")

    def resume(self) -> None:
        super().resume()
        if self._host.state_of(self._domid) == "suspended":
            self._host.set_state(self._domid, "running")


class TableCopy(HostCopy):
    """As on a real host, but that resuming is an entry in the table."""

    def _put_right(self, domain: Domain) -> None:
        if self._host.state_of(domain.domid) == "suspended":
            self._host.set_state(domain.domid, "running")


class TableHost:
    """See operations.host.Host, toolstack.ports.Toolstack and Maker: this is all three."""

    clock = staticmethod(time.monotonic)
    batch_pfns = 16
    architecture: Any = X86_HOST
    name = "table"

    def xen_version(self) -> str:
        return "4.17.3"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journals = Journals(folder / "journals")
        (folder / "domains").mkdir(parents=True, exist_ok=True)
        self.store = TableStore(folder / "store", lambda domid: (folder / "domains" / domid).exists())
        self.handles: Any = SimpleNamespace(
            store=self.store,
            memory=SimpleNamespace(unmap_lingering=lambda *_: None),
            xen=SimpleNamespace(domains=self._infos, unpause=self.unpause, pause=lambda _: None),
        )
        self.memory = MemoryDomain.pvh(NR_PFNS)
        self.guest: TableGuest | None = None
        self.restored: MemoryRestore | None = None
        self.watched: list[tuple[int, str]] = []
        self.devices: list[dict[str, str]] = []
        self.dying: set[int] = set()
        self.pages_asked: list[int] = []
        self.noted_disks: list[dict[str, Any]] = []
        self.settled: list[object] = []
        self.flushed: list[str] = []
        """The domain's state whenever its disks were flushed."""
        self.fails: dict[str, BaseException] = {}

    # ---- the table ---------------------------------------------------------------------------------

    def add(self, config: dict[str, Any], state: str) -> int:
        domid = 1 + max([int(one.name) for one in self._files()], default=0)
        name, of = config["c_info"]["name"], config["c_info"]["uuid"]
        (self.folder / "domains" / str(domid)).write_text(
            json.dumps({"uuid": of, "state": state, "config": config})
        )
        self.store.forget(domid)
        self.store.write(f"/local/domain/{domid}/name", name)
        return domid

    def _files(self) -> list[Path]:
        return list((self.folder / "domains").glob("*"))

    def _entry(self, domid: int) -> dict[str, Any]:
        return json.loads((self.folder / "domains" / str(domid)).read_text())

    def state_of(self, domid: int) -> str:
        return self._entry(domid)["state"]

    def set_state(self, domid: int, state: str) -> None:
        path = self.folder / "domains" / str(domid)
        temporary = path.parent.parent / f"{domid}.new"
        temporary.write_text(json.dumps(self._entry(domid) | {"state": state}))
        temporary.rename(path)

    def table(self) -> dict[str, str]:
        """The state of each domain, by its name."""
        return {
            self.store.read(f"/local/domain/{one.name}/name") or one.name: self.state_of(int(one.name))
            for one in self._files()
        }

    def switch_off(self) -> None:
        """All domains are gone."""
        for one in self._files():
            one.unlink()

    def _infos(self) -> list[Any]:
        return [
            SimpleNamespace(
                domid=int(one.name),
                uuid=uuid.UUID(self._entry(int(one.name))["uuid"]),
                dying=int(one.name) in self.dying,
                paused=self.state_of(int(one.name)) == "paused",
            )
            for one in self._files()
        ]

    # ---- saving ------------------------------------------------------------------------------------

    def find(self, text: str) -> Any:
        for info in self._infos():
            name = self.store.read(f"/local/domain/{info.domid}/name")
            if text == name:
                return Domain(info, name)
        raise LookupError(text)

    def again(self, domain: Any) -> Any:
        return domain

    def check_can_be_saved(self, domain: Any) -> None:
        assert self.state_of(domain.domid) == "running"

    def check_hypervisor(self, *_: object, **__: object) -> None:
        pass

    def locked(self, _domain: object) -> Any:
        return nullcontext()

    def toolstack_for_saving(self, *_: object) -> Any:
        return self

    def config_of(self, domain: Any) -> Any:
        raw = self._entry(domain.domid)["config"] | {"disks": self.devices}
        return configs.parse(json.dumps(raw).encode()).replaced(name=domain.name)

    def unsupported_devices(self, _domain: object) -> list[str]:
        return []

    def device_model_of(self, _domain: object) -> None:
        return None

    def close(self) -> None:
        pass

    def suspending(self, *_: object) -> Any:
        return SimpleNamespace(is_late=False)

    def devices_of(self, _domain: object) -> dict[str, str]:
        return {}

    def flush_disks(self, _config: object) -> None:
        self.flushed += self.table().values()

    def disks_of(self, _config: object) -> list[dict[str, Any]]:
        return self.noted_disks

    def settle_disks(self, _domain: object, noted: object) -> None:
        self.settled.append(noted)

    def look_up(self, domain: Any) -> Found:
        try:
            state = self.state_of(domain.domid)
        except FileNotFoundError:
            return Found(Condition.GONE, "is gone")
        return Found(Condition[state.upper()], f"is {state}")

    def save_guest(self, domain: Any, *_: object) -> Any:
        self.guest = TableGuest(self.memory, self, domain.domid)
        return self.guest

    # ---- restoring ---------------------------------------------------------------------------------

    def restoring(self, *_: object) -> Any:
        return nullcontext()

    def check_hypervisor_for(self, *_: object, **__: object) -> None:
        pass

    def toolstack_for_restoring(self, _wanted: str) -> tuple[None, str]:
        return None, ""

    def check_free(self, config: Any) -> None:
        self._fail("check_free")
        check_free(self.handles, config.name, config.uuid)

    def domid_of(self, domain_uuid: Any) -> int | None:
        found = (one.domid for one in self.handles.xen.domains() if one.uuid == domain_uuid and not one.dying)
        return next(found, None)

    def contents_of(self, _image: str) -> None:
        return None

    def memory_reserved(self, _config: object, pages: int) -> Any:
        self._fail("memory_reserved")
        self.pages_asked.append(pages)
        return nullcontext()

    def memory_claimed(self, *_: object) -> Any:
        return nullcontext()

    def check_image(self, *_: object, **__: object) -> None:
        pass

    def check_disks(self, *_: object, **__: object) -> None:
        pass

    def disks_kept(self, *_: object, **__: object) -> Any:
        return nullcontext()

    def check_neighbours(self, *_: object, **__: object) -> None:
        pass

    def maker(self, _libxl: object) -> Any:
        return self

    def restore_guest(self, *_: object, **__: object) -> Any:
        self.restored = MemoryRestore(empty_like(self.memory))
        return self.restored

    def check_host(self) -> None:
        pass

    def create(self, config: Any) -> Any:
        self._fail("create")
        return SimpleNamespace(domid=self.add(config.raw, "paused"), channels=CHANNELS)

    def connect(self, *_: object) -> None:
        self._fail("connect")

    def unpause(self, domid: int) -> None:
        self._fail("unpause")
        self.set_state(domid, "running")

    def destroy(self, what: Any, *_: object) -> None:
        self._fail("destroy")
        domid = what if isinstance(what, int) else what.domid
        (self.folder / "domains" / str(domid)).unlink(missing_ok=True)

    def watcher(self, name: str) -> Any:
        return nullcontext(SimpleNamespace(watch=lambda domid: self.watched.append((domid, name))))

    def _fail(self, call: str) -> None:
        if error := self.fails.get(call):
            raise error


def tcp_sockets() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


class Pair:
    """Hosts a and b; a runs web1. Each connection to a host is served there by a thread."""

    def __init__(self, folder: Path) -> None:
        self.a, self.b = TableHost(folder / "a"), TableHost(folder / "b")
        if not (folder / "begun").exists():
            (folder / "begun").touch()
            self.a.add(CONFIG, "running")
        self.is_cut = False
        self.sockets: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair
        """Makes the two ends of a connection."""
        self.timeout_s = 20.0
        self.open_door: Any = None
        self.open_link: Any = None
        self.link_report = LinkReport()
        self.threads: list[threading.Thread] = []
        self.served: list[Any] = []
        """What each connection came to: what `receive` returned, or raised."""

    def connector(self, host: TableHost) -> Any:
        """How that host is reached."""

        @contextmanager
        def connect(*_: object) -> Iterator[Channel]:
            if self.is_cut:
                from saverestore.migrate.addresses import Unreachable

                raise Unreachable("the link is cut")
            ours, theirs = self.sockets()
            thread = threading.Thread(target=self._serve, args=(host, theirs), daemon=True)
            thread.start()
            self.threads.append(thread)
            with Channel(
                SocketConnection(ours, host.folder.name, timeout_s=self.timeout_s), keepalive_s=NAP_S
            ) as channel:
                yield channel

        return connect

    def _serve(self, host: TableHost, end: socket.socket) -> None:
        peer = "a" if host is self.b else "b"
        try:
            with Channel(SocketConnection(end, peer, timeout_s=self.timeout_s), keepalive_s=NAP_S) as channel:
                self.served.append(
                    receive(
                        channel,
                        host,  # type: ignore[arg-type]
                        Silence(),
                        journals=host.journals,
                        copy_of=TableCopy,
                        open_door=self.open_door,
                    )
                )
        except Exception as error:
            self.served.append(error)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def request(self, **changes: Any) -> MigrateRequest:
        return MigrateRequest(
            **({"domain": "web1", "destination": parse("b"), "settle_for_s": 0.0} | changes)
        )

    def migrate(self, **changes: Any) -> Any:
        return migrate_domain(
            self.request(**changes),
            Silence(),
            host=self.a,
            journals=self.a.journals,
            connect=self.connector(self.b),
            link_report=self.link_report,
            **({} if self.open_link is None else {"open_link": self.open_link}),
        )  # type: ignore[arg-type]

    def states(self) -> tuple[list[str], list[str]]:
        """The last state of each journal."""
        return tuple([str(one.state) for one in host.journals.all()] for host in (self.a, self.b))  # type: ignore
