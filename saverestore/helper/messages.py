"""What a save helper and libxl say to each other, byte for byte.

The helper writes messages to its fd 1; to those that are questions libxl answers with one i32 on the helper's
fd 0. All native (x86 and ARM: little-endian), packed:

     0           2           4
    +-----------+-----------+--------------------------------+
    | u16 length| u16 type  | arguments…                     |
    +-----------+-----------+--------------------------------+
      length counts what follows it; a string is u32 n, then n bytes, the last of them NUL

libxl passes over a message that it has no callback for *without answering*, so a question may be asked only when
its bit (1 << type) is among the callbacks told on the command line. LOG, PROGRESS and COMPLETE it always takes.
The same from Xen 4.14 to 4.20; source: tools/libs/light/libxl_save_msgs_gen.pl.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

FRAME_LENGTH = struct.Struct("<H")
TYPE = struct.Struct("<H")
REPLY = struct.Struct("<i")
STRING_LENGTH = struct.Struct("<I")

STRING = "string"
U32 = struct.Struct("<I")
I32 = struct.Struct("<i")
U64 = struct.Struct("<Q")

LONGEST_FRAME = 0xFFFF
LONGEST_STRING = 8 << 10
"""Longer texts are cut: two of them and the rest stay well below what a frame can hold."""


class MessageType(IntEnum):
    """What the helper says."""

    LOG = 1
    PROGRESS = 2
    SUSPEND = 3
    POSTCOPY = 4
    CHECKPOINT = 5
    WAIT_CHECKPOINT = 6
    SWITCH_QEMU_LOGDIRTY = 7
    STATIC_DATA_DONE = 8
    RESTORE_RESULTS = 9
    COMPLETE = 10


QUESTIONS = frozenset(MessageType) - {
    MessageType.LOG,
    MessageType.PROGRESS,
    MessageType.RESTORE_RESULTS,
}
"""Those that libxl answers."""

ALWAYS_TAKEN = frozenset({MessageType.LOG, MessageType.PROGRESS, MessageType.COMPLETE})

ARGUMENTS: dict[MessageType, tuple[struct.Struct | str, ...]] = {
    MessageType.LOG: (U32, I32, STRING, STRING),  # level, errno or -1, context, text
    MessageType.PROGRESS: (STRING, STRING, U64, U64),  # context, doing what, done, total
    MessageType.SUSPEND: (),
    MessageType.POSTCOPY: (),
    MessageType.CHECKPOINT: (),
    MessageType.WAIT_CHECKPOINT: (),
    MessageType.SWITCH_QEMU_LOGDIRTY: (U32, U32),  # domid, on
    MessageType.STATIC_DATA_DONE: (U32,),  # Missing
    MessageType.RESTORE_RESULTS: (U64, U64),  # store gfn, console gfn
    MessageType.COMPLETE: (I32, I32),  # 0 or -1, errno
}


class Level(IntEnum):
    """How much a LOG message matters (xentoollog.h). `xl` prints PROGRESS and above; with -v all."""

    DEBUG = 1
    VERBOSE = 2
    DETAIL = 3
    PROGRESS = 4
    INFO = 5
    NOTICE = 6
    WARN = 7
    ERROR = 8
    CRITICAL = 9


class Missing(IntFlag):
    """Static data that an image of an old Xen lacks, for libxl to make up (xenguest.h, XGR_SDD_MISSING_*)."""

    CPUID = 1 << 0
    MSR = 1 << 1


NO_ERRNO = -1


def pack(type: MessageType, *values: int | str) -> bytes:
    """One message as it goes over the pipe. ValueError when the values do not suit the type."""
    kinds = ARGUMENTS[type]
    if len(kinds) != len(values):
        raise ValueError(f"{type.name} takes {len(kinds)} arguments, not {len(values)}")
    parts = [TYPE.pack(type)]
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, struct.Struct):
            parts.append(kind.pack(value))
        else:
            text = str(value).encode(errors="replace").replace(b"\0", b" ")[: LONGEST_STRING - 1] + b"\0"
            parts += [STRING_LENGTH.pack(len(text)), text]
    body = b"".join(parts)
    return FRAME_LENGTH.pack(len(body)) + body


def unpack(body: bytes) -> tuple[MessageType, tuple[int | str, ...]]:
    """What is behind the length of a frame. ValueError when it is no message."""
    try:
        type = MessageType(TYPE.unpack_from(body)[0])
        at = TYPE.size
        values: list[int | str] = []
        for kind in ARGUMENTS[type]:
            if isinstance(kind, struct.Struct):
                values.append(kind.unpack_from(body, at)[0])
                at += kind.size
            else:
                (length,) = STRING_LENGTH.unpack_from(body, at)
                at += STRING_LENGTH.size
                text = body[at : at + length]
                if len(text) != length or text[-1:] != b"\0":
                    raise ValueError(f"{type.name}: a string is not whole")
                values.append(text[:-1].decode(errors="replace"))
                at += length
    except struct.error as error:
        raise ValueError(f"a message ends too early: {error}") from error
    if at != len(body):
        raise ValueError(f"{type.name}: {len(body) - at} bytes too many")
    return type, tuple(values)
