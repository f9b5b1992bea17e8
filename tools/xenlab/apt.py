"""The machine's own apt configuration: where its Debian packages come from, and how to get more.

No mirror is named in this project: the lab takes packages from where the machine takes its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xenlab.errors import LabError, say, step
from xenlab.proc import run_logged

CODENAMES = ("bullseye", "bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable")

HOST_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "zstd": "zstd",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
    "git": "git",
}
"""What the lab calls on the machine, and the Debian package each comes from."""

ARM64_COMPILER = "aarch64-linux-gnu-gcc"
ARM64_PROGRAMS = {
    **{name: package for name, package in HOST_PROGRAMS.items() if name != "qemu-system-x86_64"},
    "qemu-system-aarch64": "qemu-system-arm",
    "depmod": "kmod",
    ARM64_COMPILER: "gcc-aarch64-linux-gnu",
}
"""What it calls for arm64, where it compiles outside of the root file system."""

ARM64_HOST_FILES = {
    "/usr/aarch64-linux-gnu/lib/libc.a": "libc6-dev-arm64-cross",
    "/usr/lib/python3/dist-packages/cffi/__init__.py": "python3-cffi",
    "/usr/lib/python3/dist-packages/pip/__init__.py": "python3-pip",
    "/usr/lib/python3/dist-packages/setuptools/__init__.py": "python3-setuptools",
    "/usr/lib/python3/dist-packages/wheel/__init__.py": "python3-wheel",
}


@dataclass(frozen=True)
class Source:
    """A place with Debian packages, for one kind of suite."""

    uri: str
    suffix: str
    """"" for the release itself, else "-updates" or "-security"."""

    def line(self, suite: str, kind: str = "deb") -> str:
        """Return the one-line source for `suite` (a codename); `kind` is deb or deb-src."""
        return f"{kind} {self.uri} {suite}{self.suffix} main"


def _debian_sources(uris: Iterable[str], suites: Iterable[str], components: Iterable[str]) -> list[Source]:
    """Return the sources that are Debian's own; other archives also use its suite names."""
    found: list[Source] = []
    if "main" not in components:
        return found
    for uri in uris:
        if not uri.startswith(("http://", "https://")) or "debian" not in uri.lower():
            continue
        for suite in suites:
            matched = re.fullmatch(rf"({'|'.join(CODENAMES)})(|-updates|-security)", suite)
            if matched:
                found.append(Source(uri.rstrip("/"), matched[2]))
    return found


def parse_deb822(text: str) -> list[Source]:
    """Return the Debian sources of a *.sources file."""
    found: list[Source] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(x for x in text.splitlines() if not x.startswith("#"))):
        fields: dict[str, list[str]] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1].isspace():
                fields.setdefault(name, []).extend(line.split())
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.split()
        if fields.get("enabled") == ["no"] or "deb" not in fields.get("types", []):
            continue
        found += _debian_sources(
            fields.get("uris", []), fields.get("suites", []), fields.get("components", [])
        )
    return found


def parse_list(text: str) -> list[Source]:
    """Return the Debian sources of a *.list file."""
    found: list[Source] = []
    for line in text.splitlines():
        matched = re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if matched:
            found += _debian_sources([matched[1]], [matched[2]], matched[3].split())
    return found


def machine_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """Return the Debian sources this machine is set up with, each once; empty when there are none."""
    found: list[Source] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if not path.is_file() or path.suffix not in (".list", ".sources"):
            continue
        text = path.read_text(errors="replace")
        found += parse_deb822(text) if path.suffix == ".sources" else parse_list(text)
    return list(dict.fromkeys(found))


def parse_acquire(dump: str) -> list[str]:
    """Return from `apt-config dump` how packages are fetched here (proxy, certificates, dates)."""
    wanted = re.compile(
        r"Acquire::((https?|ftp)(::|\s)|Check-|Retries|ForceIPv|AllowInsecure|AllowWeak)", re.I
    )
    lines = (line.strip().rstrip(";") for line in dump.splitlines())
    return list(dict.fromkeys(line for line in lines if wanted.match(line) and not line.endswith('""')))


def acquire_options() -> list[str]:
    """Return this machine's settings for fetching packages, as lines of apt.conf."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return parse_acquire(dump.stdout)


def write_configuration(folder: Path, inside: str, suite: str) -> None:
    """Write apt.conf into `folder`, for an apt in a chroot that sees the folder as `inside`: it then takes the
    suite's packages from where this machine takes its own, and as this machine does."""
    (folder / "sources.list").write_text("".join(f"{source.line(suite)}\n" for source in machine_sources()))
    lines = [f'Dir::Etc::sourcelist "{inside}/sources.list"', 'Dir::Etc::sourceparts "-"', *acquire_options()]
    (folder / "apt.conf").write_text("".join(f"{line};\n" for line in lines))


def missing_host_packages(programs: dict[str, str] | None = None) -> list[str]:
    """Return the Debian packages this machine lacks for the lab."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    wanted = HOST_PROGRAMS if programs is None else programs
    return sorted({package for name, package in wanted.items() if not shutil.which(name, path=path)})


def install_host_packages(arch: str, log: Path) -> None:
    """Install what the machine lacks; as another user than root, say what to install and raise."""
    if arch == "arm64":
        files = [package for path, package in ARM64_HOST_FILES.items() if not Path(path).exists()]
        install_packages([*missing_host_packages(ARM64_PROGRAMS), *files], log)
    else:
        install_packages(missing_host_packages(), log)


def install_packages(missing: Sequence[str], log: Path) -> None:
    """Install these Debian packages; none is fine. As another user than root, say what to install and raise."""
    if not missing:
        return
    command: Sequence[str] = ("apt-get", "install", "-y", "--no-install-recommends", *missing)
    if not shutil.which("apt-get"):
        raise LabError(f"this machine has no apt-get: install what holds {', '.join(missing)}")
    if os.geteuid() != 0:
        raise LabError(f"packages are missing: run as root: {' '.join(command)}")
    say(f"installing packages: {' '.join(missing)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step("apt-get"):
        run_logged(["apt-get", "update"], log, shown="apt-get update", env=env, timeout_s=600)
        run_logged(command, log, shown="apt-get install", env=env, timeout_s=1200)
