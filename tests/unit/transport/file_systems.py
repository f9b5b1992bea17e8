"""File systems of this machine, made in files and mounted for a test. Where one cannot be had, the test is skipped.

With PYSAVE_REQUIRE_FILE_SYSTEMS=1, which the lab's dom0 sets, its absence is a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from saverestore.transport.cache import Cache
from saverestore.transport.newfile import NewFile

IS_REQUIRED = os.environ.get("PYSAVE_REQUIRE_FILE_SYSTEMS") == "1"


def lacking(reason: str) -> NoReturn:
    if IS_REQUIRED:
        pytest.fail(f"required here: {reason}")
    pytest.skip(reason)


def content_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, data: bytes, *, overwrite: bool = False, cache: Cache = Cache.PAGE) -> None:
    with NewFile(path, overwrite=overwrite, cache=cache) as file:
        file.sink.write(data)
        file.sync()
        file.publish()


def called(*command: str, lacks: str = "") -> str:
    """What it printed. With `lacks`: its failure says that this machine has no such thing."""
    if shutil.which(command[0]) is None:
        lacking(f"no {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and lacks:
        lacking(f"{lacks}: {done.stderr.strip() or done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def mounted(folder: Path, *command: str) -> Iterator[Path]:
    """`command` FOLDER mounts it."""
    if os.geteuid() != 0:
        lacking("mounting takes root")
    folder.mkdir()
    called(*command, str(folder), lacks="cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def disk(folder: Path, size_mib: int, *make: str, options: str = "") -> Iterator[Path]:
    """A new file system in a sparse file beside `folder`, mounted there."""
    path = folder.with_name(f"{folder.name}.disk")
    with path.open("wb") as file:
        file.truncate(size_mib << 20)
    called(*make, str(path))
    try:
        with mounted(folder, "mount", "-o", f"loop{options and f',{options}'}", str(path)) as there:
            yield there
    finally:
        path.unlink()  # pytest keeps folders of tests for a while, and this one may be in memory
