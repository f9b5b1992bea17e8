"""What Xen's libraries have to say, on its way to `logging`: libraries must not print."""

from __future__ import annotations

import logging
from enum import IntEnum

from pyxc._xen import ffi, lib

LIBXC = logging.getLogger("pyxc.libxc")


class Level(IntEnum):
    """xentoollog.h, enum xentoollog_level."""

    DEBUG = 1
    VERBOSE = 2
    DETAIL = 3  # what others call debug
    PROGRESS = 4
    INFO = 5
    NOTICE = 6
    WARN = 7
    ERROR = 8
    CRITICAL = 9


_LEVELS: dict[int, int] = {
    Level.DEBUG: logging.DEBUG,
    Level.VERBOSE: logging.DEBUG,
    Level.DETAIL: logging.DEBUG,
    Level.PROGRESS: logging.DEBUG,
    Level.INFO: logging.DEBUG,
    Level.NOTICE: logging.INFO,
    Level.WARN: logging.WARNING,
    # An error of a library is also raised as XenError by whoever made the call, who knows whether it matters.
    Level.ERROR: logging.INFO,
    Level.CRITICAL: logging.ERROR,
}


def log(logger: logging.Logger, level: int, errnoval: int, context: str, text: str) -> None:
    """One message of a library, at the level that it has for us."""
    suffix = f" (errno {errnoval})" if errnoval > 0 else ""
    logger.log(_LEVELS.get(level, logging.INFO), "%s: %s%s", context, text, suffix)


@ffi.def_extern()
def pyxc_log_message(level: int, errnoval: int, context: ffi.CData, text: ffi.CData) -> None:
    """Called by libxc, on the thread of the call that it tells about. Must not raise."""
    log(LIBXC, level, errnoval, text_of(context), text_of(text))


def text_of(c: ffi.CData) -> str:
    """A C string."""
    return ffi.string(c).decode(errors="replace")


def logger() -> ffi.CData:
    """The xentoollog_logger to open handles with; static, never destroyed."""
    return lib.pyxc_logger()
