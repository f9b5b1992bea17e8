"""Another configuration for a domain that is restored or migrated, as `xl restore CONFIG IMAGE` and `xl migrate -C`
have it: a file of xl's, or libxl's JSON.

A configuration speaks of two things. What surrounds the domain (its name, disks, NICs, what becomes of it when it
ends) is the file's. The machine that the guest was saved on (its type, processors, memory, what it sees of the
hardware) is in the image's memory and registers as well, and cannot be another one: there both must say the same.

See docs/reference/configuration.md. A test holds the tables against libxl's own list of fields, as in `decisions`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from saverestore.errors import ErrorName, ImageError, UsageError
from saverestore.toolstack.config import DEVICE_LISTS, MEMKB_DEFAULT, GuestConfig, parse

LOG = logging.getLogger(__name__)

XL_TIMEOUT_S = 60.0
NO_MAC = "00:00:00:00:00:00"

Json = dict[str, Any]


class Origin(Enum):
    """FILE: as the file has it, also where that has nothing. FITS: the image's; where the file has it, it must be the
    same. IMAGE: the image's, whatever the file says."""

    FILE = "file"
    FITS = "fits"
    IMAGE = "image"


def _all(origin: Origin, words: str) -> dict[str, Origin]:
    return dict.fromkeys(words.split(), origin)


CONFIG = {
    **_all(Origin.FILE, " ".join(DEVICE_LISTS)),
    **_all(Origin.FILE, "on_poweroff on_reboot on_watchdog on_crash on_soft_reset"),
    **_all(Origin.IMAGE, "c_info b_info"),  # field by field, see below
}

CREATE = {
    **_all(Origin.FILE, "name ssidref ssid_label xsdata platformdata poolid pool_name"),
    **_all(Origin.FILE, "run_hotplug_scripts driver_domain passthrough"),
    "type": Origin.FITS,
    # xl makes a UUID up where the file has none, which cannot be told from one that it has.
    **_all(Origin.IMAGE, "uuid domid hap oos xend_suspend_evtchn_compat"),
}

BUILD = {
    # Where it runs, and what it is given there.
    **_all(Origin.FILE, "cpumap nodemap vcpu_hard_affinity vcpu_soft_affinity numa_placement llc_colors"),
    **_all(Origin.FILE, "sched_params ioports irqs iomem xenstore_feature_mask xenstore_quota"),
    **_all(Origin.FILE, "exec_ssidref exec_ssid_label disable_migrate"),
    **_all(Origin.FILE, "device_model device_model_ssidref device_model_ssid_label device_model_user"),
    **_all(Origin.FILE, "dm_restrict extra extra_pv extra_hvm stubdomain_memkb stubdomain_kernel"),
    **_all(Origin.FILE, "stubdomain_cmdline stubdomain_ramdisk"),
    # From what it boots the next time.
    **_all(
        Origin.FILE, "kernel cmdline ramdisk bootloader bootloader_args bootloader_restrict bootloader_user"
    ),
    # The machine that it was saved on.
    **_all(Origin.FITS, "max_vcpus max_memkb video_memkb max_grant_frames max_maptrack_frames"),
    **_all(
        Origin.FITS, "max_grant_version event_channels timer_mode tsc_mode nested_hvm altp2m altp2m_count"
    ),
    **_all(Origin.FITS, "vmtrace_buf_kb vpmu acpi apic type u arch_arm arch_x86 device_model_version"),
    **_all(Origin.FITS, "device_model_stubdomain device_tree tee trap_unmapped_accesses"),
    # How it was when it was saved, and what the image has in records of its own.
    **_all(Origin.IMAGE, "avail_vcpus target_memkb shadow_memkb iommu_memkb claim_mode cpuid vnuma_nodes"),
    **_all(Origin.IMAGE, "rtc_timeoffset localtime blkdev_start"),
}

OF_A_TYPE = {
    **_all(Origin.FILE, "nographic vnc sdl spice keymap kernel cmdline ramdisk bootloader bootloader_args"),
    **_all(Origin.IMAGE, "timeoffset boot ms_vm_genid slack_memkb"),
}
"""Of "type.hvm", "type.pv" and "type.pvh"; what is not here is the machine's, and must fit."""

UNSET: tuple[Any, ...] = (
    None,
    0,
    "",
    "<default>",
    "default",
    "unknown",
    [],
    {},
    -1,
    0xFFFF_FFFF,
    MEMKB_DEFAULT,
)
"""What libxl writes for a default, where it writes it at all."""


@dataclass(frozen=True)
class GivenConfig:
    """A configuration to be used instead of an image's. `name`: the file's; `raw`: libxl's JSON, perhaps in part."""

    name: str
    raw: Json

    def over(self, image: GuestConfig) -> GuestConfig:
        """The image's configuration with this file's, as far as that is the file's to say.

        UsageError, with all of it, where the file speaks of another machine than the image holds. Devices that the
        domain had and the file has not are a warning, and so are disks at other places.
        """
        self._check_fits(image)
        raw: Json = json.loads(json.dumps(image.raw))
        _take(raw, self.raw, CONFIG)
        _take(raw["c_info"], self.raw.get("c_info") or {}, CREATE)
        _take(raw["b_info"], self.raw.get("b_info") or {}, BUILD)
        kind = f"type.{image.kind}"
        of_file = (self.raw.get("b_info") or {}).get(kind) or {}
        if of_file or kind in raw["b_info"]:
            _take(raw["b_info"].setdefault(kind, {}), of_file, OF_A_TYPE)
        raw["c_info"]["name"] = raw["c_info"].get("name") or image.name
        raw["c_info"].setdefault("type", image.kind)
        _keep_macs(raw, image.raw)
        try:
            found = parse(json.dumps(raw).encode())
        except ImageError as error:
            raise UsageError(f"{self.name}: {error}", name=ErrorName.FILE_UNSUITABLE) from error
        self._warn(image, found)
        return found

    def _check_fits(self, image: GuestConfig) -> None:
        different = [
            f"{name} is {_shown(mine)}, and the domain has {_shown(theirs)}"
            for name, mine, theirs in _compared(self.raw, image)
            if str(mine) != str(theirs)
        ]
        if different:
            raise UsageError(
                f"{self.name} is for another machine than {image.name}: {'; '.join(different)}; "
                "no changes were made",
                name=ErrorName.CONFIGURATION_DIFFERS,
            )

    def _warn(self, image: GuestConfig, found: GuestConfig) -> None:
        lost = [device for device in image.devices if device not in found.devices]
        if lost:
            LOG.warning("%s has had devices that are not in %s: %s", image.name, self.name, ", ".join(lost))
        before = _places(image.raw)
        moved = [
            f"disk {vdev}: {path}, and the domain had {before[vdev]}"
            for vdev, path in _places(found.raw).items()
            if path != before.get(vdev, path)
        ]
        if moved:
            LOG.warning(
                "%s has disks at other places, and whether they hold what the domain had on its own is not known: %s",
                found.name,
                "; ".join(moved),
            )


def read(path: str) -> GivenConfig:
    """Read a configuration of xl's, which `xl` itself has to parse, or libxl's JSON. UsageError for anything else."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", name=ErrorName.FILE_NOT_FOUND) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no configuration: {error}", name=ErrorName.FILE_UNSUITABLE) from error
    if not text.lstrip().startswith(("{", "[")):
        text = _by_xl(path, text)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is no configuration of libxl's: {error}", name=ErrorName.FILE_UNSUITABLE
        ) from error
    if isinstance(raw, list) and len(raw) == 1:  # as `xl list -l DOMAIN` has it
        raw = raw[0]
    if isinstance(raw, dict) and isinstance(raw.get("config"), dict):
        raw = raw["config"]
    if not _is_configuration(raw):
        raise UsageError(f"{path} is no configuration of libxl's", name=ErrorName.FILE_UNSUITABLE)
    return GivenConfig(path, raw)


def _is_configuration(raw: Any) -> bool:
    """Whether it has the shape of one; what its values may be is looked at when it is merged."""
    return (
        isinstance(raw, dict)
        and all(isinstance(raw.get(name, {}), dict) for name in ("c_info", "b_info"))
        and all(isinstance(value, dict) for name, value in raw.get("b_info", {}).items() if "type." in name)
        and all(
            isinstance(raw.get(name) or [], list)
            and all(isinstance(one, dict) for one in raw.get(name) or [])
            for name in DEVICE_LISTS
        )
    )


def _by_xl(path: str, text: str) -> str:
    """What `xl create` would make of it, JSON. Nothing is created. `text`: what is in the file, for one that
    cannot be read again, such as a pipe."""
    if Path(path).is_file():
        return _parsed_by_xl(path, str(Path(path).absolute()))
    with os.fdopen(os.memfd_create("config"), "w") as copy:
        copy.write(text)
        copy.flush()
        return _parsed_by_xl(path, f"/proc/self/fd/{copy.fileno()}", copy.fileno())


def _parsed_by_xl(path: str, name: str, *fds: int) -> str:
    """The same of a file, which `xl` finds by this name."""
    try:
        done = subprocess.run(
            ["xl", "create", "-q", "-n", name],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=XL_TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise UsageError(
            f"{path}: xl, which would have to read it, cannot be run: {error.strerror}; libxl's JSON is read "
            "without it",
            name=ErrorName.TOOLSTACK_UNAVAILABLE,
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"{path}: xl has not read it within {XL_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        why = "; ".join(done.stderr.split("\n")).strip("; ") or f"it exited with {done.returncode}"
        raise UsageError(f"{path}: xl does not accept it: {why}", name=ErrorName.FILE_UNSUITABLE)
    return done.stdout


def _take(into: Json, given: Mapping[str, Any], origins: Mapping[str, Origin]) -> None:
    """What is the file's to say: what it has, and nothing where it has nothing."""
    for name, origin in origins.items():
        if origin is not Origin.FILE:
            continue
        if name in given:
            into[name] = given[name]
        else:
            into.pop(name, None)


def _compared(given: Json, image: GuestConfig) -> Iterator[tuple[str, Any, Any]]:
    """What must fit, and both have: name, as in the file, as in the image."""
    create, build = given.get("c_info") or {}, given.get("b_info") or {}
    known = {"max_vcpus": image.max_vcpus, "max_memkb": image.max_kib}
    if create.get("type") not in UNSET:
        yield "type", create["type"], image.kind
    for name, origin in BUILD.items():
        if origin is Origin.FITS:
            yield from _both_set(name, build.get(name), known.get(name, image.raw["b_info"].get(name)))
    kind = f"type.{image.kind}"
    theirs = image.raw["b_info"].get(kind) or {}
    for name, value in (build.get(kind) or {}).items():
        if OF_A_TYPE.get(name, Origin.FITS) is Origin.FITS:
            yield from _both_set(name, value, theirs.get(name))


def _both_set(name: str, mine: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for part in mine:
            yield from _both_set(f"{name}.{part}", mine[part], theirs.get(part))
    elif mine not in UNSET and theirs not in UNSET:
        yield name, mine, theirs


def _shown(value: Any) -> str:
    return json.dumps(value)


def _keep_macs(raw: Json, image: Json) -> None:
    """A NIC that the file gives no MAC keeps its own: libxl would make one up, and the guest's neighbours know it."""
    known = {_number(nic, at): nic["mac"] for at, nic in enumerate(image.get("nics") or []) if nic.get("mac")}
    for at, nic in enumerate(raw.get("nics") or []):
        if nic.get("mac", NO_MAC) == NO_MAC and _number(nic, at) in known:
            nic["mac"] = known[_number(nic, at)]


def _number(nic: Json, at: int) -> int:
    found = nic.get("devid", at)
    return found if isinstance(found, int) and found >= 0 else at


def _places(raw: Json) -> dict[str, str]:
    """Paths of its disks, by their names in the guest."""
    return {
        str(disk.get("vdev") or at): str(disk.get("pdev_path") or "")
        for at, disk in enumerate(raw.get("disks") or [])
    }
