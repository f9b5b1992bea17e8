"""What can be wrong with an image, by the part that is wrong; all are `ImageError` (exit code 4)."""

from __future__ import annotations

from saverestore.errors import ErrorName, ImageError


class BadHeader(ImageError):
    """A header is not what this format begins with, or declares what cannot be read here."""


class BadRecord(ImageError):
    """A record's length or content breaks the format. `type` is the number on the wire."""

    def __init__(self, message: str, *, offset: int | None, type: int, name: ErrorName | None = None) -> None:
        self.type = type
        super().__init__(message, offset=offset, name=name)


class UnknownRecord(BadRecord):
    """A mandatory record of a type that is not known here: whoever wrote it is newer."""

    name = ErrorName.IMAGE_UNSUPPORTED


class OutOfOrder(BadRecord):
    """A known record at a place where the order of records does not allow it."""


def beginning(first: bytes) -> str:
    """What something that is no image starts with: in hexadecimal, unless a person can read it."""
    text = first.decode("ascii", errors="ignore").strip()
    if len(first.strip()) == len(text) and text.replace("\n", " ").isprintable() and text:
        return f"it is text, and starts with '{' '.join(text.split())}'"
    return f"it starts with the bytes {first.hex()}"
