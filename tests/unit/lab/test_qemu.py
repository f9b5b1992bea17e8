from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from xenlab import qemu

BOOT = qemu.Boot(
    Path("/c/xen"),
    Path("/c/vmlinux"),
    Path("/c/initrd"),
    Path("/c/disk.img"),
    Path("/c/run/4.17"),
    2201,
    6144,
    2560,
)


def after(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_ssh_is_forwarded_from_loopback_only_and_the_guest_reaches_nothing() -> None:
    network = after(qemu.command_line(BOOT), "-netdev")
    assert "restrict=on" in network
    assert "hostfwd=tcp:127.0.0.1:2201-:22" in network


def test_disk_is_a_snapshot_and_no_kvm_is_asked_for() -> None:
    argv = qemu.command_line(BOOT)
    assert "snapshot=on" in after(argv, "-drive")
    assert after(argv, "-accel") == "tcg,thread=multi"


def test_vector_registers_are_switched_eagerly() -> None:
    assert "spec-ctrl=eager-fpu" in after(qemu.command_line(BOOT), "-append").split()


def test_kernel_and_initrd_are_two_modules() -> None:
    first, second = after(qemu.command_line(BOOT), "-initrd").split(",")
    assert first.startswith("/c/vmlinux ")
    assert second == "/c/initrd"


def test_comma_in_a_module_path_is_refused_and_escaped_elsewhere() -> None:
    with pytest.raises(ValueError, match="comma"):
        qemu.command_line(dataclasses.replace(BOOT, initrd=Path("/a,b/initrd")))
    argv = qemu.command_line(dataclasses.replace(BOOT, disk=Path("/a,b/disk.img")))
    assert "file=/a,,b/disk.img," in after(argv, "-drive")
