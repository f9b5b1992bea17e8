"""How a file is written: through the page cache, or past it."""

from __future__ import annotations

from enum import StrEnum

from saverestore.errors import Advice, ErrorName, Remedy, UsageError


class Cache(StrEnum):
    """What is asked for. Of a file that is being written it is never AUTO."""

    AUTO = "auto"
    DIRECT = "direct"
    PAGE = "page"


def no_direct(name: str, why: str) -> UsageError:
    """The error where direct I/O was asked for, and cannot be had."""
    return UsageError(
        f"{name} cannot be written by direct I/O: {why}; no changes were made",
        name=ErrorName.FILE_UNSUITABLE,
        remedies=[Advice(Remedy.PAGE_CACHE)],
    )
