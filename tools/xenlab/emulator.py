"""QEMU for the lab's x86 machines: Debian 12's source with two of its faults mended. KEY/qemu-system-x86_64.

With QEMU 7.2 as it is, PVH guests die of triple faults, whether or not anybody saves them; two of four, in one trial:

- A processor that loads FPU state clears a flag in the *first* processor's `hflags2`, without a lock. That word also
  says whether that processor's guest uses nested paging. Now and then that bit was lost, and the guest ran on no page
  tables of its own; or it came back after a #VMEXIT, and Xen's own state was saved as the guest's.
- After an interrupt was injected by VMRUN, its number stays in `exception_index`: when the processor is next asked to
  leave the guest, the interrupt is delivered a second time, at any instruction.

Both were found in later sources of QEMU as well. Built at native speed in the
root file system of the suite that the lab has anyway; libraries and firmware are those of the machine's own QEMU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from xenlab import apt, cache, overlay, rootfs, sources
from xenlab.errors import LabError, step
from xenlab.proc import CHROOT_ENV, run_logged
from xenlab.variants import variant_named

RECIPE = "emulator 1"
NAME = "emulator"
PROGRAM = "qemu-system-x86_64"
UPSTREAM = "7.2"
BUILT_IN = "4.17"
"""The variant in whose root file system it is built."""

FIRMWARE = ("/usr/share/qemu", "/usr/share/seabios")

NEEDS = (
    "gcc",
    "libc6-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libpixman-1-dev",
    "libslirp-dev",
    "meson",
    "ninja-build",
    "pkgconf",
    "python3",
    "dpkg-dev",
    "patch",
    "xz-utils",
)

INSIDE = "/mnt"
"""Where the folder of the build is in the chroot."""

_MEND_SCRIPT = """
from pathlib import Path

def mend(name, old, new):
    path = Path("target/i386/tcg/sysemu", name)
    text = path.read_text()
    if text.count(old) != 1:
        raise SystemExit(f"{path}: {old} is there {text.count(old)} times; this is another QEMU than was looked at")
    path.write_text(text.replace(old, new))

clear = "env->hflags2 &= ~HF2_IGNNE_MASK;"
mend("fpu_helper.c", clear, "if (env->hflags2 & HF2_IGNNE_MASK) { " + clear + " }")
inject = "do_interrupt_x86_hardirq(env, vector, 1);"
mend("svm_helper.c", inject, inject + " cs->exception_index = -1;")
"""

_BUILD_SCRIPT = """set -e
export APT_CONFIG=/mnt/apt.conf
apt-get update
apt-get install -y --no-install-recommends $2
cd /mnt
dpkg-source --no-check -x *.dsc source
cd source
python3 -c "$3"
./configure --target-list=x86_64-softmmu --without-default-features --enable-tcg --enable-slirp --enable-fdt \
    --disable-werror --disable-docs --disable-debug-info
ninja -C build -j"$1" qemu-system-x86_64
cp build/qemu-system-x86_64 /mnt/built
"""


def key() -> str:
    """Return the key of the emulator.

    The packages of the root file system that it is built in are no part of it: a test that needs one more there is no
    reason to build QEMU again.
    """
    return cache.key_of(RECIPE, variant_named(BUILT_IN).suite, UPSTREAM, *NEEDS, _MEND_SCRIPT, _BUILD_SCRIPT)


def path() -> Path:
    """Return where the emulator is when it is built."""
    return cache.artefact_path(NAME, key()) / PROGRAM


def ensure(log: Path) -> Path:
    """Return the emulator's program, building it if missing: five to ten minutes. Call with the build lock held.

    LabError when it cannot be built, or does not start on this machine.
    """
    variant = variant_named(BUILT_IN)

    def build(folder: Path) -> None:
        if os.geteuid() != 0:
            raise LabError("the emulator is to be built: run `tools/lab build` as root")
        root = rootfs.ensure(variant, log) / "root"
        place = folder / "build"
        place.mkdir()
        overlay.make(folder)
        with step("source package of QEMU"):
            sources.fetch("qemu", UPSTREAM, variant.suite, place, log)
            apt.write_configuration(place, INSIDE, variant.suite)
        with step("QEMU, mended"):
            script = [
                "sh",
                "-c",
                _BUILD_SCRIPT,
                "build",
                str(os.cpu_count() or 1),
                " ".join(NEEDS),
                _MEND_SCRIPT,
            ]
            binds = {INSIDE: place, "/etc/resolv.conf": Path("/etc/resolv.conf")}
            argv = overlay.in_overlay([root], folder, binds, script)
            run_logged(
                argv, log, shown="QEMU's build", env={**CHROOT_ENV, "DEBIAN_FRONTEND": "noninteractive"}
            )
        shutil.copy(place / "built", folder / PROGRAM)
        for left in (overlay.UPPER, overlay.WORK, overlay.MERGED, "build"):
            shutil.rmtree(folder / left)
        started = subprocess.run([folder / PROGRAM, "--version"], capture_output=True, text=True, check=False)
        if started.returncode != 0:
            raise LabError(
                f"the emulator that was built does not start on this machine: {started.stderr.strip()}"
            )

    return cache.ensure(NAME, key(), build) / PROGRAM


def command(program: Path) -> tuple[str, ...]:
    """Return how a built emulator is called."""
    return (str(program), *(word for folder in FIRMWARE for word in ("-L", folder)))
