"""The file of a report: what it may be called, and writing it whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

from saverestore.errors import ErrorName, UsageError
from saverestore.report.facts import Facts

JSON, HTML = ENDINGS = (".json", ".html")


def checked(text: str) -> Path:
    """The path that a person gave. UsageError, before anything is done, when no report could be written there."""
    path = Path(text)
    if path.suffix not in ENDINGS:
        raise UsageError(
            f"{text}: the name of a report must end in .json or .html",
            name=ErrorName.FILE_UNSUITABLE,
        )
    if not path.parent.is_dir():
        raise UsageError(f"{text}: there is no directory {path.parent}", name=ErrorName.FILE_NOT_FOUND)
    if path.is_dir():
        raise UsageError(f"{text} is a directory; give a file name in it", name=ErrorName.FILE_UNSUITABLE)
    return path


def rendered(path: Path, facts: Facts) -> bytes:
    """What a file of this name holds."""
    if path.suffix == JSON:
        return (json.dumps(facts, indent=2) + "\n").encode()
    from saverestore.report.page import page_of

    return printable(page_of(facts)).encode()


def printable(text: str) -> str:
    """The text as UTF-8 can have it: bytes of a file's name that are none are written as \\xNN."""
    return "".join(_plain(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def _plain(half: str) -> str:
    number = ord(half)
    return f"\\x{number & 0xFF:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\u{number:04x}"


def write(path: Path, facts: Facts) -> None:
    """Write the report, mode 0600, in place of an older one. TransportError or UsageError when it cannot be.

    There is the old file or the whole new one, never a part.
    """
    from saverestore.transport.newfile import NewFile

    data = rendered(path, facts)
    with NewFile(path, overwrite=True) as file:
        file.sink.write(data)
        file.sync()
        file.publish()
