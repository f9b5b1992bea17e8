"""The helper's command line, as libxl writes it: every number decimal, every position taken.

    --save-domain    IO_FD RECV_FD DOMID FLAGS CALLBACKS STREAM_TYPE
    --restore-domain IO_FD SEND_BACK_FD DOMID STORE_PORT STORE_DOMID CONSOLE_PORT CONSOLE_DOMID CALLBACKS STREAM_TYPE

Source: tools/libs/light/libxl_save_callout.c.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import TypeVar

from saverestore.errors import Advice, Remedy, UsageError


class SaveFlag(IntFlag):
    """FLAGS of a save (xenguest.h, XCFLAGS_*)."""

    LIVE = 1 << 0
    DEBUG = 1 << 1


class StreamType(IntEnum):
    """What kind of stream is wanted (xenguest.h, xc_stream_type_t)."""

    PLAIN = 0
    REMUS = 1
    COLO = 2


@dataclass(frozen=True)
class SaveArguments:
    """A save: the domain's memory and state go to `io_fd`."""

    io_fd: int
    recv_fd: int  # -1: none
    domid: int
    flags: int
    callbacks: int
    stream_type: int


@dataclass(frozen=True)
class RestoreArguments:
    """A restore: what `io_fd` brings goes into domain `domid`, which libxl has created."""

    io_fd: int
    send_back_fd: int  # -1: none
    domid: int
    store_port: int
    store_domid: int
    console_port: int
    console_domid: int
    callbacks: int
    stream_type: int


Arguments = TypeVar("Arguments", SaveArguments, RestoreArguments)

BY_HAND = (Advice(Remedy.LET_LIBXL_START_IT),)


def parse(words: Sequence[str]) -> SaveArguments | RestoreArguments:
    """What libxl asked for. UsageError when that is not what libxl writes."""
    if words[:1] == ["--save-domain"]:
        return _filled(SaveArguments, words)
    if words[:1] == ["--restore-domain"]:
        return _filled(RestoreArguments, words)
    raise UsageError("the arguments ask for neither a save nor a restore", remedies=BY_HAND)


def _filled(kind: type[Arguments], words: Sequence[str]) -> Arguments:
    names = [field.name for field in fields(kind)]
    if len(words) != len(names) + 1:
        raise UsageError(f"{words[0]} with {len(words) - 1} numbers, not {len(names)}", remedies=BY_HAND)
    try:
        made = kind(**{name: int(word) for name, word in zip(names, words[1:], strict=True)})
    except ValueError as error:
        raise UsageError(f"{words[0]}: {error}", remedies=BY_HAND) from error
    try:
        os.fstat(made.io_fd)
    except (OSError, OverflowError) as error:
        raise UsageError(f"{words[0]}: descriptor {made.io_fd} is not open", remedies=BY_HAND) from error
    return made
