"""Which images of a store are to be restored when the host is up again: links in its folder `pending`.

    pysave --all:    image is safe ─► link ─► domain destroyed
    pyrestore:       domain complete ─► link removed ─► domain runs

An image that has no link is not restored by `pyrestore --all`: its domain has run since, and its disks moved on.
The link goes whoever restores the image, so none is restored twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from saverestore.errors import TransportError, name_of_errno
from saverestore.operations.store import Entry, entry_of
from saverestore.transport.safety import sync_folder

FOLDER = "pending"

NO_LINK = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG})
"""How a link cannot be read where there is none."""


def pending(folder: Path) -> list[Entry]:
    """The images of a store that are to be restored, the oldest first; also those whose file is not there.

    TransportError where that cannot be known: a list without them would have them removed, or never restored.
    """
    try:
        names = [path.name for path in (folder / FOLDER).iterdir()]
    except (FileNotFoundError, NotADirectoryError):  # nothing was ever saved so
        return []
    except OSError as error:
        raise _unknown(folder / FOLDER, error) from error
    found = [entry_of(folder / name) for name in names if _is_link(folder / FOLDER / name)]
    return sorted((one for one in found if one is not None), key=lambda one: (one.order, one.stem))


def is_pending(image: Path) -> bool:
    """Whether this one is to be restored. TransportError where that cannot be known."""
    return bool(_links_to(image))


@contextmanager
def to_be_restored(image: Path, still_there: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """From here on the image is pending; not if the block fails. TransportError when it cannot be noted.

    `still_there`: asked after a failure, whether the domain may run again. If not, the image stays pending.
    """
    place = image.parent / FOLDER / image.name
    try:
        _link(image, place)
        yield
    except BaseException as error:
        if still_there():
            _undo(error, lambda: _unlink(place))
        raise


def forget(image: Path) -> None:
    """From here on the image is not pending, if it was. TransportError when a link cannot be removed."""
    for place in _links_to(image):
        _unlink(place)


@contextmanager
def no_longer_pending(image: Path) -> Iterator[None]:
    """From here on the image is not pending, if it was; it is again if the block fails.

    TransportError when there is a link that cannot be removed.
    """
    places = _links_to(image)
    try:
        for place in places:
            _unlink(place)
        yield
    except BaseException as error:
        for place in places:
            _undo(error, lambda place=place: _link(image, place))  # type: ignore[misc]
        raise


def _links_to(image: Path) -> list[Path]:
    """Those that are there. The image itself may be a link: into a store, or in one."""
    names = dict.fromkeys((image, Path(os.path.realpath(image))))
    places = dict.fromkeys(name.parent / FOLDER / name.name for name in names)
    return [place for place in places if _is_link(place)]


def _is_link(place: Path) -> bool:
    """Whether it is one of ours; there may be any other file of this name."""
    try:
        return place.readlink() == Path("..", place.name)
    except OSError as error:
        if error.errno in NO_LINK:
            return False
        raise _unknown(place, error) from error


def _unknown(place: Path, error: OSError) -> TransportError:
    return TransportError(
        f"{place}: which images are to be restored cannot be read: {error.strerror}",
        name=name_of_errno(error.errno),
    )


def _undo(error: BaseException, step: Callable[[], None]) -> None:
    """That it cannot be undone must not hide `error`."""
    try:
        step()
    except TransportError as second:
        error.add_note(str(second))


def _link(image: Path, place: Path) -> None:
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            place.symlink_to(Path("..", place.name))
        sync_folder(place.parent)
    except OSError as error:
        raise TransportError(
            f"{image} could not be noted in {place.parent} as one to be restored: {error.strerror}",
            name=name_of_errno(error.errno),
        ) from error


def _unlink(place: Path) -> None:
    try:
        if not _is_link(place):
            return
        place.unlink()
        sync_folder(place.parent)
    except OSError as error:
        raise TransportError(
            f"{place} could not be removed: {error.strerror}", name=name_of_errno(error.errno)
        ) from error
