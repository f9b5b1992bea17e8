"""A store: a folder of images, named by domain and time. Needs no Xen.

    web1@2026-11-29T05-58-31Z.img        the domain, and when its save began (UTC)
    web1@2026-11-29T05-58-31Z.2.img      a second save of it in the same second

A name is chosen under the domain's lock, so no two saves choose the same. Whoever restores an image holds a shared
lock on it; retention removes an image only under an exclusive one. Both are heeded over NFS, too.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from saverestore.errors import Advice, ErrorName, Remedy, TransportError, UsageError, name_of_errno
from saverestore.transport import newfile
from saverestore.transport.file_locks import try_lock

DEFAULT = Path("/var/lib/xen/pysave")

TIME = "%Y-%m-%dT%H-%M-%SZ"
ENDING = ".img"
STEM_MAX = 160
"""Bytes of a file's name that are the domain's: 255 in all are allowed, and a temporary file's name is longer."""

REMOVING_S = 1.0
"""Removing an image takes no longer than this."""
LOOK_S = 0.01

NAME = re.compile(
    r"(?P<stem>.+)@(?P<time>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ)(?:\.(?P<number>[2-9]|[1-9]\d+))?\.img"
)
WHEN = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d([-:]\d\d([-:]\d\dZ?(\.\d+)?)?)?)?)?)?", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One image of a store. `stem`: the domain's name as file names have it; `number`: 1, or more in one second."""

    path: Path
    stem: str
    when: datetime.datetime
    number: int

    @property
    def id(self) -> str:
        """What a person calls it by: NAME@WHEN."""
        return self.path.name.removesuffix(ENDING)

    @property
    def order(self) -> tuple[datetime.datetime, int]:
        """Older images come first."""
        return self.when, self.number


def stem_of(domain: str) -> str:
    """A domain's name as file names have it: letters, digits and ``._+-`` as they are, other bytes as %XX.

    A name that would be too long is cut, and has a digest at its end. Different names stay different.
    """

    def escaped(letter: str, *, first: bool) -> str:
        if letter.isalnum() or (letter in "._+-" and not (first and letter in ".-")):
            return letter
        return "".join(f"%{byte:02X}" for byte in os.fsencode(letter))

    parts = [escaped(letter, first=at == 0) for at, letter in enumerate(domain)]
    stem = "".join(parts)
    if len(os.fsencode(stem)) <= STEM_MAX:
        return stem
    digest = hashlib.sha256(os.fsencode(domain)).hexdigest()[:16]
    kept, room = "", STEM_MAX - len(digest) - 2
    for part in parts:
        if (room := room - len(os.fsencode(part))) < 0:
            break
        kept += part
    return f"{kept}%-{digest}"  # no escape has a dash


def opened(folder: Path, *, make: bool = True) -> Path:
    """The folder, which is made, mode 0700, where it is the usual one. UsageError where there is none.

    Without `make`, the usual one need not be there.
    """
    if folder == DEFAULT and not make and not folder.exists():
        return folder
    try:
        if folder == DEFAULT:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise TransportError(f"{folder}: {error.strerror}", name=name_of_errno(error.errno)) from error
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such directory", name=ErrorName.FILE_NOT_FOUND)
    return folder


def new_path(folder: Path, domain: str, now: datetime.datetime) -> Path:
    """Where an image of this domain goes. The caller has the domain's lock until it is there."""
    base = f"{stem_of(domain)}@{now.astimezone(datetime.UTC).strftime(TIME)}"
    number, path = 1, folder / f"{base}{ENDING}"
    while os.path.lexists(path):
        number += 1
        path = folder / f"{base}.{number}{ENDING}"
    return path


def remove_abandoned(folder: Path) -> None:
    """Remove what saves to this store that were killed have left: no later image has the name of such a one."""
    newfile.remove_abandoned(
        folder, lambda begin: entry_of(Path(begin.removeprefix(".").removesuffix("."))) is not None
    )


def entry_of(path: Path) -> Entry | None:
    """What its name says; None of a file that is not named as images of a store are."""
    found = NAME.fullmatch(path.name)
    if found is None:
        return None
    try:
        when = datetime.datetime.strptime(found["time"], TIME).replace(tzinfo=datetime.UTC)
    except ValueError:  # no such day
        return None
    return Entry(path, found["stem"], when, int(found["number"] or 1))


def entries(folder: Path) -> list[Entry]:
    """All images of a store, by domain, the oldest first. Other files there are passed over."""
    try:
        found = [entry_of(path) for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}", name=name_of_errno(error.errno)) from error
    return sorted((one for one in found if one is not None), key=lambda one: (one.stem, one.order))


def find(text: str) -> Entry:
    """The image that [DIR/]NAME[@WHEN] stands for: the newest of that domain, or of its images from WHEN.

    WHEN is how a time begins: a day, a minute. All of it, as image names have it, stands for that image only.
    UsageError where there is none.
    """
    head, slash, tail = text.rpartition("/")
    folder = Path(head or "/") if slash else DEFAULT
    there = entries(folder)
    name, at, when = tail.rpartition("@")
    found = [one for one in there if one.id == tail]
    found = found or of_domain(there, tail)  # a domain's name may have an @ itself
    if not found and at and WHEN.fullmatch(when):
        wanted = when.replace(":", "-")
        times = {one: one.id.removeprefix(f"{one.stem}@") for one in of_domain(there, name)}
        found = [one for one, time in times.items() if time == wanted]  # all of it: others may begin so
        found = found or [one for one, time in times.items() if time.startswith(wanted)]
    if not found:
        raise UsageError(
            f"{folder}: there is no image of {tail!r}",
            name=ErrorName.FILE_NOT_FOUND,
            remedies=[Advice(Remedy.LIST_IMAGES, str(folder))],
        )
    return max(found, key=lambda one: one.order)


def of_domain(there: list[Entry], name: str) -> list[Entry]:
    """Those of a domain, by its name itself; or as file names have it, or with some of its letters written so."""
    for stem in (stem_of(name), name, stem_of(unquote(name))):
        if found := [one for one in there if one.stem == stem]:
            return found
    return []


@contextmanager
def in_use(image: str) -> Iterator[None]:
    """Inside this block no retention removes this image. Nothing of what is no regular file.

    TransportError when one has removed it just now. A file system without locks is no failure.
    """
    try:
        descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        yield  # whoever opens it to be read reports that
        return
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            _wait_for_lock(descriptor)
            if not _is_at(Path(image), status):
                raise TransportError(f"{image} was removed by somebody else", name=ErrorName.FILE_NOT_FOUND)
        yield
    finally:
        os.close(descriptor)


def remove(path: Path, is_needed: Callable[[Path], bool] = lambda _: False) -> bool:
    """Remove an image, unless it is being restored: whether it is gone, whoever did it. TransportError when it cannot
    be removed.

    `is_needed` is asked when nobody is restoring it, nor begins to: whether it is to stay.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if try_lock(descriptor) is False:
                return False
            if path.exists() and not _is_at(path, os.fstat(descriptor)):
                return False  # another image has this name now, which may be in use
            if is_needed(path):
                return False
            path.unlink()
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise TransportError(
            f"{path} could not be removed: {error.strerror}", name=name_of_errno(error.errno)
        ) from error
    return True


def _wait_for_lock(descriptor: int) -> None:
    """A shared one. Who removes the image has it for a moment; who has just written it may have it for longer."""
    end = time.monotonic() + REMOVING_S
    while try_lock(descriptor, shared=True) is False and time.monotonic() < end:
        time.sleep(LOOK_S)


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        there = path.stat()
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (status.st_dev, status.st_ino)
