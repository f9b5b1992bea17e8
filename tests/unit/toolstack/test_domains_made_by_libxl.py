"""On ARM, libxl makes a domain that is to boot a kernel of ours; what it keeps of it is the image's configuration."""

from __future__ import annotations

import json
import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

try:
    from saverestore.toolstack import libxl_maker
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from saverestore.errors import Interrupted, XenRefused
from saverestore.guest.ports import Channels, RestoredPages
from saverestore.interrupts import handled
from saverestore.testing.store import MemoryStore
from saverestore.toolstack.config import GuestConfig, parse
from saverestore.toolstack.ports import FreshDomain

CONFIG = {
    "c_info": {"type": "pvh", "name": "web1", "uuid": "00000000-0000-4000-8000-000000000001"},
    "b_info": {
        "max_vcpus": 2,
        "max_memkb": 262144,
        "target_memkb": 131072,
        "kernel": "/boot/vmlinuz",
        "ramdisk": "/boot/initrd",
        "cmdline": "console=hvc0",
        "type.pvh": {"bootloader": "/usr/bin/pygrub"},
        "arch_arm": {"gic_version": "v3"},
    },
    "disks": [{"pdev_path": "/srv/web1.img", "vdev": "xvda"}],
}


def config(**build: object) -> GuestConfig:
    return parse(json.dumps({**CONFIG, "b_info": CONFIG["b_info"] | build}).encode())


def test_a_loader_takes_the_idle_kernel_for_one_of_64_bit_arm():
    kernel = libxl_maker.idle_kernel()
    assert kernel[56:60] == b"ARM\x64"
    text_offset, size = struct.unpack_from("<QQ", kernel, 8)
    assert (text_offset, size) == (0, len(kernel))


def test_the_domain_is_made_with_nothing_to_boot_but_our_kernel_and_with_the_memory_that_it_is_to_have():
    made = json.loads(libxl_maker.to_be_made(config(device_tree="/boot/own.dtb"), "/kernel"))
    wanted = json.loads(json.dumps(CONFIG))
    del wanted["b_info"]["ramdisk"], wanted["b_info"]["cmdline"], wanted["b_info"]["type.pvh"]["bootloader"]
    wanted["b_info"] |= {"kernel": "/kernel", "max_memkb": 131072}
    assert made == wanted


def test_what_libxl_keeps_boots_what_the_image_says_when_the_domain_is_started_anew():
    original = config()
    made = json.loads(libxl_maker.to_be_made(original, "/kernel"))
    made["disks"][0]["backend_domid"] = 0  # libxl fills in what it has decided
    kept = libxl_maker.to_be_kept(parse(json.dumps(made).encode()), original)
    assert kept.raw["b_info"] == original.raw["b_info"]
    assert kept.raw["disks"][0]["backend_domid"] == 0


def test_a_domain_that_had_no_kernel_of_its_own_is_left_with_none():
    original = config(bootloader="/usr/bin/pygrub")
    del original.raw["b_info"]["kernel"]
    made = parse(libxl_maker.to_be_made(original, "/kernel").encode())
    assert "kernel" not in libxl_maker.to_be_kept(made, original).raw["b_info"]


class FakeHost:
    """libxl and Xen: what there is of domains, and what was said to them."""

    def __init__(self) -> None:
        self.alive: set[int] = set()
        self.kernel = b""
        self.store = MemoryStore()
        self.max_kib: list[int] = []
        self.fails = False
        self.meanwhile: Callable[[], None] = lambda: None

    def create(self, _name: str, config_json: str, tick: Callable[[], None]) -> int:
        self.meanwhile()
        tick()
        self.kernel = Path(json.loads(config_json)["b_info"]["kernel"]).read_bytes()
        self.alive.add(4)
        return 4

    def destroy_restored(self, domid: int) -> None:
        self.alive.remove(domid)

    def set_max_memory(self, _domid: int, kib: int) -> None:
        if self.fails:
            raise KeyboardInterrupt
        self.max_kib.append(kib)


@pytest.fixture
def host(monkeypatch) -> FakeHost:
    monkeypatch.setattr(libxl_maker.cpu, "hvm_param", lambda xen, domid, index: 100 + index)
    return FakeHost()


def maker_on(host: FakeHost) -> libxl_maker.LibxlMaker:
    return libxl_maker.LibxlMaker(SimpleNamespace(xen=host, store=host.store), host)


def test_a_domain_is_made_with_our_kernel_and_the_channels_that_libxl_gave_it(host):
    fresh = maker_on(host).create(config())
    assert host.kernel == libxl_maker.idle_kernel()
    assert fresh == FreshDomain(4, Channels(store_port=102, console_port=118), is_built=True)
    assert host.max_kib == [262144 + 1024]  # it may have grown meanwhile


def test_nothing_is_left_of_a_domain_that_could_not_be_made_ready(host):
    host.fails = True
    with pytest.raises(KeyboardInterrupt):
        maker_on(host).create(config())
    assert host.alive == set()


def test_ctrl_c_ends_the_wait_for_a_hotplug_script(host):
    host.meanwhile = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Interrupted), handled():
        maker_on(host).create(config())
    assert host.alive == set()


def test_ctrl_c_that_a_hotplug_script_dies_of_is_told_as_such(host):
    def create(*_: str) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        raise XenRefused("hotplug script failed")

    host.create = create
    with pytest.raises(Interrupted), handled():
        maker_on(host).create(config())


def test_a_filled_domain_is_known_to_libxl_as_what_it_is(host, monkeypatch, tmp_path):
    kept = tmp_path / "libxl-json"
    monkeypatch.setattr(libxl_maker, "userdata_path", lambda domid, uuid: kept)
    monkeypatch.setattr(
        libxl_maker, "write_userdata", lambda domid, config: kept.write_bytes(config.to_json() + b"\0")
    )
    kept.write_bytes(libxl_maker.to_be_made(config(), "/kernel").encode() + b"\0")
    fresh = FreshDomain(4, Channels(1, 2), is_built=True)
    host.store.write("/local/domain/4/memory/static-max", "1")
    maker_on(host).connect(fresh, config(), RestoredPages(0x39001, 0x39000))
    assert parse(kept.read_bytes()).raw == config().raw
    assert host.store.contents() == {"/local/domain/4/memory/static-max": "262144"}
    assert host.max_kib == [131072 + 1024]


def test_a_domain_of_which_libxl_keeps_nothing_is_given_up(host, monkeypatch, tmp_path):
    monkeypatch.setattr(libxl_maker, "userdata_path", lambda domid, uuid: tmp_path / "missing")
    with pytest.raises(XenRefused, match="what libxl keeps of web1"):
        maker_on(host).connect(FreshDomain(4, Channels(1, 2)), config(), RestoredPages(1, 2))
