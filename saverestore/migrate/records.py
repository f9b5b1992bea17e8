"""A migration's journal as bytes: lines that a person can read, each with its checksum. Pure.

    1c291ca3 {"journal":1,"role":"source","migration":"…","name":"web1",…}
    9f2b0f2a {"n":1,"state":"OFFERED","at":"2026-11-28T12:00:00+00:00","notes":{}}
    …
    room for further lines, zeroes

A line is appended whole. The last one may be torn, when the host died amid it, and then was never relied on: it is
ignored. Anything else that is not as it should be is damage, and is not guessed at.
"""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
import zlib
from dataclasses import dataclass, field
from typing import Any

from saverestore.errors import ErrorName, ExitCode, SaveRestoreError
from saverestore.migrate.handover import Role, State

VERSION = 1
ROOM_BYTES = 32 << 10
"""What a journal takes from its first moment, so that a disk that fills up later cannot keep a line out."""

MAX_LINE_BYTES = 4 << 10
MAX_NOTE_CHARACTERS = 300
LINE_BEGINS = re.compile(rb"[0-9a-f]{8} \{")


class JournalError(SaveRestoreError):
    """A journal cannot be read: it is damaged, or a newer version of this program wrote it."""

    exit_code = ExitCode.IO
    name = ErrorName.JOURNAL_UNREADABLE


class JournalUnread(JournalError):
    """The disk or the system did not give a journal. What it says holds all the same."""


@dataclass(frozen=True)
class Head:
    """What a migration is: written once.

    `name`, `uuid`: the domain's. `domid`: at the source, its number; -1 at the destination. `boot`: the boot of this
    host in which it began. `peer`: how the other host is reached; `peer_journals`: what names its folder of journals.
    `paused`: the domain is to be paused at the destination. `with_xl`: the other side is stock `xl`, which has no
    journal and cannot be asked later.
    """

    role: Role
    migration: uuid.UUID
    name: str
    uuid: uuid.UUID
    domid: int
    boot: str
    peer: str
    peer_journals: str
    began: str
    paused: bool = False
    with_xl: bool = False


@dataclass(frozen=True)
class Entry:
    """One change of state. `at`: ISO 8601. `notes`: what else is known of it, for people and for recovery."""

    state: State
    at: str
    notes: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Log:
    """All that a journal says; one entry at least. `length_bytes`: of what is valid of it."""

    head: Head
    entries: tuple[Entry, ...]
    length_bytes: int

    @property
    def state(self) -> State:
        """The last one."""
        return self.entries[-1].state

    def note(self, name: str) -> str | int | None:
        """The last value of this note."""
        return next((entry.notes[name] for entry in reversed(self.entries) if name in entry.notes), None)


def pack_head(head: Head) -> bytes:
    """The first line."""
    fields = dataclasses.asdict(head) | {"migration": str(head.migration), "uuid": str(head.uuid)}
    return _line({"journal": VERSION, **fields})


def pack_entry(number: int, entry: Entry) -> bytes:
    """The `number`-th line after the head, from 1 on. Texts that are too long are cut."""
    notes = {
        name: value[:MAX_NOTE_CHARACTERS] if isinstance(value, str) else value
        for name, value in entry.notes.items()
    }
    return _line({"n": number, "state": entry.state, "at": entry.at, "notes": notes})


def unpack(data: bytes, name: str) -> Log:
    """Read a journal. JournalError, with its `name`, when it is not whole up to its last line."""
    lines, length = _lines(data, name)
    if not lines:
        raise JournalError(f"{name} is empty or damaged: its first line is not whole")
    first, *rest = lines
    version = first.get("journal")
    if type(version) is int and version > VERSION:
        raise JournalError(
            f"{name} was written by a newer version of this program: format {version}, and {VERSION} is known here"
        )
    try:
        if version != VERSION:
            raise ValueError(f"format {version!r}")
        head = Head(
            role=Role(first["role"]),
            migration=uuid.UUID(first["migration"]),
            name=str(first["name"]),
            uuid=uuid.UUID(first["uuid"]),
            domid=int(first["domid"]),
            boot=str(first["boot"]),
            peer=str(first["peer"]),
            peer_journals=str(first["peer_journals"]),
            began=str(first["began"]),
            paused=bool(first["paused"]),
            with_xl=bool(first.get("with_xl", False)),
        )
        entries = tuple(_entry(number, fields) for number, fields in enumerate(rest, 1))
        if not entries:
            raise ValueError("it has no state")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise JournalError(f"{name} is damaged: {type(error).__name__}: {error}") from error
    return Log(head, entries, length)


def _line(fields: dict[str, Any]) -> bytes:
    # backslashreplace: half of a surrogate pair is written as JSON spells it.
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")
    line = b"%08x %s\n" % (zlib.crc32(text), text)
    if len(line) > MAX_LINE_BYTES:
        raise JournalError(f"a line of {len(line)} bytes is too long for a journal")
    return line


def _lines(data: bytes, name: str) -> tuple[list[dict[str, Any]], int]:
    """Every whole line, and the length of all of them."""
    found: list[dict[str, Any]] = []
    at = 0
    while (fields := _fields_of(data[at : (end := _end_of_line(data, at))])) is not None:
        found.append(fields)
        at = end
    # What is left is room, or the line that was being written: one at a time, and nothing behind it.
    if data[at + MAX_LINE_BYTES :].strip(b"\0") or _has_whole_line(data, at):
        raise JournalError(f"{name} is damaged at byte {at}: more stands behind that")
    return found, at


def _end_of_line(data: bytes, at: int) -> int:
    return data.find(b"\n", at, at + MAX_LINE_BYTES) + 1 or at


def _has_whole_line(data: bytes, at: int) -> bool:
    """Whether a line that is as it should be stands behind `at`: then what is before it was whole once, too."""
    return any(
        _fields_of(data[found.start() : _end_of_line(data, found.start())]) is not None
        for found in LINE_BEGINS.finditer(data, at)
    )


def _fields_of(line: bytes) -> dict[str, Any] | None:
    """What a line says; None when it is not whole."""
    sum_text, text = line[:8], line[9:-1]
    if line[8:9] != b" " or line[-1:] != b"\n" or sum_text != b"%08x" % zlib.crc32(text):
        return None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _entry(number: int, fields: dict[str, Any]) -> Entry:
    if fields["n"] != number:
        raise ValueError(f"line {fields['n']!r} where line {number} belongs")
    notes = {
        str(name): value for name, value in dict(fields["notes"]).items() if isinstance(value, str | int)
    }
    return Entry(State(fields["state"]), str(fields["at"]), notes)
