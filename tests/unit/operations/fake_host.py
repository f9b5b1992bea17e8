"""A host without Xen: it knows what it is told, and notes what is asked of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from memory_guests import CHANNELS

from saverestore.engine.save import save
from saverestore.engine.settings import SaveSettings
from saverestore.errors import Advice, Remedy
from saverestore.guest.kinds import X86_HOST
from saverestore.operations.commit import Commit, commit_of
from saverestore.operations.requests import SaveRequest
from saverestore.stream import LibxlWriter, XlHeader
from saverestore.stream.codecs import Coding
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.header_digest import HeaderDigestSink
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, MemoryThrottle
from saverestore.toolstack.condition import Condition, Found
from saverestore.toolstack.domains import Domain, devices_with_media
from saverestore.transport import FdSink
from saverestore.transport.zstd_sink import ZstdSink


class FakeStore(dict[str, str]):
    """The little of xenstore that is used; domain 7 is there. One transaction at a time, which always succeeds."""

    def read(self, path: str) -> str | None:
        return self.get(path, "" if path == "/local/domain/7" else None)

    @contextmanager
    def transaction(self) -> Iterator[FakeStore]:
        yield self

    def write(self, path: str, value: str) -> None:
        self[path] = value

    def remove(self, path: str) -> None:
        for name in [name for name in self if name == path or name.startswith(f"{path}/")]:
            del self[name]

    def list(self, path: str) -> list[str]:
        below = [name.removeprefix(f"{path}/") for name in self if name.startswith(f"{path}/")]
        return list(dict.fromkeys(name.split("/")[0] for name in below))


class FakeMemory:
    """See pyxc.ForeignMemory, of which only this is asked."""

    def __init__(self) -> None:
        self.unmapped = 0

    def unmap_lingering(self, _gfns: object = None) -> None:
        self.unmapped += 1


class FakeToolstack:
    """See ports.Toolstack. `on_destroy` is called when a domain is destroyed."""

    name = "fake"

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.pci_devices: list[dict[str, int]] = []
        self.device_model: Any = None
        self.destroyed = 0
        self.closed = 0
        self.on_destroy: Callable[[], None] = lambda: None

    def config_of(self, _domain: object) -> SimpleNamespace:
        return SimpleNamespace(
            to_json=lambda: b"{}", raw={"pcidevs": self.pci_devices}, kind="pvh", max_vcpus=1, devices=[]
        )

    def unsupported_devices(self, _domain: object) -> list[str]:
        return self.devices

    def device_model_of(self, _domain: object) -> Any:
        return self.device_model

    def destroy(self, _domain: object) -> None:
        self.destroyed += 1
        self.on_destroy()

    def close(self) -> None:
        self.closed += 1


class FakeHost:
    """See operations.host.Host: one domain, web1, number 7.

    `found`: what a look-up of it finds; None: what the guest is. `late`: how often somebody was to resume it later.
    """

    clock = staticmethod(time.monotonic)

    def __init__(
        self,
        guest: MemorySave | None = None,
        toolstack: FakeToolstack | None = None,
        *,
        batch_pfns: int | None = None,
    ) -> None:
        self.guest = guest
        self.batch_pfns = batch_pfns
        self.toolstack = toolstack or FakeToolstack()
        self.memory, self.store = FakeMemory(), FakeStore()
        self.handles: Any = SimpleNamespace(
            xen=SimpleNamespace(pause=self._pause), memory=self.memory, store=self.store
        )
        info: Any = SimpleNamespace(domid=7, uuid="00000000-0000-4000-8000-000000000001")
        self.domain: Any = Domain(info, "web1")
        self.architecture: Any = X86_HOST
        self.opened_toolstacks = 0
        self.watched: list[int] = []
        self.suspender = SimpleNamespace(is_late=False)
        self.found: Found | None = None
        self.late = 0
        self.disks: list[dict[str, Any]] = []
        self.settled: list[list[dict[str, Any]]] = []
        self.paused = False

    def _pause(self, _domid: int) -> None:
        self.paused = True

    def xen_version(self) -> str:
        return "4.17.3"

    def find(self, _text: str) -> Any:
        return self.domain

    def again(self, domain: Any) -> Any:
        return domain

    def check_can_be_saved(self, _domain: object) -> None:
        pass

    def check_hypervisor(self, *_: object, **__: object) -> None:
        pass

    def check_hypervisor_for(self, *_: object, **__: object) -> None:
        pass

    def locked(self, _domain: object) -> Any:
        return nullcontext()

    def toolstack_for_saving(self, _domain: object, _wanted: str) -> Any:
        self.opened_toolstacks += 1
        return self.toolstack

    def save_guest(self, *_: object) -> Any:
        return self.guest

    def suspending(self, *_: object) -> Any:
        return self.suspender

    def devices_of(self, domain: Any) -> dict[str, str]:
        return devices_with_media(self.store, domain.domid)  # type: ignore[arg-type]

    def flush_disks(self, _config: object) -> None:
        pass

    def disks_of(self, _config: object) -> list[dict[str, Any]]:
        return self.disks

    def settle_disks(self, _domain: object, noted: list[dict[str, Any]]) -> None:
        self.settled.append(noted)

    def look_up(self, _domain: object) -> Found:
        if self.found is not None:
            return self.found
        if self.guest is not None and self.guest.domain.suspended:
            return Found(Condition.SUSPENDED, "is suspended", (Advice(Remedy.RECOVER, 7),))
        return Found(Condition.PAUSED, "is paused") if self.paused else Found(Condition.RUNNING, "is running")

    def resume_if_late(self, _domain: object) -> str:
        self.late += 1
        return "process 42"

    def domid_of(self, _uuid: object) -> int | None:
        return None

    def throttle(self, _domain: object) -> Any:
        assert self.guest is not None
        return MemoryThrottle(self.guest.domain, self.guest.moments)

    def watcher(self, _name: str) -> Any:
        return nullcontext(SimpleNamespace(watch=self.watched.append))


def commit_with(finish: Callable[[], None]) -> Callable[[SaveRequest, object], Any]:
    """How images are stored, but that `finish` is called when one is to be brought to the disk."""

    @contextmanager
    def opened(request: SaveRequest, _prepared: object) -> Iterator[Commit]:
        with commit_of(request) as commit:
            real: Any = commit
            to_disk = real.finish

            def both() -> None:
                finish()
                to_disk()

            real.finish = both
            yield commit

    return opened


class RestoringHost(FakeHost):
    """A host on which the bare toolstack makes one domain, number 5. `on_create` is called when it is there."""

    DOMID = 5

    def __init__(self, guest: MemoryRestore | None = None) -> None:
        super().__init__()
        self.restored = guest
        self.alive: set[int] = set()
        self.running: set[int] = set()
        self.created = self.introduced = 0
        self.unmapped_when_destroyed: list[int] = []
        self.on_create: Callable[[], None] = lambda: None

    def toolstack_for_restoring(self, _wanted: str) -> tuple[None, str]:
        return None, ""

    def restoring(self, *_: object) -> Any:
        return nullcontext()

    def disks_kept(self, *_: object, **__: object) -> Any:
        return nullcontext()

    def check_free(self, _config: object) -> None:
        pass

    def domid_of(self, _uuid: object) -> int | None:
        return self.DOMID if self.alive else None

    def contents_of(self, _image: str) -> None:
        return None

    def memory_reserved(self, *_: object) -> Any:
        return nullcontext()

    def memory_claimed(self, *_: object) -> Any:
        return nullcontext()

    def check_image(self, *_: object, **__: object) -> None:
        pass

    def check_disks(self, *_: object, **__: object) -> None:
        pass

    def check_neighbours(self, *_: object, **__: object) -> None:
        pass

    def restore_guest(self, *_: object, **__: object) -> Any:
        return self.restored

    def maker(self, _libxl: object) -> Any:
        return self

    # ---- toolstack.ports.Maker ---------------------------------------------------------------------

    def check_host(self) -> None:
        pass

    def create(self, _config: object) -> Any:
        self.created += 1
        self.alive.add(self.DOMID)
        self.on_create()
        return SimpleNamespace(domid=self.DOMID, channels=CHANNELS)

    def connect(self, *_: object) -> None:
        self.introduced += 1

    def unpause(self, domid: int) -> None:
        self.running.add(domid)

    def destroy(self, domid: int, _uuid: object) -> None:
        self.unmapped_when_destroyed.append(self.memory.unmapped)
        self.alive.discard(domid)


CONFIG = (
    '{"c_info": {"type": "%s", "name": "web1", "uuid": "00000000-0000-4000-8000-000000000001"},'
    ' "b_info": {"max_vcpus": 1, "max_memkb": 4096}}'
)


def image_in(
    folder: Path,
    domain: MemoryDomain,
    form: str = "plain",
    name: str = "in.img",
    disks: Sequence[dict[str, Any]] = (),
) -> Path:
    """Save the domain there, plain, as "zstd" or as "draft-b", in small batches: the file. `disks`: libxl's JSON."""
    path = folder / name
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as file:
        sink = ZstdSink(file) if form == "zstd" else file
        outside = HeaderDigestSink(sink)
        config = json.loads(CONFIG % ("pv" if domain.is_pv else "pvh")) | {"disks": list(disks)}
        XlHeader.write(outside, json.dumps(config).encode())
        stream = LibxlWriter(outside)
        stream.libxc_context()
        settings = SaveSettings(
            digest=DigestAlgorithm.XXH3,
            header_digest=outside.digest(),
            coding=Coding.parse("zstd") if form == "draft-b" else None,
            batch_pfns=64,
        )
        save(MemorySave(domain), sink, settings)
        stream.end()
        if isinstance(sink, ZstdSink):
            sink.finish()
            sink.close()
    return path
