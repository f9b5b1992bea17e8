"""Debian source packages, from where the machine takes its packages: fetched into a folder, not unpacked."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from xenlab import apt
from xenlab.errors import LabError, say
from xenlab.proc import run_logged


def versions(showsrc: str, upstream: str) -> list[str]:
    """Return the versions of upstream series `upstream` that `apt-cache showsrc` names, in its order."""
    found = (line.removeprefix("Version: ") for line in showsrc.splitlines() if line.startswith("Version: "))
    return list(dict.fromkeys(version for version in found if _is_of(version, upstream)))


def _is_of(version: str, upstream: str) -> bool:
    """Whether "1:7.2+dfsg-7" is of 7.2, or "4.17.5-1" of 4.17."""
    _, _, without_epoch = version.rpartition(":")
    rest = without_epoch.removeprefix(upstream)
    return rest != without_epoch and not rest[:1].isdigit()


def fetch(
    package: str, upstream: str, suite: str, folder: Path, log: Path, *, preferred: Sequence[str] = ()
) -> None:
    """Download a source package of that upstream series and suite into `folder`: its .dsc and what that names.

    The `preferred` versions are tried first. Mirrors often lack the sources of security updates: then it is another
    version of the series. LabError when there is none.
    """
    sources = apt.machine_sources()
    if not sources:
        raise LabError(
            f"this machine's apt has no Debian source to get {package}'s from: add one to /etc/apt"
        )
    (folder / "sources.list").write_text("".join(f"{one.line(suite, 'deb-src')}\n" for one in sources))
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "aptcache").mkdir()
    options = [
        f"Dir::Etc::SourceList={folder}/sources.list",
        "Dir::Etc::SourceParts=-",
        f"Dir::State::Lists={folder}/lists",
        f"Dir::Cache={folder}/aptcache",
        "APT::Sandbox::User=root",
        "APT::Get::List-Cleanup=0",
    ]
    words = [word for option in options for word in ("-o", option)]
    run_logged(["apt-get", *words, "update"], log, shown="apt-get update", timeout_s=600)
    argv = ["apt-cache", *words, "showsrc", "--only-source", package]
    shown = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    wanted = list(dict.fromkeys([*preferred, *versions(shown, upstream)]))
    for version in wanted:
        argv = ["apt-get", *words, "source", "--download-only", f"{package}={version}"]
        try:
            run_logged(argv, log, shown="apt-get source", cwd=folder, timeout_s=600)
        except LabError:
            say(f"no source package {package} {version} to be had: trying another version of {upstream}")
            for partial in folder.glob(f"{package}_*"):
                partial.unlink()
        else:
            say(f"source package: {package} {version}")
            return
    raise LabError(f"no source package of {package} {upstream} is to be had: {log} says why")
