"""A suite's root file system: the chroot that compiles the project and the disk of its dom0.

KEY/root/       the files; kept as they were installed
KEY/disk.img    ext4 with the same files (sparse)
KEY/vmlinux     its kernel, uncompressed: under emulation, unpacking it at each boot costs seconds
KEY/xen         its hypervisor, uncompressed, as QEMU wants it (arm64: both are so in their packages)
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import subprocess
from pathlib import Path

from xenlab import apt, cache, foreign
from xenlab.errors import LabError, step
from xenlab.proc import isolated, run_logged
from xenlab.variants import Variant

RECIPE = "rootfs 1"
"""Change it when this module makes something else of the same packages."""

DISK_BYTES = 6 << 30

_MODULES = "/lib/modules/*/kernel"
EXCLUDED = tuple(
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"]
    # Drivers of hardware that QEMU does not show to dom0: two thirds of the kernel package.
    + [
        f"{usr}{_MODULES}/{folder}/*"
        for usr in ("", "/usr")
        for folder in (
            "sound", "drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/net/wireless",
            "drivers/net/ethernet", "drivers/staging", "drivers/isdn", "drivers/scsi", "drivers/hwmon",
        )
    ]
)  # fmt: skip


def key(variant: Variant) -> str:
    """Return the key of the variant's root file system (variants of a suite share it)."""
    foreign_recipe = (foreign.RECIPE,) if variant.is_arm64 else ()
    parts = (*variant.packages, "excluded", *EXCLUDED, str(DISK_BYTES), *foreign_recipe)
    return cache.key_of(RECIPE, variant.suite, *parts)


def path(variant: Variant) -> Path:
    """Return where the variant's root file system is when it is built."""
    return cache.artefact_path(f"rootfs-{variant.place}", key(variant))


def ensure(variant: Variant, log: Path) -> Path:
    """Return the folder of the variant's root file system, building it if it is missing."""

    def build(folder: Path) -> None:
        _require_root()
        with step(f"root file system of {variant.place}"):
            _install_packages(variant, folder / "root", log)
        with step("its disk"):
            _make_disk(folder, log)
        kernel = one_file(folder / "root/boot", "vmlinuz-*").read_bytes()
        if variant.is_arm64:
            (folder / "vmlinux").write_bytes(kernel)
            (folder / "xen").write_bytes(
                one_file(folder / "root/boot", f"xen-{variant.xen}-arm64").read_bytes()
            )
            return
        (folder / "vmlinux").write_bytes(uncompressed_kernel(kernel))
        hypervisor = one_file(folder / "root/boot", f"xen-{variant.xen}-amd64.gz")
        (folder / "xen").write_bytes(gzip.decompress(hypervisor.read_bytes()))

    return cache.ensure(f"rootfs-{variant.place}", key(variant), build)


def one_file(folder: Path, pattern: str) -> Path:
    """Return the only file that matches; raises LabError if there is none or there are several."""
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise LabError(f"{folder}: expected one {pattern}, found {len(found)}: run `tools/lab build` again")
    return found[0]


def _require_root() -> None:
    if os.geteuid() != 0:
        raise LabError("a root file system is to be built: run `tools/lab build` as root")


def _install_packages(variant: Variant, root: Path, log: Path) -> None:
    kind = foreign.MMDEBSTRAP if variant.is_arm64 else ("--variant=minbase",)
    argv = ["mmdebstrap", "--mode=root", *kind, f"--include={','.join(variant.packages)}"]
    argv += ['--aptopt=APT::Install-Recommends "0"']
    argv += [f"--aptopt={option}" for option in apt.acquire_options()]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    # How this machine fetches packages (a proxy's name, say) is nobody's business in the image.
    argv += ['--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"']
    argv += [variant.suite, str(root)]
    argv += [source.line(variant.suite) for source in apt.machine_sources()]
    # The kernel's hook would make an initrd for a minute; dom0 boots with one of ours.
    env = {**os.environ, "INITRD": "No", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    run_logged(isolated(argv), log, shown="mmdebstrap", env=env)
    if variant.is_arm64:
        foreign.settle(root, log)


def _make_disk(folder: Path, log: Path) -> None:
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    argv = ["/sbin/mkfs.ext4", "-q", "-F", "-m", "0", "-d", str(folder / "root"), str(image)]
    run_logged(argv, log, shown="mkfs.ext4")


def uncompressed_kernel(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage.

    Layout: Linux, Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, magic "HdrS" at 0x202,
    payload_offset and payload_length at 0x248. The payload's last four bytes are its size unpacked.
    """
    if image[0x202:0x206] != b"HdrS":
        raise LabError("the kernel is not a bzImage: this Debian suite is not one the lab knows")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length - 4]
    if payload.startswith(b"\xfd7zXZ"):
        kernel = lzma.decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        kernel = gzip.decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        kernel = subprocess.run(["zstd", "-dcq"], input=payload, stdout=subprocess.PIPE, check=True).stdout
    else:
        raise LabError(f"the kernel is packed in an unknown way (starts {payload[:4].hex()})")
    if not kernel.startswith(b"\x7fELF"):
        raise LabError("what was packed in the kernel is not an ELF image")
    return kernel
