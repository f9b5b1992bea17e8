"""What two hosts say to each other while a domain moves: one class a message, and the JSON of its body. Pure.

Who says what, and when, is drawn in docs/migration.md. Fields that a newer version adds are ignored, so a new field
must have a default, and must not be needed for what a message means.
"""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, get_type_hints

from saverestore.errors import ErrorName, ExitCode, SaveRestoreError

MAX_BODY_BYTES = 64 << 10
"""The longest body of a message that is not DATA."""

MAX_NUMBER = (1 << 63) - 1
CONTROL_CHARACTERS = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class ProtocolError(SaveRestoreError):
    """The peer said something that the protocol does not have. Nothing that it says later can be relied on."""

    exit_code = ExitCode.IO
    name = ErrorName.PROTOCOL_VIOLATED


HERE, PORT, NOWHERE = "here", "port", "nowhere"
"""Of JOIN. This connection is a link; the one that has joined at the port is, and this one is used no more; no
connection is a link, and this one stays as it is."""


class MessageType(IntEnum):
    """The numbers on the wire. One is never given another meaning."""

    HELLO = 1
    OFFER = 2
    ACCEPTED = 3
    REFUSED = 4
    DATA = 5
    STREAM_END = 6
    READY = 7
    GRANT = 8
    RUNNING = 9
    ABORT = 10
    ABORTED = 11
    ASK = 12
    LOST = 13
    UNKNOWN = 14
    BUSY = 15
    KEEPALIVE = 16
    ACKNOWLEDGED = 17
    JOIN = 18
    JOINED = 19


@dataclass(frozen=True)
class Hello:
    """The first message in each direction. Its form stays as it is for ever: versions are agreed on by it.

    `lowest`, `highest`: the versions that the sender speaks. `journals`: names the sender's folder of journals;
    `boot`: the boot of its host. `program`, `host`: for people.
    """

    type: ClassVar = MessageType.HELLO
    lowest: int
    highest: int
    journals: str
    boot: str
    program: str = ""
    host: str = ""


@dataclass(frozen=True)
class Offer:
    """Source: take this domain. `config`: libxl's JSON of it, by its final name. `memory_kib`: what it has now,
    which may be more than its target.

    `dry_run`: report what stands in the way, and do nothing. `source`: where the destination finds the source again.
    `links`: how many connections the source would use; 0: it knows of one only. `resume_for_s`: how long either side
    waits for a new one when the last has broken; `silence_s`: one that brings nothing for so long has broken, 0: 30.
    `certificate`: the source's, made for this migration; then links are other connections than this one, by TLS, see
    linking. "": this one is the first link.
    `disk_names`, `disk_bytes`, `disk_marks`: its disks, as the source sees them, see toolstack.shared_disks.
    """

    type: ClassVar = MessageType.OFFER
    migration: uuid.UUID
    config: str
    memory_kib: int
    source: str = ""
    paused: bool = False
    dry_run: bool = False
    disk_names: tuple[str, ...] = ()
    disk_bytes: tuple[int, ...] = ()
    disk_marks: tuple[str, ...] = ()
    links: int = 0
    resume_for_s: int = 0
    silence_s: int = 0
    certificate: str = ""


@dataclass(frozen=True)
class Accepted:
    """Destination: send it. `facts`: a line each, for people who asked for a dry run.

    `secret`: what each JOIN of this migration has; "": there is one connection only, and `reason` says why, for
    people. `port`: where others arrive. `certificate`: the destination's, made for this migration, where the source
    has sent one; `host`: the address at which it listens, "": the source knows it.
    `codecs`: names of those in which pages may come; none: it knows of Xen's own format only. `answers`: it answers
    KEEPALIVE amid the image by ACKNOWLEDGED; an older one does not. `clock_ms`: what time it is there, since 1970;
    0: it does not say. `measures`: in a dry run, it waits for a burst of DATA, up to STREAM_END.
    """

    type: ClassVar = MessageType.ACCEPTED
    migration: uuid.UUID
    facts: tuple[str, ...] = ()
    secret: str = ""
    port: int = 0
    reason: str = ""
    certificate: str = ""
    host: str = ""
    codecs: tuple[str, ...] = ()
    answers: bool = False
    clock_ms: int = 0
    measures: bool = False


@dataclass(frozen=True)
class Refused:
    """Destination: no. One finding or more, as (name of the error, exit code, text)."""

    type: ClassVar = MessageType.REFUSED
    migration: uuid.UUID
    names: tuple[str, ...]
    exit_codes: tuple[int, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class StreamEnd:
    """Source: the stream is complete, these many bytes of DATA in all."""

    type: ClassVar = MessageType.STREAM_END
    length_bytes: int


@dataclass(frozen=True)
class Ready:
    """Destination: the domain is whole and verified, paused, and this is on the disk."""

    type: ClassVar = MessageType.READY
    migration: uuid.UUID
    domid: int = -1


@dataclass(frozen=True)
class Grant:
    """Source: it is yours. The source never runs it again unless it hears ABORTED."""

    type: ClassVar = MessageType.GRANT
    migration: uuid.UUID


@dataclass(frozen=True)
class Running:
    """Destination: it is mine for good.

    `state`: "running", "paused", or "committed" where it could not be started, with the `error`.
    """

    type: ClassVar = MessageType.RUNNING
    migration: uuid.UUID
    state: str = "running"
    domid: int = -1
    start_ms: int = 0
    error: str = ""


@dataclass(frozen=True)
class Abort:
    """Source: give it up."""

    type: ClassVar = MessageType.ABORT
    migration: uuid.UUID
    reason: str = ""


@dataclass(frozen=True)
class Aborted:
    """Whoever says it never runs the domain of this migration."""

    type: ClassVar = MessageType.ABORTED
    migration: uuid.UUID
    reason: str = ""
    name: str = ""
    exit_code: int = ExitCode.IO


@dataclass(frozen=True)
class Ask:
    """Destination, later: I am READY; what about this migration?"""

    type: ClassVar = MessageType.ASK
    migration: uuid.UUID


@dataclass(frozen=True)
class Lost:
    """Whoever says it had the right to run the domain, and its host has lost it. A person decides."""

    type: ClassVar = MessageType.LOST
    migration: uuid.UUID
    reason: str = ""


@dataclass(frozen=True)
class Unknown:
    """Source: I have no journal of that."""

    type: ClassVar = MessageType.UNKNOWN
    migration: uuid.UUID


@dataclass(frozen=True)
class Busy:
    """Another process of this host works on that migration: ask again."""

    type: ClassVar = MessageType.BUSY
    migration: uuid.UUID
    state: str = ""


@dataclass(frozen=True)
class KeepAlive:
    """I am still here."""

    type: ClassVar = MessageType.KEEPALIVE


@dataclass(frozen=True)
class Acknowledged:
    """Destination: I have the first `position` bytes of DATA."""

    type: ClassVar = MessageType.ACKNOWLEDGED
    position: int


@dataclass(frozen=True)
class Join:
    """Source: a connection is a link of that migration. Behind it come frames, see transport.links.

    `place`: where that is: HERE, PORT or NOWHERE. An unknown one is refused by who hears it. `link`: its number, less
    than the OFFER's `links`; 0 for the first. A link that has that number is replaced: it has broken for the source.
    """

    type: ClassVar = MessageType.JOIN
    migration: uuid.UUID
    secret: str
    place: str = "here"
    link: int = 0


@dataclass(frozen=True)
class Joined:
    """Destination: so it is. Behind it come frames."""

    type: ClassVar = MessageType.JOINED
    migration: uuid.UUID


Message = (
    Hello
    | Offer
    | Accepted
    | Refused
    | StreamEnd
    | Ready
    | Grant
    | Running
    | Abort
    | Aborted
    | Ask
    | Lost
    | Unknown
    | Busy
    | KeepAlive
    | Acknowledged
    | Join
    | Joined
)

CLASSES: dict[MessageType, type[Message]] = {
    one.type: one
    for one in (
        Hello,
        Offer,
        Accepted,
        Refused,
        StreamEnd,
        Ready,
        Grant,
        Running,
        Abort,
        Aborted,
        Ask,
        Lost,
        Unknown,
        Busy,
        KeepAlive,
        Acknowledged,
        Join,
        Joined,
    )
}

_HINTS = {kind: get_type_hints(one) for kind, one in CLASSES.items()}


def pack_body(message: Message) -> bytes:
    """The JSON of a message: UTF-8, an object. ProtocolError when it would be too long to be sent."""
    fields = {}
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, uuid.UUID):
            value = str(value)
        fields[field.name] = list(value) if isinstance(value, tuple) else value
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError(
            f"a message {message.type.name} of {len(body)} bytes cannot be sent: {MAX_BODY_BYTES} are the most"
        )
    return body


def unpack_body(kind: MessageType, body: bytes) -> Message:
    """A message of this body. ProtocolError when a field is missing, or is not of its type."""
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError(f"a message {kind.name} of {len(body)} bytes: {MAX_BODY_BYTES} are the most")
    try:
        fields = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a message {kind.name} that is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ProtocolError(f"a message {kind.name} that is not a JSON object")
    one, hints = CLASSES[kind], _HINTS[kind]
    values = {}
    for field in dataclasses.fields(one):
        if field.name in fields:
            values[field.name] = _checked(kind, field.name, hints[field.name], fields[field.name])
        elif field.default is dataclasses.MISSING:
            raise ProtocolError(f"a message {kind.name} without {field.name!r}")
    message = one(**values)
    if isinstance(message, Offer) and not (
        len(message.disk_names) == len(message.disk_bytes) == len(message.disk_marks)
    ):
        raise ProtocolError("a message OFFER whose disks are not each a name, a length and a mark")
    if isinstance(message, Refused) and not (
        0 < len(message.names) == len(message.exit_codes) == len(message.texts)
    ):
        raise ProtocolError(
            "a message REFUSED whose findings are not one or more of name, exit code and text"
        )
    return message


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _checked(kind: MessageType, name: str, hint: Any, value: Any) -> Any:
    """A field's value as its type has it."""
    if hint is uuid.UUID:
        try:
            return uuid.UUID(value if isinstance(value, str) and len(value) == 36 else "")
        except ValueError:
            pass
    elif (
        (hint is int and type(value) is int and -1 <= value <= MAX_NUMBER)
        or (hint is bool and isinstance(value, bool))
        or (hint is str and isinstance(value, str) and _can_be_written(value))
    ):
        return value
    elif getattr(hint, "__origin__", None) is tuple and isinstance(value, list):
        return tuple(_checked(kind, name, hint.__args__[0], item) for item in value)
    raise ProtocolError(f"a message {kind.name} in which {name!r} is not what it should be")


def _can_be_written(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def for_people(text: str, most: int = 2000) -> str:
    """What a peer said, fit to be printed: on one line, nothing that a terminal obeys, and not endless."""
    shown = CONTROL_CHARACTERS.sub(" ", text)
    return shown if len(shown) <= most else f"{shown[:most]}…"
