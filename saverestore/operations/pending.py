"""Which images of a store are to be restored when the host is up again: links in its folder `pending`.

    pysave --all:    image is safe ─► link ─► domain destroyed
    pyrestore:       domain complete ─► link removed ─► domain runs

An image that has no link is not restored by `pyrestore --all`: its domain has run since, and its disks moved on.
The link goes whoever restores the image, so none is restored twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from saverestore.errors import TransportError, name_of_errno
from saverestore.operations.store import Entry, entry_of
from saverestore.transport.safety import sync_folder

FOLDER = "pending"


def pending(folder: Path) -> list[Entry]:
    """The images of a store that are to be restored, the oldest first; also those whose file is not there."""
    try:
        names = [path.name for path in (folder / FOLDER).iterdir() if _is_link(path)]
    except OSError:  # nothing was ever saved so
        return []
    found = [entry_of(folder / name) for name in names]
    return sorted((one for one in found if one is not None), key=lambda one: (one.order, one.stem))


@contextmanager
def to_be_restored(image: Path, still_there: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """From here on the image is pending; not if the block fails. TransportError when it cannot be noted.

    `still_there`: asked after a failure, whether the domain may run again. If not, the image stays pending.
    """
    _link(image)
    try:
        yield
    except BaseException:
        if still_there():
            _unlink(image)
        raise


@contextmanager
def no_longer_pending(image: Path) -> Iterator[None]:
    """From here on the image is not pending, if it was; it is again if the block fails."""
    was_pending = _unlink(image)
    try:
        yield
    except BaseException:
        if was_pending:
            _link(image)
        raise


def _place_of(image: Path) -> Path:
    return image.parent / FOLDER / image.name


def _is_link(place: Path) -> bool:
    """Whether it is one of ours."""
    try:
        return place.readlink() == Path("..", place.name)
    except OSError:
        return False


def _link(image: Path) -> None:
    place = _place_of(image)
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            place.symlink_to(Path("..", image.name))
        sync_folder(place.parent)
    except OSError as error:
        raise TransportError(
            f"{image} could not be noted in {place.parent} as one to be restored: {error.strerror}",
            name=name_of_errno(error.errno),
        ) from error


def _unlink(image: Path) -> bool:
    """Whether there was a link. TransportError when there is one that cannot be removed."""
    place = _place_of(image)
    if not _is_link(place):  # there may be any other file of this name
        return False
    try:
        place.unlink()
        sync_folder(place.parent)
    except OSError as error:
        raise TransportError(
            f"{place} could not be removed: {error.strerror}", name=name_of_errno(error.errno)
        ) from error
    return True
