"""Domains that libxl makes, with their devices, and this process fills: on ARM, where libxl restores none itself.

libxl is asked for a new domain of the image's configuration, with a kernel of ours that does nothing. It gives it
memory, a GIC, xenstore and console, and connects its disks and network cards; paused as it is then, all that libxl
put into its memory and processor is replaced. What libxl keeps of the configuration is the image's own afterwards.
"""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyxc import cpu
from saverestore import interrupts
from saverestore.errors import ErrorName, ImageError, XenRefused
from saverestore.guest.common.handles import Handles
from saverestore.guest.common.hvm_params import HVM_PARAM_CONSOLE_EVTCHN, HVM_PARAM_STORE_EVTCHN
from saverestore.guest.common.pages import SLACK_KIB
from saverestore.guest.common.transactions import write_below
from saverestore.guest.ports import Channels, RestoredPages
from saverestore.interrupts import shield
from saverestore.toolstack.bare import write_userdata
from saverestore.toolstack.config import GuestConfig, parse
from saverestore.toolstack.libxl import LibxlToolstack
from saverestore.toolstack.ports import FreshDomain
from saverestore.toolstack.userdata import userdata_path

BOOT_SETTINGS = ("kernel", "ramdisk", "cmdline", "bootloader", "bootloader_args", "device_tree")
"""What a domain boots from. Old configurations have most of them with the settings of the domain's type."""

KERNEL_BYTES = 4096


def idle_kernel() -> bytes:
    """A kernel that is one as far as a loader looks (Linux, Documentation/arm64/booting): it would loop forever."""
    branch_to_itself = 0x1400_0000
    text_offset, flags = 0, 0
    header = struct.pack(
        "<IIQQQQQQ4sI", branch_to_itself, 0, text_offset, KERNEL_BYTES, flags, 0, 0, 0, b"ARMd", 0
    )
    return header.ljust(KERNEL_BYTES, b"\0")


def to_be_made(config: GuestConfig, kernel: str) -> str:
    """The configuration, JSON, with nothing to boot but this kernel, and no more memory than the domain is to have.

    libxl gives a new domain all the memory that it may ever have. Of one that has given memory back it would be too
    much, and more than libxl's own limit lets it have.
    """
    raw: dict[str, Any] = json.loads(config.to_json())
    build = raw["b_info"]
    for section in (build, *(build[key] for key in build if key.startswith("type."))):
        for name in BOOT_SETTINGS:
            section.pop(name, None)
    build["kernel"] = kernel
    build["max_memkb"] = build["target_memkb"] = config.target_kib
    return json.dumps(raw)


def to_be_kept(made: GuestConfig, original: GuestConfig) -> GuestConfig:
    """What libxl made of the former, with memory and boot settings of the domain's own configuration."""
    raw: dict[str, Any] = json.loads(made.to_json())
    build, wanted = raw["b_info"], original.raw["b_info"]
    for name in (*BOOT_SETTINGS, "max_memkb", "target_memkb"):
        build.pop(name, None)
        if name in wanted:
            build[name] = wanted[name]
    kind = f"type.{original.kind}"
    if kind in wanted:
        build[kind] = wanted[kind]
    return parse(json.dumps(raw).encode())


class LibxlMaker:
    """See ports.Maker."""

    def __init__(self, handles: Handles, toolstack: LibxlToolstack) -> None:
        self._handles = handles
        self._toolstack = toolstack

    def check_host(self) -> None:
        """libxl knows where its daemons run."""

    def create(self, config: GuestConfig) -> FreshDomain:
        """By libxl, with devices and hotplug scripts: it takes as long as these do, or until a signal comes."""
        with _idle_kernel_file() as path, shield():
            try:
                made_of = to_be_made(config, path)
                domid = self._toolstack.create(config.name, made_of, interrupts.raise_pending)
            except XenRefused:
                # A terminal sends Ctrl-C to hotplug scripts, too: they may have failed of it.
                interrupts.raise_pending()
                raise
            try:
                # A guest that was saved live may have grown since, and a stub needs pages of its own.
                self._handles.xen.set_max_memory(domid, max(config.max_kib, config.target_kib) + SLACK_KIB)
                channels = Channels(
                    store_port=cpu.hvm_param(self._handles.xen, domid, HVM_PARAM_STORE_EVTCHN),
                    console_port=cpu.hvm_param(self._handles.xen, domid, HVM_PARAM_CONSOLE_EVTCHN),
                )
            except BaseException:
                self.destroy(domid, config.uuid)
                raise
        return FreshDomain(domid, channels, is_built=True)

    def connect(self, fresh: FreshDomain, config: GuestConfig, pages: RestoredPages) -> None:
        """It is connected already: what is left is to have libxl forget what was not the domain's."""
        self._handles.xen.set_max_memory(fresh.domid, config.target_kib + SLACK_KIB)
        write_below(self._handles.store, fresh.domid, "memory/static-max", str(config.max_kib))
        path = userdata_path(fresh.domid, config.uuid)
        try:
            made = parse(path.read_bytes())
        except (OSError, ImageError) as error:
            raise XenRefused(
                f"what libxl keeps of {config.name}, {path}, cannot be read: {error}",
                name=ErrorName.LIBXL_FAILED,
            ) from error
        write_userdata(fresh.domid, to_be_kept(made, config))

    def unpause(self, domid: int) -> None:
        """By libxl, as it may have a device model to tell."""
        self._toolstack.unpause(domid)

    def destroy(self, domid: int, domain_uuid: uuid.UUID) -> None:
        """With its devices."""
        self._toolstack.destroy_restored(domid)


@contextmanager
def _idle_kernel_file() -> Iterator[str]:
    """The path of a file with it: libxl, which is in this process, takes kernels by their paths."""
    fd = os.memfd_create("kernel")
    try:
        os.write(fd, idle_kernel())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
