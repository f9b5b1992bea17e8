"""libxc's messages, on their way to `logging`: libraries must not print."""

from __future__ import annotations

import logging

from pyxc._xen import ffi, lib

LIBXC = logging.getLogger("pyxc.libxc")

# xentoollog.h, enum xentoollog_level: 1 debug … 9 critical. libxc calls "detail" what others call debug.
_LEVELS = {
    1: logging.DEBUG,
    2: logging.DEBUG,
    3: logging.DEBUG,
    4: logging.DEBUG,
    5: logging.DEBUG,
    6: logging.INFO,
    7: logging.WARNING,
    # A libxc error is also raised as XenError by whoever made the call, who knows whether it matters.
    8: logging.INFO,
    9: logging.ERROR,
}


@ffi.def_extern()
def pyxc_log_message(level: int, errnoval: int, context: ffi.CData, text: ffi.CData) -> None:
    """Called by libxc, on the thread of the call that it tells about. Must not raise."""
    message = ffi.string(text).decode(errors="replace")
    suffix = f" (errno {errnoval})" if errnoval > 0 else ""
    LIBXC.log(
        _LEVELS.get(level, logging.INFO),
        "%s: %s%s",
        ffi.string(context).decode(errors="replace"),
        message,
        suffix,
    )


def logger() -> ffi.CData:
    """The xentoollog_logger to open handles with; static, never destroyed."""
    return lib.pyxc_logger()
