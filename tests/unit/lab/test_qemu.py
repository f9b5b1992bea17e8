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


ARM64 = dataclasses.replace(BOOT, gic=3)


def test_an_arm64_machine_has_the_interrupt_controller_asked_for_and_room_for_xen_below_the_kernel() -> None:
    argv = qemu.command_line(ARM64)
    assert argv[0] == "qemu-system-aarch64"
    assert after(argv, "-machine") == "virt,virtualization=on,gic-version=3"
    assert "gic-version=2" in after(qemu.command_line(dataclasses.replace(BOOT, gic=2)), "-machine")
    loaders = [word for word in argv if word.startswith("guest-loader")]
    assert ["kernel=/c/vmlinux" in loaders[0], "initrd=/c/initrd" in loaders[1]] == [True, True]
    assert qemu.ARM64_KERNEL_AT < qemu.ARM64_INITRD_AT


def test_an_arm64_machine_is_as_cut_off_from_the_network_as_an_x86_one() -> None:
    assert after(qemu.command_line(ARM64), "-netdev") == after(qemu.command_line(BOOT), "-netdev")
    assert "snapshot=on" in after(qemu.command_line(ARM64), "-drive")


def test_comma_in_a_module_path_is_refused_and_escaped_elsewhere() -> None:
    with pytest.raises(ValueError, match="comma"):
        qemu.command_line(dataclasses.replace(BOOT, initrd=Path("/a,b/initrd")))
    argv = qemu.command_line(dataclasses.replace(BOOT, disk=Path("/a,b/disk.img")))
    assert "file=/a,,b/disk.img," in after(argv, "-drive")


def test_a_machine_with_gicv2_has_one_processor_and_others_have_two() -> None:
    assert after(qemu.command_line(dataclasses.replace(BOOT, gic=2)), "-smp") == "1"
    assert {after(qemu.command_line(boot), "-smp") for boot in (BOOT, ARM64)} == {"2"}


PAIR = Path("/c/run/pair")
MEMBERS = {name: qemu.Member(name, PAIR / name / "cable.sock", PAIR / "shared.img") for name in "ab"}


@pytest.mark.parametrize("of", [BOOT, ARM64])
def test_a_host_of_a_pair_keeps_its_disk_and_sees_the_other_ones(of: qemu.Boot) -> None:
    argv = qemu.command_line(dataclasses.replace(of, disk=PAIR / "a/disk.qcow2", member=MEMBERS["a"]))
    drives = [argv[at + 1] for at, word in enumerate(argv) if word == "-drive"]
    (own,) = [drive for drive in drives if "id=disk" in drive]
    (shared,) = [drive for drive in drives if "id=shared" in drive]
    assert "format=qcow2" in own
    assert "file=/c/run/pair/shared.img" in shared
    assert "file.locking=off" in shared
    assert not [drive for drive in drives if "snapshot" in drive]


def test_hosts_of_a_pair_have_cards_and_names_of_their_own_and_a_single_machine_has_no_cable() -> None:
    both = [" ".join(qemu.command_line(dataclasses.replace(BOOT, member=one))) for one in MEMBERS.values()]
    assert "mac=52:54:00:09:00:01" in both[0]
    assert "mac=52:54:00:09:00:02" in both[1]
    assert [" lab.host=a" in both[0], " lab.host=b" in both[1]] == [True, True]
    assert "stream" not in " ".join(qemu.command_line(BOOT))


def test_the_disk_and_the_card_for_ssh_come_first_so_that_they_are_vda_and_eth0() -> None:
    argv = qemu.command_line(dataclasses.replace(BOOT, member=MEMBERS["b"]))
    devices = [argv[at + 1] for at, word in enumerate(argv) if word == "-device"]
    assert ["drive=disk" in devices[0], "netdev=net" in devices[1]] == [True, True]
    assert ["drive=shared" in devices[2], "netdev=cable" in devices[3]] == [True, True]


def test_of_arm64_they_come_last_as_linux_finds_them_there_in_the_opposite_order() -> None:
    argv = qemu.command_line(dataclasses.replace(ARM64, member=MEMBERS["b"]))
    devices = [argv[at + 1] for at, word in enumerate(argv) if word == "-device"][-4:]
    wanted = ("drive=shared", "netdev=cable", "drive=disk", "netdev=net")
    assert [word in device for word, device in zip(wanted, devices, strict=True)] == [True] * 4
