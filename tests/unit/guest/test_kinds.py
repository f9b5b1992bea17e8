"""Which kind a domain or an image is, and what differs by it."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from pyxc.arm64 import Processor
from saverestore.errors import DomainError, ImageError
from saverestore.guest.arm64 import journal as journals
from saverestore.guest.arm64.kind import ARM64
from saverestore.guest.common import suspend
from saverestore.guest.common.machine import Machine
from saverestore.guest.kinds import ARM64_HOST, X86_HOST
from saverestore.guest.x86 import hvm, kinds
from saverestore.guest.x86.kinds import HVM, PV, PVH
from saverestore.stream.layout import DomainType
from saverestore.stream.records import Arm64Platform

ROOT = Path(__file__).parents[3]
UUID = uuid.UUID(int=0xBEEF)
MACHINE = Machine(
    uuid=UUID,
    max_vcpus=2,
    max_kib=262144,
    paging_kib=None,
    hap=True,
    nested_virt=False,
    ssidref=0,
    event_channels=1023,
    max_grant_frames=64,
    max_maptrack_frames=1024,
    max_grant_version=2,
    timer_mode=1,
    tsc_mode=0,
    msr_relaxed=False,
    gic_version="v3",
)


def handles(type_in_store: str | None = None, device_model: tuple[str, ...] = ()) -> SimpleNamespace:
    store = SimpleNamespace(read=lambda path: type_in_store, list=lambda path: list(device_model))
    return SimpleNamespace(store=store)


# ---- which kind --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_hvm", "type_in_store", "device_model", "kind"),
    [
        (False, None, (), PV),
        (True, "pvh", (), PVH),
        (True, "hvm", (), HVM),
        (True, None, (), PVH),
        (True, None, ("state",), HVM),
    ],
)
def test_a_domain_on_x86_is_what_xen_and_xenstore_say(is_hvm, type_in_store, device_model, kind):
    info = SimpleNamespace(domid=7, hvm=is_hvm)
    assert X86_HOST.of_domain(handles(type_in_store, device_model), info) is kind


def test_a_domain_on_arm64_is_of_the_one_kind_whatever_libxl_calls_it():
    assert ARM64_HOST.of_domain(handles("pvh"), SimpleNamespace(domid=7, hvm=True)) is ARM64
    assert ARM64_HOST.of_config("pv") is ARM64


@pytest.mark.parametrize(
    ("host", "domain_type", "libxl_type", "kind"),
    [
        (X86_HOST, DomainType.X86_PV, "pv", PV),
        (X86_HOST, DomainType.X86_HVM, "pvh", PVH),
        (X86_HOST, DomainType.X86_HVM, "hvm", HVM),
        (ARM64_HOST, DomainType.ARM64, "pvh", ARM64),
        (ARM64_HOST, DomainType.ARM64, "pv", ARM64),
    ],
)
def test_an_image_is_what_its_stream_and_its_configuration_say(host, domain_type, libxl_type, kind):
    assert host.of_image(domain_type, libxl_type) is kind


@pytest.mark.parametrize(
    ("host", "domain_type", "libxl_type"),
    [
        (X86_HOST, DomainType.X86_PV, "pvh"),
        (X86_HOST, DomainType.X86_PV, "hvm"),
        (X86_HOST, DomainType.X86_HVM, "pv"),
        (ARM64_HOST, DomainType.ARM64, "hvm"),
    ],
)
def test_an_image_whose_halves_contradict_each_other_is_refused(host, domain_type, libxl_type):
    with pytest.raises(ImageError, match=f"says {libxl_type}, the stream holds an {domain_type.name} domain"):
        host.of_image(domain_type, libxl_type)


@pytest.mark.parametrize(("host", "other"), [("X86_HOST", "arm64"), ("ARM64_HOST", "x86")])
def test_nothing_of_the_other_architecture_is_loaded(host, other):
    """It would be a tenth of what a save takes to start."""
    code = (
        "import sys\n"
        "import saverestore.operations.save, saverestore.operations.restore, saverestore.operations.recover\n"
        "import saverestore.helper.saving, saverestore.helper.restoring\n"
        f"from saverestore.guest import kinds\nkinds.{host}.of_config('pvh')\n"
        f"kinds.{host}.needs_recovery(7, 'no-uuid')\n"
        f"print([name for name in sys.modules if name.startswith('saverestore.guest.{other}')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "[]\n", done.stderr


# ---- saving ------------------------------------------------------------------------------------------


class Emulator:
    """A device model that is told to mark pages."""

    def __init__(self) -> None:
        self.told: list[bool] = []

    def log_dirty(self, *, on: bool) -> None:
        self.told.append(on)


def test_one_way_of_building_a_guest_serves_libxls_suspending_and_emulator(monkeypatch):
    monkeypatch.setattr(hvm.xen_memory, "nr_gpfns", lambda *_: 4)
    monkeypatch.setattr(hvm.xen_memory, "pod_target", lambda *_: SimpleNamespace(entries=0, cache_pages=0))
    monkeypatch.setattr(hvm.xen_memory, "LogDirty", lambda *_: SimpleNamespace(take=None, close=lambda: None))
    resumed = []
    suspending = SimpleNamespace(resume=lambda: resumed.append(True))
    emulator = Emulator()
    opened = SimpleNamespace(xen=SimpleNamespace(version=lambda: SimpleNamespace(major=4, minor=17)))
    guest = PVH.save_guest(opened, SimpleNamespace(domid=7, tot_pages=4), suspending, emulator)
    guest.open_log_dirty().close()
    guest.resume()
    assert (emulator.told, resumed) == ([True, False], [True])


def test_a_device_model_that_still_marks_pages_is_warned_of_without_the_cause_which_the_error_tells(caplog):
    class Busy(Emulator):
        def log_dirty(self, *, on: bool) -> None:
            super().log_dirty(on=on)
            if not on:
                raise DomainError("another program is connected to it")

    hvm.log_dirty_with(Busy(), 7, lambda: SimpleNamespace(take=None, close=lambda: None)).close()
    assert "the device model of domain 7 still marks pages" in caplog.text
    assert "another program" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "with_shadow", "without"),
    [(PV, True, False), (PVH, True, True), (HVM, True, True), (ARM64, False, False)],
)
def test_whether_the_hypervisor_logs_dirty_pages_follows_from_the_kind(kind, with_shadow, without):
    assert kind.has_log_dirty(shadow=True) is with_shadow
    assert kind.has_log_dirty(shadow=False) is without


def not_to_be_asked() -> dict[str, object]:
    pytest.fail("libxl is asked for a configuration that nobody needs")


@pytest.mark.parametrize("kind", [PV, PVH, HVM])
def test_x86_has_nothing_unsupported_and_libxl_is_not_asked(kind):
    assert kind.unsupported(not_to_be_asked) == []


@pytest.mark.parametrize(
    ("raw", "build", "told"),
    [
        ({}, {"arch_arm": {"vuart": "sbsa_uart"}}, ["an emulated UART"]),
        ({}, {"acpi": "True"}, ["ACPI tables"]),
        ({}, {"tee": "optee"}, ["a trusted execution environment (optee)"]),
        ({}, {"device_tree": "/boot/own.dtb"}, ["its own device tree"]),
        ({"dtdevs": [{"path": "/soc/ethernet"}]}, {}, ["device-tree devices"]),
        ({"rdms": [{}], "pcidevs": [{}]}, {}, ["passed-through PCI devices", "reserved device memory"]),
        ({"disks": [{"vdev": "xvda"}]}, {"acpi": "False", "tee": "none", "arch_arm": {}}, []),
    ],
)
def test_what_nobody_can_carry_on_arm_is_named(raw, build, told):
    assert ARM64.unsupported(lambda: raw | {"b_info": build}) == told


# ---- restoring ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "hap", "kib"),
    [
        (PV, True, 0),
        (PVH, True, 4 * (512 + 256)),
        (HVM, False, 4 * (512 + 512)),
        (ARM64, True, 4 * (512 + 512)),
    ],
)
def test_page_tables_take_what_libxl_reckons_unless_the_configuration_says(kind, hap, kib):
    machine = Machine(**{**vars(MACHINE), "hap": hap})
    assert kind.paging_pool_kib(machine) == kib
    said = Machine(**{**vars(machine), "paging_kib": 12345})
    assert kind.paging_pool_kib(said) == (0 if kind is PV else 12345)


def test_a_domain_is_created_as_its_kind_needs():
    pv, pvh, arm = (kind.creation(MACHINE) for kind in (PV, PVH, ARM64))
    assert (pv.hvm, pv.hap, pv.emulation_flags, pv.max_grant_version) == (False, False, 0, 2)
    assert (pvh.hvm, pvh.hap, pvh.emulation_flags, pvh.max_grant_version) == (True, True, 1, 2)
    assert (arm.hvm, arm.hap, arm.emulation_flags, arm.max_grant_version) == (True, True, 0, 1)
    assert (pv.gic_version, arm.gic_version) == (0, 2)


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        (PV, ["memmap 262144", "tsc"]),
        (PVH, ["pool 3145728", "param", "tsc"]),
        (ARM64, ["pool 4194304", "address size"]),
    ],
)
def test_a_domain_just_created_gets_what_its_kind_has(monkeypatch, kind, calls):
    done = []
    monkeypatch.setattr(kinds.cpu, "set_tsc_info", lambda *_: done.append("tsc"))
    monkeypatch.setattr(kinds.cpu, "set_hvm_param", lambda *_: done.append("param"))
    monkeypatch.setattr("pyxc.arm64.set_address_size", lambda *_: done.append("address size"))
    xen = SimpleNamespace(
        set_memmap_limit=lambda domid, kib: done.append(f"memmap {kib}"),
        set_paging_pool_bytes=lambda domid, size: done.append(f"pool {size}"),
    )
    kind.set_up(SimpleNamespace(xen=xen), 7, MACHINE)
    assert done == calls


def test_the_last_pfn_follows_from_the_memory_where_no_record_says_it():
    assert PV.last_pfn(65536) is None
    assert PVH.last_pfn(65536) == (1 << 20) + 65536
    assert ARM64.last_pfn(65536) == 0x40000 + 65536


def test_an_arm64_image_is_compared_with_the_host_before_there_is_a_domain(monkeypatch):
    monkeypatch.setattr("pyxc.arm64.processor", lambda: Processor(0x411FD070, 62_500_000))
    platform = Arm64Platform(
        gic=3, nr_vcpus=2, midr=0x411FD070, cntfrq=62_500_000, banks=((0x40000, 0x8000),)
    )
    ARM64.check_static_records(None, [platform], MACHINE, check_cpu=True)
    with pytest.raises(ImageError, match="has a GICv3, this host gives domains a GICv2"):
        machine = Machine(**{**vars(MACHINE), "gic_version": "v2"})
        ARM64.check_static_records(None, [platform], machine, check_cpu=True)
    with pytest.raises(ImageError, match="has 2 vCPUs, its configuration would make one with 1"):
        machine = Machine(**{**vars(MACHINE), "max_vcpus": 1})
        ARM64.check_static_records(None, [platform], machine, check_cpu=True)


# ---- after a save that was killed --------------------------------------------------------------------


def test_only_arm64_keeps_a_journal_and_it_goes_with_the_domain(monkeypatch, tmp_path):
    for function in (journals.is_there, journals.remove):
        monkeypatch.setattr(function, "__defaults__", (tmp_path,))
    monkeypatch.setattr(journals.is_settled, "__defaults__", (tmp_path,))
    assert not ARM64_HOST.needs_recovery(7, UUID)
    journals.path_of(7, UUID, tmp_path).touch()
    assert ARM64_HOST.needs_recovery(7, UUID)
    assert not X86_HOST.needs_recovery(7, UUID)
    X86_HOST.forget(7, UUID)
    assert ARM64_HOST.needs_recovery(7, UUID)
    ARM64_HOST.forget(7, UUID)
    assert list(tmp_path.iterdir()) == []


class FakeXen:
    """What was done to a suspended domain, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __getattr__(self, name: str):
        return lambda *_: self.done.append(name)


@pytest.mark.parametrize("kind", [PV, PVH, HVM])
def test_a_suspended_x86_domain_is_resumed_with_its_vector_registers(monkeypatch, kind):
    xen, store = FakeXen(), FakeXen()
    monkeypatch.setattr(suspend.cpu, "vcpu_xsave", lambda *_: b"registers")
    monkeypatch.setattr(suspend.cpu, "set_vcpu_xsave", lambda *_: xen.done.append("registers"))
    opened = SimpleNamespace(xen=xen, store=store)
    assert kind.recover(opened, SimpleNamespace(domid=7, suspended=False)) == []
    assert xen.done == []
    assert kind.recover(opened, SimpleNamespace(domid=7, suspended=True)) == [
        "it was suspended and has been resumed"
    ]
    assert xen.done == ["pause", "resume", "registers", "unpause"]
    assert store.done == ["resume_domain"]
