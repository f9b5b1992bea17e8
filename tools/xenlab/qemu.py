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

# With two and a GICv2, dom0 and guests stop getting interrupts, often as soon as the first guest runs: dom0 then
# waits for ever. Nothing of ours need have run. With one it has not been seen.
GIC2_PROCESSORS = 1

# Where an arm64 machine finds dom0's kernel and initrd. Its memory begins at 1 GiB; Xen itself is loaded below both.
ARM64_KERNEL_AT = 0x4A000000
ARM64_INITRD_AT = 0x50000000


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
    kernel_options = "console=hvc0 net.ifnames=0 mitigations=off quiet"
    return [
        "qemu-system-x86_64",
        "-machine", "q35",
        "-cpu", CPU,
        *_common(boot),
        "-append", xen_options,
        "-initrd", f"{boot.kernel} {kernel_options},{boot.initrd}",
        "-drive", f"file={_escaped(boot.disk)},if=virtio,format=raw,snapshot=on",
        "-device", "virtio-net-pci,netdev=net,romfile=",
    ]  # fmt: skip


def _arm64(boot: Boot, gic: int) -> list[str]:
    xen_options = f"dom0_mem={boot.dom0_memory_mib}M console=dtuart noreboot loglvl=info guest_loglvl=info"
    kernel_options = "console=hvc0 net.ifnames=0 mitigations=off quiet"
    return [
        "qemu-system-aarch64",
        "-machine", f"virt,virtualization=on,gic-version={gic}",
        "-cpu", "cortex-a57",
        *_common(boot),
        "-append", xen_options,
        "-device",
        f"guest-loader,addr={ARM64_KERNEL_AT:#x},kernel={_escaped(boot.kernel)},bootargs={kernel_options}",
        "-device", f"guest-loader,addr={ARM64_INITRD_AT:#x},initrd={_escaped(boot.initrd)}",
        "-drive", f"file={_escaped(boot.disk)},if=none,id=disk,format=raw,snapshot=on",
        "-device", "virtio-blk-device,drive=disk",
        "-device", "virtio-net-device,netdev=net",
    ]  # fmt: skip


def _common(boot: Boot) -> list[str]:
    """What machines of both kinds have: processors, no display, a console in a socket, loopback only."""
    return [
        "-name", f"pysave-lab-{boot.run_folder.name}",
        "-accel", "tcg,thread=multi",
        "-smp", str(GIC2_PROCESSORS if boot.gic == 2 else PROCESSORS),
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


def _escaped(path: Path) -> str:
    """Return the path as a value in QEMU's comma-separated options."""
    return str(path).replace(",", ",,")
