"""What the network hears of a domain that has arrived."""

from __future__ import annotations

import json
import socket
import uuid
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from saverestore.toolstack import announce
from saverestore.toolstack.domains import Domain

MAC = "00:16:3e:01:02:03"
UUID = uuid.UUID("6b4080d7-0414-4c21-a340-e452e4b608cb")


@pytest.fixture
def domain(tmp_path, monkeypatch) -> Domain:
    """With a NIC on a bridge that is there, one on a bridge that is not, and one of a driver domain."""
    nics = [
        {"mac": MAC, "bridge": "xenbr0"},
        {"mac": "00:16:3e:01:02:04", "bridge": "xenbr9"},
        {"mac": "00:16:3e:01:02:05", "bridge": "xenbr0", "backend_domname": "driver"},
        {"mac": "00:00:00:00:00:00", "bridge": "xenbr0"},
        {"bridge": "xenbr0"},
        {"mac": "00:16:3e:01:02:06"},
    ]
    config = {
        "c_info": {"name": "web1", "uuid": str(UUID), "type": "pvh"},
        "b_info": {"type": "pvh", "max_memkb": 65536},
        "nics": nics,
    }
    (tmp_path / "config").write_text(json.dumps(config))
    (tmp_path / "xenbr0").mkdir()
    monkeypatch.setattr(announce, "userdata_path", lambda *_: tmp_path / "config")
    monkeypatch.setattr(announce, "NET_CLASS", tmp_path)
    return Domain(SimpleNamespace(domid=7, uuid=UUID), "web1")  # type: ignore[arg-type]


class Wire:
    """A packet socket; what was sent."""

    sent: list[tuple[str, bytes]]
    refuses: bool

    def __init__(self, family: int, kind: int) -> None:
        assert (family, kind) == (socket.AF_PACKET, socket.SOCK_RAW)
        if self.refuses:
            raise PermissionError(1, "Operation not permitted")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def bind(self, address: tuple[str, int]) -> None:
        self.card = address[0]

    def send(self, frame: bytes) -> None:
        self.sent.append((self.card, frame))


@pytest.fixture
def wire(monkeypatch) -> type[Wire]:
    Wire.sent, Wire.refuses = [], False
    monkeypatch.setattr(announce.socket, "socket", Wire)
    return Wire


def test_each_nic_on_a_bridge_of_this_host_is_announced_by_its_mac(domain, wire):
    announce.announce(domain)
    ((card, frame),) = wire.sent
    assert card == "xenbr0"
    assert frame == bytes.fromhex(
        "ffffffffffff 00163e010203 8035"  # Ethernet: to all, from the guest, reverse ARP
        "0001 0800 06 04 0003"  # RFC 903: Ethernet, IPv4, their lengths, request reverse
        "00163e010203 00000000 00163e010203 00000000"
    ).ljust(60, b"\0")


def test_that_it_cannot_be_sent_is_a_warning(domain, wire, caplog):
    wire.refuses = True
    announce.announce(domain)
    assert f"its MAC {MAC} could not be announced on xenbr0" in caplog.text


def test_a_mac_that_is_none_is_a_warning_as_the_domain_runs_already(domain, wire, monkeypatch, caplog):
    monkeypatch.setattr(announce, "places", lambda _: [("xenbr0", "none"), ("xenbr0", MAC)])
    announce.announce(domain)
    assert "its MAC none could not be announced on xenbr0" in caplog.text
    assert len(wire.sent) == 1


def test_a_domain_without_a_configuration_of_libxls_is_not_announced(domain, wire, monkeypatch, tmp_path):
    monkeypatch.setattr(announce, "userdata_path", lambda *_: tmp_path / "none")
    announce.announce(domain)
    assert wire.sent == []
