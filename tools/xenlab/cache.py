"""The cache: artefacts in folders named by what went into them, and the locks around building them.

ROOT/NAME/KEY/...        an artefact that is whole: built elsewhere, then renamed here
ROOT/NAME/.building-PID  one that is being built, or rubbish if its builder was killed
ROOT/run/VARIANT/        run-time state of one lab machine (see runstate)
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from xenlab.errors import LabError, say

KEY_DIGITS = 16


def cache_root() -> Path:
    """Return the cache's folder: $PYSAVE_LAB_CACHE, else pysave-lab in the user's cache folder."""
    override = os.environ.get("PYSAVE_LAB_CACHE")
    if override:
        return Path(override).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pysave-lab"


def key_of(*parts: str | bytes) -> str:
    """Return the key of an artefact made from `parts`: order and boundaries of the parts count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:KEY_DIGITS]


def key_of_files(*paths: Path) -> str:
    """Return the key of files: their names and their contents."""
    parts: list[str | bytes] = []
    for path in sorted(paths):
        parts += [path.name, path.read_bytes()]
    return key_of(*parts)


def artefact_path(name: str, key: str) -> Path:
    """Return where the artefact is when it is there."""
    return cache_root() / name / key


def ensure(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the artefact's folder, building it first if it is missing.

    `build` fills an empty folder; only when it returns does the folder get its final name, and the
    artefact's older keys go. If it raises, nothing stays. Call with the build lock held.
    """
    final = artefact_path(name, key)
    if final.is_dir():
        return final
    parent = final.parent
    parent.mkdir(parents=True, exist_ok=True)
    for rubbish in parent.glob(".building-*"):
        shutil.rmtree(rubbish)
    temporary = parent / f".building-{os.getpid()}"
    temporary.mkdir()
    try:
        build(temporary)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in parent.iterdir():
        if old != final:
            shutil.rmtree(old)
    return final


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on `path`, waiting for another holder and saying so.

    The lock goes with the process: a killed holder leaves nothing to clean up.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another lab command is busy with {what}: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as error:
        if error.filename == str(path):
            raise LabError(f"cannot lock {path}: {error.strerror}") from error
        raise
    finally:
        os.close(descriptor)


def build_lock() -> Path:
    """Return the file whose lock keeps two builds apart."""
    return cache_root() / "build.lock"
