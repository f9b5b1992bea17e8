"""The checkout, installed for a suite at native speed in its root file system, as one tar for dom0.

For arm64, where nothing of the root file system runs here, the machine's own Python and pip do it with a cross
compiler that looks for headers and libraries in there.

    ROOT/push/SUITE/source/   the checkout's files; setuptools' build/ stays here, so C compiles once
    ROOT/push/SUITE/target/   what pip made of it

In dom0: /opt/pysave (packages and entry points, importable everywhere through a .pth file, commands
linked into /usr/local/bin) and /root/pysave (tests and their settings).
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from xenlab import cache
from xenlab.apt import ARM64_COMPILER
from xenlab.errors import LabError, tail_of
from xenlab.proc import CHROOT_ENV, in_chroot, run_logged
from xenlab.variants import Variant

INSTALL_SCRIPT = """set -e
rm -rf /opt/pysave.new /root/pysave.new
tar -xf - -C /
for name in /opt/pysave /root/pysave; do
    [ -e $name.new ] || mkdir $name.new
    rm -rf $name.old
    [ ! -e $name ] || mv $name $name.old
    mv $name.new $name
    rm -rf $name.old
done
find /usr/local/bin -type l -lname '/opt/pysave/*' -delete
for command in /opt/pysave/bin/*; do
    [ ! -e "$command" ] || ln -s "$command" /usr/local/bin/
done
"""

_PIP = """set -e
rm -rf /opt/target/*
cd /opt/source
PYSAVE_BUILD=build python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
    --no-build-isolation --no-index --no-compile --target=/opt/target .
python3 -m compileall -q -s /opt/target -p /opt/pysave /opt/target
"""

_CROSS_PIP = """set -e
target=$1 source=$2 root=$3
rm -rf "$target"/*
cd "$source"
PYSAVE_BUILD=build /usr/bin/python3 -m pip install --quiet --disable-pip-version-check \
    --root-user-action=ignore --no-deps --no-build-isolation --no-index --no-compile --target="$target" .
# Under emulation compiling at each start costs seconds; another Python than dom0's would make what that cannot use.
version=$(/usr/bin/python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
[ ! -d "$root/usr/lib/$version" ] || /usr/bin/python3 -m compileall -q -s "$target" -p /opt/pysave "$target"
"""


@dataclass(frozen=True)
class Payload:
    """What is to be unpacked at dom0's root."""

    tar: bytes
    digest: str


def work_folder(variant: Variant) -> Path:
    """Return the folder where the suite's installation is made."""
    return cache.cache_root() / "push" / variant.place


def checkout_files(checkout: Path) -> list[Path]:
    """Return the checkout's files, relative: tracked ones and new ones that git does not ignore."""
    argv = ["git", "-c", f"safe.directory={checkout}", "-C", str(checkout), "ls-files", "-z", "--cached"]
    argv += ["--others", "--exclude-standard"]
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode != 0:
        raise LabError(f"git ls-files in {checkout}: {done.stderr.decode(errors='replace').strip()}")
    names = {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
    return sorted(Path(name) for name in names if (checkout / name).is_file())


def mirror(checkout: Path, files: list[Path], target: Path) -> int:
    """Make `target` hold just `files`, besides build/; return how many were changed.

    A file keeps its time of change, so that the compiler runs only for what changed.
    """
    wanted = set(files)
    changed = 0
    for folder, folders, names in os.walk(target):
        here = Path(folder)
        if here == target:
            folders[:] = [name for name in folders if name != "build"]
        for name in names:
            if (here / name).relative_to(target) not in wanted:
                (here / name).unlink()
                changed += 1
    for file in files:
        source, copy = checkout / file, target / file
        before = source.stat()
        if copy.is_file() and (copy.stat().st_mtime_ns, copy.stat().st_size) == (
            before.st_mtime_ns,
            before.st_size,
        ):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)
        changed += 1
    return changed


def forget_old_python(source: Path) -> None:
    """Remove from setuptools' build/lib* all but compiled extensions: it never drops deleted modules."""
    for path in source.glob("build/lib*/**/*"):
        if path.is_file() and path.suffix != ".so":
            path.unlink()


def build_payload(variant: Variant, root: Path, checkout: Path) -> Payload:
    """Install the checkout for the suite whose root file system is `root`, and pack it for dom0.

    pip runs only when a file changed since last time. Raises LabError with its last lines if it fails.
    """
    if os.geteuid() != 0:
        raise LabError("compiling for dom0 needs a chroot: run `tools/lab push` as root")
    work = work_folder(variant)
    source, target, log = work / "source", work / "target", work / "push.log"
    for folder in (source, target):
        folder.mkdir(parents=True, exist_ok=True)
    changed = mirror(checkout, checkout_files(checkout), source)
    done = work / "installed"
    stamp = str(root)
    if changed or not done.is_file() or done.read_text() != stamp:
        done.unlink(missing_ok=True)
        log.write_bytes(b"")
        if (source / "pyproject.toml").is_file() or (source / "setup.py").is_file():
            forget_old_python(source)
            _install(variant, root, source, target, log)
        else:
            raise LabError(f"{checkout} has no pyproject.toml: nothing to install", tail_of(log))
        done.write_text(stamp)
    return pack(target, source)


def _install(variant: Variant, root: Path, source: Path, target: Path, log: Path) -> None:
    if variant.is_arm64:
        argv = ["sh", "-c", _CROSS_PIP, "pip", str(target), str(source), str(root)]
        run_logged(argv, log, shown="pip", env={**CHROOT_ENV, **_cross_environment(root)})
        return
    for name in ("source", "target"):
        (root / "opt" / name).mkdir(exist_ok=True)
    binds = {"/opt/source": source, "/opt/target": target}
    run_logged(in_chroot(root, binds, ["sh", "-c", _PIP]), log, shown="pip", env=CHROOT_ENV)


def _cross_environment(root: Path) -> dict[str, str]:
    """Return what makes setuptools compile for arm64 against the root file system's headers and libraries."""
    compiler = f"{ARM64_COMPILER} --sysroot={root}"
    headers = sorted((root / "usr/include").glob("python3.*"))
    return {
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared",
        "CFLAGS": " ".join(f"-I{folder}" for folder in headers),
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        # All of it is wanted, or the lab would test something else than it seems to.
        "PYSAVE_REQUIRE": "xen,libxl,kernels",
    }


def pack(target: Path, source: Path) -> Payload:
    """Return the tar for dom0: the installed packages, and the tests with their settings."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder, inside in ((target, "opt/pysave.new"), (source / "tests", "root/pysave.new/tests")):
            if folder.is_dir():
                tar.add(folder, inside, filter=_plain)
        if (source / "pyproject.toml").is_file():
            tar.add(source / "pyproject.toml", "root/pysave.new/pyproject.toml", filter=_plain)
    data = buffer.getvalue()
    return Payload(data, hashlib.sha256(data).hexdigest())


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if member.name.endswith(("/.pytest_cache", "/.hypothesis")):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member
