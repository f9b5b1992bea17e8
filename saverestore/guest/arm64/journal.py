"""What was a guest's own before its vCPUs were made to run a stub: on the disk before anything is changed. Pure.

With it `pysave --recover` puts a domain right whose saver died at any point. It says nothing of how far that came:
what is to be undone is seen from the domain itself.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saverestore.errors import DomainError, ErrorName, TransportError, name_of_errno
from saverestore.guest.arm64.vcpu import Context

DIRECTORY = Path("/var/lib/xen")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
FORMAT = 2

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Journal:
    """`contexts`: each vCPU's, as the guest suspended. `shared_info`: the page's gfn and content.

    `cleared`: once places that may be a vcpu_info are about to be cleared, these (shape (n, 2): address, selector),
    else None.
    """

    domid: int
    uuid: uuid.UUID
    contexts: tuple[Context, ...]
    shared_info_gfn: int
    shared_info: bytes
    cleared: U64 | None = None

    def with_cleared(self, cleared: U64) -> Journal:
        """A copy that has them."""
        return dataclasses.replace(self, cleared=cleared)


def path_of(domid: int, domain_uuid: uuid.UUID, directory: Path = DIRECTORY) -> Path:
    """Where a domain's journal is, if it has one."""
    return directory / f"pysave-arm64.{domid}.{domain_uuid}.journal"


def write(journal: Journal, directory: Path = DIRECTORY) -> None:
    """Put it on the disk: when this returns it is there, whole. TransportError when it cannot be."""
    path = path_of(journal.domid, journal.uuid, directory)
    temporary = path.with_suffix(".new")
    document: dict[str, Any] = {
        "format": FORMAT,
        "boot": _boot_id(),
        "domid": journal.domid,
        "uuid": str(journal.uuid),
        "contexts": [dataclasses.asdict(context) for context in journal.contexts],
        "shared_info_gfn": journal.shared_info_gfn,
        "shared_info": base64.b64encode(journal.shared_info).decode(),
        "cleared": _packed(journal.cleared),
    }
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        folder = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TransportError(
            f"{path}: {error.strerror}: the journal cannot be written", name=name_of_errno(error.errno)
        ) from error


def read(domid: int, domain_uuid: uuid.UUID, directory: Path = DIRECTORY) -> Journal | None:
    """The domain's journal; None when it has none. DomainError when it is damaged.

    One of an earlier boot of the host speaks of another domain, which has gone with that boot.
    """
    path = path_of(domid, domain_uuid, directory)
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}")
        if document["boot"] != _boot_id():
            return None
        return Journal(
            domid=int(document["domid"]),
            uuid=uuid.UUID(document["uuid"]),
            contexts=tuple(
                Context(**{**context, "x": tuple(context["x"])}) for context in document["contexts"]
            ),
            shared_info_gfn=int(document["shared_info_gfn"]),
            shared_info=base64.b64decode(document["shared_info"], validate=True),
            cleared=_unpacked(document["cleared"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DomainError(
            f"{path}, which says how the processors of domain {domid} were, cannot be read: {error}; "
            "no changes were made",
            name=ErrorName.DOMAIN_NEEDS_RECOVERY,
        ) from error


def settle(domid: int, domain_uuid: uuid.UUID, directory: Path = DIRECTORY) -> None:
    """All that the journal tells of has been put back: what is left to do is to let the domain go on."""
    path = path_of(domid, domain_uuid, directory)
    if path.exists():
        path.rename(_settled(path))


def is_settled(domid: int, domain_uuid: uuid.UUID, directory: Path = DIRECTORY) -> bool:
    """Whether somebody died between `settle` and `remove`, since this host was booted."""
    return _is_of_this_boot(_settled(path_of(domid, domain_uuid, directory)))


def is_there(domid: int, domain_uuid: uuid.UUID, directory: Path = DIRECTORY) -> bool:
    """Whether the domain has one, settled or not."""
    path = path_of(domid, domain_uuid, directory)
    return _is_of_this_boot(path) or is_settled(domid, domain_uuid, directory)


def remove(domid: int, domain_uuid: uuid.UUID, directory: Path = DIRECTORY) -> None:
    """The domain goes on, or is gone. One that is not there is fine."""
    path = path_of(domid, domain_uuid, directory)
    path.unlink(missing_ok=True)
    _settled(path).unlink(missing_ok=True)


def _is_of_this_boot(path: Path) -> bool:
    """Whether it is there, and speaks of a domain of this boot; one that cannot be read may do so."""
    try:
        found: object = json.loads(path.read_text())["boot"]
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return found == _boot_id()


def _settled(path: Path) -> Path:
    return path.with_suffix(".settled")


def _packed(pairs: U64 | None) -> str | None:
    return None if pairs is None else base64.b64encode(np.ascontiguousarray(pairs, "<u8").tobytes()).decode()


def _unpacked(text: str | None) -> U64 | None:
    if text is None:
        return None
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8").reshape(-1, 2)


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()
