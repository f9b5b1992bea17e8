"""The command line of QEMU: Xen as multiboot image, dom0's kernel and initrd as its modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# -smap: before QEMU 9.1, an IRET from user mode to user mode faults under SMAP, and each PV kernel does
# those. -rdtscp: otherwise each RDTSCP of a PVH guest fails in Xen's SVM code ("Insn mismatch").
CPU = "max,-smap,-la57,-pku,-rdtscp"

# Under emulation Xen's lazy switching of the vector registers mixes those of different vCPUs: programs in
# dom0 and guests compute wrong, crash, or lose connections. Seen with the guest's self-check (FPU-CORRUPT within
# seconds), and gone with eager switching. Probably XSAVE and XRSTOR under CR0.TS raise no #NM in QEMU.
FPU_SWITCHING = "spec-ctrl=eager-fpu"


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


def command_line(boot: Boot) -> list[str]:
    """Return the argv that boots `boot`: no display, serial console in a socket and a log, loopback only."""
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
        "-name", f"pysave-lab-{boot.run_folder.name}",
        "-machine", "q35",
        "-accel", "tcg,thread=multi",
        "-cpu", CPU,
        "-smp", "2",
        "-m", f"{boot.memory_mib}M",
        "-display", "none",
        "-nodefaults",
        "-no-reboot",
        "-kernel", str(boot.xen),
        "-append", xen_options,
        "-initrd", f"{boot.kernel} {kernel_options},{boot.initrd}",
        "-drive", f"file={_escaped(boot.disk)},if=virtio,format=raw,snapshot=on",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{boot.ssh_port}-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-chardev",
        f"socket,id=console,path={_escaped(boot.run_folder / 'console.sock')},server=on,wait=off,"
        f"logfile={_escaped(boot.run_folder / 'serial.log')},logappend=off",
        "-serial", "chardev:console",
        "-monitor", f"unix:{_escaped(boot.run_folder / 'monitor.sock')},server=on,wait=off",
    ]  # fmt: skip


def _escaped(path: Path) -> str:
    """Return the path as a value in QEMU's comma-separated options."""
    return str(path).replace(",", ",,")
