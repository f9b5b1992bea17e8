"""The command line of QEMU: Xen, with dom0's kernel and initrd as its modules.

On x86 QEMU itself is the multiboot loader; on arm64 its guest-loader puts both into memory and tells Xen of them in
the device tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# -smap: before QEMU 9.1, an IRET from user mode to user mode faults under SMAP, and each PV kernel does
# those. -rdtscp: otherwise each RDTSCP of a PVH guest fails in Xen's SVM code ("Insn mismatch"). -erms, -fsrm: with
# them kernels and Xen copy by REP MOVSB, which QEMU does byte by byte; without, a write of a page into a pipe takes a
# fifth of the time, and real processors have what makes it fast.
CPU = "max,-smap,-la57,-pku,-rdtscp,-erms,-fsrm"

# Under emulation Xen's lazy switching of the vector registers mixes those of different vCPUs: programs in
# dom0 and guests compute wrong, crash, or lose connections. Seen with the guest's self-check (FPU-CORRUPT within
# seconds), and gone with eager switching. Probably XSAVE and XRSTOR under CR0.TS raise no #NM in QEMU.
FPU_SWITCHING = "spec-ctrl=eager-fpu"

PROCESSORS = 2

PAIR_PROCESSORS = 1
"""Of each host of a pair: with two, four emulated ones shared the machine's two, and waited for one another."""

# With two and a GICv2, dom0 and guests stop getting interrupts, often as soon as the first guest runs: dom0 then
# waits for ever. Nothing of ours need have run. With one it has not been seen.
GIC2_PROCESSORS = 1

# Where an arm64 machine finds dom0's kernel and initrd. Its memory begins at 1 GiB; Xen itself is loaded below both.
ARM64_KERNEL_AT = 0x4A000000
ARM64_INITRD_AT = 0x50000000


@dataclass(frozen=True)
class Member:
    """What makes a machine one of the two hosts of a pair."""

    name: str
    """"a" or "b"."""
    cable: Path
    """The socket where its QEMU waits for the cable (see `cable`)."""
    shared_disk: Path
    """The raw file that is the second disk of both."""

    @property
    def hostname(self) -> str:
        """As dom0 calls itself, and as the other one finds it."""
        return f"host{self.name}"

    @property
    def mac(self) -> str:
        """Of its card on the cable."""
        return f"52:54:00:09:00:{1 + MEMBERS.index(self.name):02x}"


MEMBERS = ("a", "b")


@dataclass(frozen=True)
class Boot:
    """What to boot."""

    xen: Path
    kernel: Path
    initrd: Path
    disk: Path
    run_folder: Path
    ssh_port: int
    memory_mib: int
    dom0_memory_mib: int
    gic: int | None = None
    """The version of an arm64 machine's interrupt controller; None: it is an x86 machine."""
    emulator: tuple[str, ...] = ()
    """How QEMU is called; empty: as it is in the path."""
    member: Member | None = None
    """Of a pair. Then `disk` is a layer of its own (qcow2), and what dom0 writes there is kept."""

    @property
    def kernel_options(self) -> str:
        """The command line of dom0's kernel."""
        host = f" lab.host={self.member.name}" if self.member else ""
        return f"console=hvc0 net.ifnames=0 mitigations=off quiet{host}"

    @property
    def disk_options(self) -> str:
        """How the disk is opened. For a pair, what dom0 has flushed outlives QEMU (not this machine)."""
        return "format=qcow2,cache=unsafe" if self.member else "format=raw,snapshot=on"


def command_line(boot: Boot) -> list[str]:
    """Return the argv that boots `boot`: no display, serial console in a socket and a log, loopback only."""
    if boot.gic is not None:
        return _arm64(boot, boot.gic)
    for path in (boot.kernel, boot.initrd):
        if "," in str(path):
            raise ValueError(f"QEMU splits its modules at commas, and there is one in {path}")
    xen_options = (
        f"dom0_mem={boot.dom0_memory_mib}M,max:{boot.dom0_memory_mib}M "
        f"{FPU_SWITCHING} console=com1 com1=115200,8n1 noreboot loglvl=info guest_loglvl=info"
    )
    return [
        *(boot.emulator or ("qemu-system-x86_64",)),
        "-machine", "q35",
        "-cpu", CPU,
        *_common(boot),
        "-append", xen_options,
        "-initrd", f"{boot.kernel} {boot.kernel_options},{boot.initrd}",
        *_devices(boot, "virtio-blk-pci", "virtio-net-pci,romfile="),
    ]  # fmt: skip


def _arm64(boot: Boot, gic: int) -> list[str]:
    xen_options = f"dom0_mem={boot.dom0_memory_mib}M console=dtuart noreboot loglvl=info guest_loglvl=info"
    return [
        *(boot.emulator or ("qemu-system-aarch64",)),
        "-machine", f"virt,virtualization=on,gic-version={gic}",
        "-cpu", "cortex-a57",
        *_common(boot),
        "-append", xen_options,
        "-device",
        f"guest-loader,addr={ARM64_KERNEL_AT:#x},kernel={_escaped(boot.kernel)},bootargs={boot.kernel_options}",
        "-device", f"guest-loader,addr={ARM64_INITRD_AT:#x},initrd={_escaped(boot.initrd)}",
        *_devices(boot, "virtio-blk-device", "virtio-net-device", last_is_first=True),
    ]  # fmt: skip


def _devices(boot: Boot, disk: str, card: str, *, last_is_first: bool = False) -> list[str]:
    """Disks and cards, whose names in dom0 are vda and eth0, and for a pair vdb and eth1.

    `last_is_first`: Linux finds them in the opposite order, as it does on the bus of QEMU's machine `virt`.
    """
    devices = [
        "-drive", f"file={_escaped(boot.disk)},if=none,id=disk,{boot.disk_options}",
        "-device", f"{disk},drive=disk",
        "-device", f"{card},netdev=net",
    ]  # fmt: skip
    if boot.member:
        shared, cable = _escaped(boot.member.shared_disk), _escaped(boot.member.cable)
        others = [
            "-drive", f"file={shared},if=none,id=shared,format=raw,cache=unsafe,file.locking=off",
            "-device", f"{disk},drive=shared",
            "-netdev", f"stream,id=cable,server=on,addr.type=unix,addr.path={cable}",
            "-device", f"{card},netdev=cable,mac={boot.member.mac}",
        ]  # fmt: skip
        return [*others, *devices] if last_is_first else [*devices, *others]
    return devices


def _common(boot: Boot) -> list[str]:
    """What machines of both kinds have: processors, no display, a console in a socket, loopback only."""
    return [
        "-name", f"pysave-lab-{boot.member.hostname if boot.member else boot.run_folder.name}",
        "-accel", "tcg,thread=multi",
        "-smp", str(_processors(boot)),
        "-m", f"{boot.memory_mib}M",
        "-display", "none",
        "-nodefaults",
        "-no-reboot",
        "-kernel", str(boot.xen),
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{boot.ssh_port}-:22",
        "-chardev",
        f"socket,id=console,path={_escaped(boot.run_folder / 'console.sock')},server=on,wait=off,"
        f"logfile={_escaped(boot.run_folder / 'serial.log')},logappend=off",
        "-serial", "chardev:console",
        "-monitor", f"unix:{_escaped(boot.run_folder / 'monitor.sock')},server=on,wait=off",
    ]  # fmt: skip


def _processors(boot: Boot) -> int:
    if boot.gic == 2:
        return GIC2_PROCESSORS
    return PAIR_PROCESSORS if boot.member else PROCESSORS


def _escaped(path: Path) -> str:
    """Return the path as a value in QEMU's comma-separated options."""
    return str(path).replace(",", ",,")
