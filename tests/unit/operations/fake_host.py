"""A toolstack without a host: it knows what it is told, and notes what is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace


class FakeStore(dict[str, str]):
    """The little of xenstore that is used."""

    def read(self, path: str) -> str | None:
        return self.get(path)

    def write(self, path: str, value: str) -> None:
        self[path] = value

    def remove(self, path: str) -> None:
        for name in [name for name in self if name == path or name.startswith(f"{path}/")]:
            del self[name]

    def list(self, path: str) -> list[str]:
        return [name for name in self if name.startswith(f"{path}/")]


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
        self.destroyed = 0
        self.closed = 0
        self.on_destroy: Callable[[], None] = lambda: None

    def config_of(self, _domain: object) -> SimpleNamespace:
        return SimpleNamespace(to_json=lambda: b"{}", raw={"pcidevs": self.pci_devices})

    def cannot_carry(self, _domain: object) -> list[str]:
        return self.devices

    def device_model_of(self, _domain: object) -> None:
        return None

    def destroy(self, _domain: object) -> None:
        self.destroyed += 1
        self.on_destroy()

    def close(self) -> None:
        self.closed += 1
