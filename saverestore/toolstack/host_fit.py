"""Whether this host has what a configuration speaks of: backing files, block devices, bridges, boot files.

libxl finds out when the domain exists already, and its hotplug scripts say it less well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saverestore.guest.kinds import this_host
from saverestore.toolstack.config import PCI_ADDRESS, GuestConfig

NET_CLASS = Path("/sys/class/net")
BRIDGE_SCRIPTS = (None, "", "vif-bridge")
DOM0_NAMES = (None, "", "0", "Domain-0")


def missing(guest_config: GuestConfig) -> list[str]:
    """What the configuration names and this host has not, for people. Empty when all is there."""
    raw = guest_config.raw
    found = [_missing_disk(number, disk) for number, disk in enumerate(raw.get("disks") or [])]
    found += [_missing_bridge(number, nic) for number, nic in enumerate(raw.get("nics") or [])]
    if this_host().of_config(guest_config.kind).has_device_model:  # QEMU is given these again
        found += [_missing_file(raw["b_info"], name) for name in ("kernel", "ramdisk", "firmware_path")]
    return [text for text in found if text]


def passed_through(guest_config: GuestConfig) -> list[str]:
    """PCI devices that the guest has for itself: they write to its memory without anybody noticing."""
    return [
        "{:04x}:{:02x}:{:02x}.{:x}".format(*(int(device.get(part) or 0) for part in PCI_ADDRESS))
        for device in guest_config.raw.get("pcidevs") or []
    ]


def is_served_here(device: dict[str, Any]) -> bool:
    """By domain 0, that is, not by a driver domain with files of its own."""
    return not device.get("backend_domid") and device.get("backend_domname") in DOM0_NAMES


def _missing_disk(number: int, disk: dict[str, Any]) -> str:
    path = disk.get("pdev_path") or ""
    # A script knows what its own kind of target means; an empty drive has none.
    if not path.startswith("/") or disk.get("script") or not is_served_here(disk) or Path(path).exists():
        return ""
    return f"disk {disk.get('vdev') or number}: {path} is not there"


def _missing_bridge(number: int, nic: dict[str, Any]) -> str:
    bridge = nic.get("bridge")
    script = nic.get("script")
    if not bridge or not is_served_here(nic) or (Path(script).name if script else None) not in BRIDGE_SCRIPTS:
        return ""
    if (NET_CLASS / bridge).exists():
        return ""
    return f"NIC {nic.get('devid', number)}: there is no bridge {bridge}"


def _missing_file(section: dict[str, Any], name: str) -> str:
    path = section.get(name)
    if not isinstance(path, str) or not path.startswith("/") or Path(path).exists():
        return ""
    return f"{name}: {path} is not there"
