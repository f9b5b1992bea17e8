"""What the lab adds to a root file system, small and quick to rebuild: guest, dom0's programs, keys.

All of it travels in dom0's initrd, which copies it over the disk's files before it starts them. So a
change of the guest or of a script costs seconds, and the disk stays what the packages made it.

    guest-SUITE/KEY/initramfs.gz   the guest: busybox, its init, its programs, drivers of Xen's disks and network
    dom0-SUITE/KEY/initrd          dom0: busybox, disk drivers, and /layer
    ssh/id_ed25519, dom0_key, host_key   made once per cache: the lab's user, root in each dom0, each host
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from xenlab import cache, modules, rootfs
from xenlab.apt import ARM64_COMPILER
from xenlab.cpio import Archive
from xenlab.errors import LabError, step
from xenlab.proc import CHROOT_ENV, in_chroot, run_logged
from xenlab.variants import Variant

RECIPE = "layer 2"

PACKAGE = Path(__file__).resolve().parent
GUEST_SOURCES = PACKAGE / "guest"
DOM0_MODULES = ("labline.py", "triple_faults.py")
"""Modules of this package that tests and `lab-guest` use in dom0."""
DOM0_SOURCES = PACKAGE / "dom0"

INITRD_MODULES = {
    "amd64": ("crc32c_generic", "virtio_pci", "virtio_blk", "ext4"),
    "arm64": ("crc32c_generic", "virtio_mmio", "virtio_blk", "ext4"),
}
GUEST_MODULES = ("crc32c_generic", "ext4", "xen_blkfront", "xen_netfront")
GUEST_PROGRAMS = ("dirtier", "devices")

SSH_KEYS = ("id_ed25519", "dom0_key", "host_key")

HOSTS_OF_A_PAIR = "hosta,hostb,10.0.9.1,10.0.9.2"

DOM0_FILES = {
    # name in tools/xenlab/dom0: (name in dom0, mode)
    "start": ("lab/start", 0o755),
    "inittab": ("etc/inittab", 0o644),
    "sshd_config": ("etc/ssh/sshd_config", 0o600),
    "profile": ("root/.profile", 0o644),
    "ssh_config": ("root/.ssh/config", 0o600),
    "lab-guest": ("usr/local/bin/lab-guest", 0o755),
    "lab-link": ("usr/local/bin/lab-link", 0o755),
    "lab.service": ("etc/systemd/system/lab.service", 0o644),
    "lab.conf": ("etc/systemd/system/multi-user.target.d/lab.conf", 0o644),
    "xen": ("etc/default/xen", 0o644),
}


def guest_key(variant: Variant) -> str:
    """Return the key of the guest's initramfs."""
    sources = cache.key_of_files(*GUEST_SOURCES.iterdir())
    return cache.key_of(RECIPE, rootfs.key(variant), sources)


def dom0_key(variant: Variant) -> str:
    """Return the key of dom0's initrd; the ssh keys must be there."""
    sources = cache.key_of_files(*DOM0_SOURCES.iterdir(), *(PACKAGE / name for name in DOM0_MODULES))
    public = [(ssh_folder() / name).read_text() for name in (f"{key}.pub" for key in SSH_KEYS)]
    return cache.key_of(RECIPE, guest_key(variant), sources, *public)


def dom0_path(variant: Variant) -> Path | None:
    """Return where the variant's initrd is when it is built; None when there are no keys yet."""
    if not all((ssh_folder() / name).is_file() for name in SSH_KEYS):
        return None
    return cache.artefact_path(f"dom0-{variant.place}", dom0_key(variant))


def ssh_folder() -> Path:
    """Return the folder of the lab's ssh keys."""
    return cache.cache_root() / "ssh"


def ensure_ssh_keys(log: Path) -> None:
    """Make the key pairs of the lab's user, of root in dom0, and of the hosts, if they are missing."""
    folder = ssh_folder()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in SSH_KEYS:
        if not (folder / name).is_file():
            argv = [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "pysave lab",
                "-f",
                str(folder / name),
            ]
            run_logged(argv, log, shown="ssh-keygen")
    (folder / "known_hosts").write_text(f"pysave-lab {_public_host_key()}\n")


def _public_host_key() -> str:
    return " ".join((ssh_folder() / "host_key.pub").read_text().split()[:2])


def ensure_guest(variant: Variant, root: Path, log: Path) -> Path:
    """Return the folder with the guest's initramfs.gz, building it if it is missing."""

    def build(folder: Path) -> None:
        with step("the lab's guest"):
            for program in GUEST_PROGRAMS:
                _compile(program, variant, root, folder, log)
            archive = Archive()
            for name in ("bin", "dev", "disk", "modules", "proc", "sys", "sbin", "tmp"):
                archive.directory(name)
            archive.character_device("dev/console", 5, 1)
            archive.file("bin/busybox", busybox(root), 0o755)
            for applet in ("sh", "mount", "mkdir", "sleep", "cat", "insmod", "ip"):
                archive.symlink(f"bin/{applet}", "busybox")
            archive.file("init", (GUEST_SOURCES / "init").read_bytes(), 0o755)
            # Linux calls this one when the toolstack asks for a shutdown.
            archive.file("sbin/poweroff", b"#!/bin/sh\nexec /bin/busybox poweroff -f\n", 0o755)
            archive.file("sbin/reboot", b"#!/bin/sh\nexec /bin/busybox reboot -f\n", 0o755)
            for program in GUEST_PROGRAMS:
                archive.file(f"bin/{program}", (folder / program).read_bytes(), 0o755)
            _add_modules(archive, root, GUEST_MODULES)
            (folder / "initramfs.gz").write_bytes(gzip.compress(archive.finish(), mtime=0))

    return cache.ensure(f"guest-{variant.place}", guest_key(variant), build)


def ensure_dom0(variant: Variant, root: Path, guest: Path) -> Path:
    """Return the folder with dom0's initrd, building it if it is missing."""

    def build(folder: Path) -> None:
        with step("dom0's initrd"):
            (folder / "initrd").write_bytes(_dom0_initrd(variant, root, guest / "initramfs.gz"))

    return cache.ensure(f"dom0-{variant.place}", dom0_key(variant), build)


def busybox(root: Path) -> bytes:
    """Return the root file system's static busybox."""
    for name in ("bin/busybox", "usr/bin/busybox"):
        if (root / name).is_file():
            return (root / name).read_bytes()
    raise LabError(f"{root} has no busybox: remove it and run `tools/lab build`")


def _compile(program: str, variant: Variant, root: Path, folder: Path, log: Path) -> None:
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
    if variant.is_arm64:
        argv = [ARM64_COMPILER, *flags, "-o", str(folder / program), str(GUEST_SOURCES / f"{program}.c")]
        run_logged(argv, log, shown="gcc")
        return
    for source in (f"{program}.c", *(header.name for header in GUEST_SOURCES.glob("*.h"))):
        shutil.copy(GUEST_SOURCES / source, folder)
    argv = ["gcc", *flags, "-o", f"/mnt/{program}", f"/mnt/{program}.c"]
    run_logged(in_chroot(root, {"/mnt": folder}, argv), log, shown="gcc", env=CHROOT_ENV)


def _add_modules(archive: Archive, root: Path, wanted: tuple[str, ...]) -> None:
    """/modules with the drivers, and /modules/order: their names as they are to be loaded."""
    trees = list((root / "lib/modules").iterdir())
    loaded = modules.load(trees[0], wanted)
    for name, data in loaded:
        archive.file(f"modules/{name}", data)
    archive.file("modules/order", "".join(f"{name}\n" for name, _ in loaded).encode())


def _dom0_initrd(variant: Variant, root: Path, initramfs: Path) -> bytes:
    archive = Archive()
    for name in ("dev", "proc", "newroot", "modules", "layer/lab/guest", "layer/root"):
        archive.directory(name)
    archive.directory("layer/root/.ssh", 0o700)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox(root), 0o755)
    archive.file("init", (DOM0_SOURCES / "init").read_bytes(), 0o755)
    _add_modules(archive, root, INITRD_MODULES[variant.arch])

    for source, (name, mode) in DOM0_FILES.items():
        archive.file(f"layer/{name}", (DOM0_SOURCES / source).read_bytes(), mode)
    for name in DOM0_MODULES:
        archive.file(f"layer/usr/lib/python3/dist-packages/{name}", (PACKAGE / name).read_bytes())
    archive.file("layer/usr/lib/python3/dist-packages/pysave.pth", b"/opt/pysave\n")
    archive.file("layer/lab/guest/initramfs.gz", initramfs.read_bytes())
    archive.file("layer/lab/guest/vmlinuz", (root.parent / "vmlinux").read_bytes())
    # From the lab, and from the other host of a pair, which root there is let into without a question.
    users = b"".join((ssh_folder() / f"{name}.pub").read_bytes() for name in ("id_ed25519", "dom0_key"))
    archive.file("layer/root/.ssh/authorized_keys", users, 0o600)
    archive.file("layer/root/.ssh/id_ed25519", (ssh_folder() / "dom0_key").read_bytes(), 0o600)
    archive.file("layer/root/.ssh/known_hosts", f"{HOSTS_OF_A_PAIR} {_public_host_key()}\n".encode())
    for name, mode in (("host_key", 0o600), ("host_key.pub", 0o644)):
        archive.file(f"layer/etc/ssh/{name}", (ssh_folder() / name).read_bytes(), mode)
    return archive.finish()
