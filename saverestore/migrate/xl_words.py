"""What stock `xl migrate` and `xl migrate-receive` say to each other, as bytes. Pure.

     sender                                          receiver
                                     ◄─────────────  BANNER
     xl's header, configuration, libxl's stream ══►            a domain is made, paused, as NAME--incoming
                                     ◄─────────────  READY
     GRANT                           ─────────────►            renamed to NAME, and unpaused
                                     ◄─────────────  REPORT, a status byte: 0, or not 0 where that failed
                                     ◄─────────────  GRANT     after a failure, when its copy is destroyed

There are no lengths, versions, keepalives or deadlines. Source: tools/xl/xl.h and xl_migrate.c, the same in Xen 4.17
and 4.20. All words but BANNER have a final NUL on the wire.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from saverestore.errors import ErrorName, ExitCode, SaveRestoreError

BANNER = b"xl migration receiver ready, send binary domain data.\n"
READY = b"domain received, ready to unpause\0"
GRANT = b"domain is yours, you are cleared to unpause\0"
REPORT = b"my copy unpause results are as follows\0"

STARTED, NOT_STARTED = b"\0", b"\1"
"""The status byte: xl takes any that is not 0 for a failure."""

RECEIVE = "xl migrate-receive"
RECEIVE_PAUSED = f"{RECEIVE} -p"

LONGEST_SAID = len(READY + REPORT + STARTED + GRANT)
"""As much as a receiver may still say after it got no more to read."""

SHOWN_BYTES = 60
_ASKED = re.compile(r"xl(?: -t| -T| -v+)* migrate-receive(?P<options>(?: -[edp])*)")


class NotXl(SaveRestoreError):
    """The other side says what xl does not say."""

    exit_code = ExitCode.IO
    name = ErrorName.PROTOCOL_VIOLATED


def is_whole(said: bytes, word: bytes, peer: str, what: str) -> bool:
    """Whether `said` is all of this word; False where more of it has to come. NotXl when it cannot become that.

    `what`: the word's name, for people.
    """
    if not word.startswith(said):
        shown = ascii(said[:SHOWN_BYTES].decode("ascii", "backslashreplace"))
        raise NotXl(f"{peer} said {shown} where xl's {what} belongs")
    return len(said) == len(word)


class Left(Enum):
    """What a receiver that was given no permission has left of the domain."""

    NOTHING = auto()  # by its own word
    INCOMPLETE = auto()  # xl removes an incomplete domain, without a word
    UNKNOWN = auto()  # a complete one, paused, may be there


def left_there(said: bytes, *, all_sent: bool) -> Left:
    """What is left there when the receiver found the end of what it reads, instead of more.

    `said`: all that it said since the image began, up to its end. `all_sent`: it had all of the image.
    """
    rest = said.removeprefix(READY)
    status = rest[len(REPORT) : len(REPORT) + 1]
    if status not in (b"", STARTED) and rest == REPORT + status + GRANT:
        return Left.NOTHING
    return Left.UNKNOWN if said or all_sent else Left.INCOMPLETE


@dataclass(frozen=True)
class AskedFor:
    """What an `xl migrate` wants to be run here. `paused`: its -p. `watched`: false for its -e."""

    paused: bool = False
    watched: bool = True


def asked_for(command: str) -> AskedFor | None:
    """Take apart the command line that `xl migrate` gives to ssh; None when it is another one.

    Its -d only has xl's own receiver print more.
    """
    found = _ASKED.fullmatch(" ".join(command.split()))
    if found is None:
        return None
    return AskedFor(paused=" -p" in found["options"], watched=" -e" not in found["options"])
