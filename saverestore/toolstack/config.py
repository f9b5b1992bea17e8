"""A domain's configuration as libxl keeps it and as images carry it: JSON (libxl_types.idl, libxl_domain_config).

Only what a save or restore needs is looked at; everything else passes through untouched, so that the next
toolstack finds what the last one wrote. Defaults that libxl leaves out are filled in here as it would.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any

from saverestore.errors import ImageError
from saverestore.guest.common.machine import Machine

KINDS = ("pv", "pvh", "hvm")

MAX_VCPUS = 8192  # Xen's own limit, of PV guests
MAX_KIB = 1 << 42  # 4 PiB: what x86 can address
MEMKB_DEFAULT = (1 << 64) - 1  # libxl's word for "no value given"
MAX_GRANT_LIMIT = (1 << 31) - 1  # an int in Xen's interface

DEFAULT_EVENT_CHANNELS = 1023
DEFAULT_TIMER_MODE = 1  # no delay for missed ticks
TIMER_MODES = {
    "delay_for_missed_ticks": 0,
    "no_delay_for_missed_ticks": 1,
    "no_missed_ticks_pending": 2,
    "one_missed_tick_pending": 3,
}
TSC_MODES = {"default": 0, "always_emulate": 1, "native": 2}

# Lists of the configuration that hold devices, with their names for people.
DEVICE_LISTS = {
    "disks": "disk",
    "nics": "NIC",
    "pcidevs": "passed-through PCI device",
    "rdms": "reserved device memory",
    "dtdevs": "device-tree device",
    "vfbs": "virtual framebuffer",
    "vkbs": "virtual keyboard",
    "virtios": "virtio device",
    "vtpms": "virtual TPM",
    "p9s": "9p file system",
    "pvcallsifs": "PV calls interface",
    "vdispls": "virtual display",
    "vsnds": "virtual sound card",
    "channels": "channel",
    "usbctrls": "USB controller",
    "usbdevs": "USB device",
}

# What is used as text, or as a number, where there is any.
DEVICE_TEXTS = {"disks": ("vdev", "pdev_path", "script"), "nics": ("mac", "bridge", "script")}
PCI_ADDRESS = ("domain", "bus", "dev", "func")


@dataclass(frozen=True)
class GuestConfig(Machine):
    """What is read out of the JSON. `kind`: libxl's type, "pv", "pvh" or "hvm"; `target_kib`: its memory now."""

    raw: dict[str, Any]
    name: str
    kind: str
    online_vcpus: frozenset[int]
    target_kib: int

    @property
    def devices(self) -> list[str]:
        """The devices it has, for people: "disk xvda", "NIC 0" …"""
        return [
            f"{name} {device.get('vdev') or device.get('devid', number)}"
            for key, name in DEVICE_LISTS.items()
            for number, device in enumerate(self.raw.get(key) or [])
        ]

    @property
    def left_out(self) -> list[str]:
        """Settings that this toolstack does not restore, where they are not the default: for people."""
        create, build = self.raw["c_info"], self.raw["b_info"]
        sched = build.get("sched_params") or {}
        found = {
            "its CPU pool": create.get("pool_name") not in (None, "", "Pool-0"),
            "CPU affinity": bool(build.get("vcpu_hard_affinity") or build.get("vcpu_soft_affinity")),
            "NUMA nodes": bool(build.get("nodemap")),
            "scheduling weight and cap": sched.get("weight", 256) not in (-1, 0, 256)
            or sched.get("cap", 0) not in (-1, 0),
            "the offset of its clock": bool(build.get("rtc_timeoffset")) or _flag(build, "localtime", False),
            "vPMU": _flag(build, "vpmu", False),
        }
        return [name for name, is_set in found.items() if is_set]

    def to_json(self) -> bytes:
        """The JSON again, without a final NUL."""
        return json.dumps(self.raw, indent=4).encode()

    def replaced(
        self,
        *,
        name: str | None = None,
        domain_uuid: uuid.UUID | None = None,
        target_kib: int | None = None,
        max_kib: int | None = None,
        online_vcpus: frozenset[int] | None = None,
    ) -> GuestConfig:
        """A copy with these values in it."""
        raw: dict[str, Any] = json.loads(json.dumps(self.raw))
        if name is not None:
            raw["c_info"]["name"] = name
        if domain_uuid is not None:
            raw["c_info"]["uuid"] = str(domain_uuid)
        if target_kib is not None:
            raw["b_info"]["target_memkb"] = target_kib
        if max_kib is not None:
            raw["b_info"]["max_memkb"] = max_kib
        if online_vcpus is not None:
            raw["b_info"]["avail_vcpus"] = sorted(online_vcpus)
        return parse(json.dumps(raw).encode())


def parse(data: bytes) -> GuestConfig:
    """Read libxl's JSON. ImageError when it is not that, or lacks what every domain has."""
    try:
        raw = json.loads(data.rstrip(b"\0"))
        create, build = raw["c_info"], raw["b_info"]
        kind = _kind(create, build)
        if kind not in KINDS:
            raise ValueError(f"it says type {kind!r}")
        max_vcpus = _whole(build, "max_vcpus", 1, lowest=1, highest=MAX_VCPUS)
        max_kib = _whole(build, "max_memkb", build.get("target_memkb"), lowest=1, highest=MAX_KIB)
        _check_devices(raw)
        _check_sections(build)
        return GuestConfig(
            raw=raw,
            name=_name(create),
            uuid=uuid.UUID(create["uuid"]),
            kind=kind,
            max_vcpus=max_vcpus,
            online_vcpus=frozenset(map(int, build.get("avail_vcpus", [0]))) & frozenset(range(max_vcpus)),
            target_kib=_whole(build, "target_memkb", max_kib, highest=MAX_KIB),
            max_kib=max_kib,
            paging_kib=_whole(build, "shadow_memkb", 0, highest=MAX_KIB) or None,
            hap=_flag(create, "hap", True),
            nested_virt=_flag(build, "nested_hvm", False),
            ssidref=_whole(create, "ssidref", 0),
            event_channels=_whole(build, "event_channels", DEFAULT_EVENT_CHANNELS),
            max_grant_frames=_limit(build, "max_grant_frames"),
            max_maptrack_frames=_limit(build, "max_maptrack_frames"),
            max_grant_version=_grant_version(build),
            timer_mode=TIMER_MODES.get(str(build.get("timer_mode")), DEFAULT_TIMER_MODE),
            tsc_mode=TSC_MODES.get(str(build.get("tsc_mode", "default")), 0),
            msr_relaxed=_flag(build.get("arch_x86") or {}, "msr_relaxed", False),
            gic_version=_gic_version(build.get("arch_arm") or {}),
        )
    except KeyError as error:
        raise ImageError(f"the domain's configuration is not libxl's JSON: it lacks {error}") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ImageError(f"the domain's configuration is not libxl's JSON: {error}") from error


def _whole(
    section: dict[str, Any], key: str, default: Any, *, lowest: int = 0, highest: int = 0xFFFF_FFFF
) -> int:
    """A number of the JSON; `default` where it is missing or says so itself. ValueError out of range."""
    value = section.get(key)
    if value in (None, MEMKB_DEFAULT) or (value == 0 and not lowest):
        value = default
    if value is None:
        raise KeyError(key)
    if isinstance(value, float) or not lowest <= int(value) <= highest:
        raise ValueError(f"{key} is {value}")
    return int(value)


def _check_devices(raw: dict[str, Any]) -> None:
    for key in DEVICE_LISTS:
        devices = raw.get(key) or []
        if not isinstance(devices, list) or not all(isinstance(device, dict) for device in devices):
            raise ValueError(f"{key} is not a list of devices")
    for key, names in DEVICE_TEXTS.items():
        for device in raw.get(key) or []:
            for name in names:
                if not isinstance(device.get(name), str | None):
                    raise ValueError(f"{name} of one of its {key} is {device[name]!r}")
    for device in raw.get("pcidevs") or []:
        for name in PCI_ADDRESS:
            int(device.get(name) or 0)


def _check_sections(build: dict[str, Any]) -> None:
    for name, section in build.items():
        is_section = name.startswith("type.") or (name == "sched_params" and section is not None)
        if is_section and not isinstance(section, dict):
            raise ValueError(f"{name} is {section!r}")


def _name(create: dict[str, Any]) -> str:
    """Text that xenstore and libxl can be given. ValueError for anything else: half of a surrogate pair, which JSON
    can hold, or a NUL, which would end it."""
    name = create["name"]
    if not isinstance(name, str) or "\0" in name:
        raise ValueError(f"the name is {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {name!r} is not UTF-8") from None
    return name


def _kind(create: dict[str, Any], build: dict[str, Any]) -> str:
    kind = create.get("type")
    if kind is None:
        kind = next((key.removeprefix("type.") for key in build if key.startswith("type.")), "")
    return str(kind)


def _flag(section: dict[str, Any], key: str, default: bool) -> bool:
    """libxl's defbool: "True", "False", "<default>" or missing."""
    return {"True": True, "False": False, True: True, False: False}.get(section.get(key, default), default)


def _limit(build: dict[str, Any], key: str) -> int:
    """A limit, -1 (the hypervisor's default) where there is none; libxl writes that as 2³²-1."""
    value = build.get(key)
    if value is None or value in (-1, 0xFFFF_FFFF):
        return -1
    if not 0 <= int(value) <= MAX_GRANT_LIMIT:
        raise ValueError(f"{key} is {value}")
    return int(value)


def _gic_version(arch_arm: dict[str, Any]) -> str | None:
    value = arch_arm.get("gic_version")
    if value in (None, "default"):
        return None
    if value not in ("v2", "v3"):
        raise ValueError(f"gic_version is {value!r}")
    return str(value)


def _grant_version(build: dict[str, Any]) -> int:
    value = build.get("max_grant_version")
    return 2 if value is None or int(value) < 0 or int(value) > 2 else int(value)


def describe(
    *, name: str, domain_uuid: uuid.UUID, kind: str, max_vcpus: int, target_kib: int, max_kib: int
) -> GuestConfig:
    """A configuration for a domain that no libxl knows, such that `xl restore` takes it."""
    raw = {
        "c_info": {"type": kind, "name": name, "uuid": str(domain_uuid), "run_hotplug_scripts": "True"},
        "b_info": {
            "max_vcpus": max_vcpus,
            "avail_vcpus": list(range(max_vcpus)),
            "max_memkb": max_kib,
            "target_memkb": target_kib,
            "video_memkb": 0,
            "sched_params": {},
            f"type.{kind}": {},
            "arch_arm": {},
            "arch_x86": {},
        },
    }
    return parse(json.dumps(raw).encode())
