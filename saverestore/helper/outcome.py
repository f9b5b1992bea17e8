"""What came of the helper's work, as others are given it: a text and an errno for libxl, a report for `pyrestore`."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from dataclasses import replace

from saverestore.engine.progress import RestoreReport
from saverestore.errors import ExitCode, Interrupted, SaveRestoreError
from saverestore.toolstack.helper_link import NUMBERS, HelperReport, Task


def in_full(error: BaseException) -> str:
    """The error in words, with its notes; an unforeseen one with its class."""
    text = str(error) or type(error).__name__
    if not isinstance(error, SaveRestoreError | OSError):
        text = f"{type(error).__name__}: {text}"
    return "; ".join([text, *getattr(error, "__notes__", [])])


def errno_of(error: BaseException) -> int:
    """The errno for libxl, which prints its text: that of the error or of its causes, EINVAL where there is none."""
    if isinstance(error, Interrupted):
        return errno.EINTR
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno
        cause = cause.__cause__
    return errno.EINVAL


def exit_code_of(error: BaseException) -> int:
    """What `pyrestore` ends with when its helper fails with this."""
    if isinstance(error, SaveRestoreError):
        return error.exit_code
    is_xens = hasattr(error, "call")  # as pyxc's XenError, which this layer does not import
    return ExitCode.XEN if is_xens else ExitCode.IO


def leave_report(
    environment: Mapping[str, str], measured: RestoreReport, error: BaseException | None = None
) -> None:
    """Write the report of a restore where the task in these variables, if there is one, wants it.

    A report that cannot be written is no failure of the restore.
    """
    if (task := Task.of(environment)) is None:
        return
    report = HelperReport(**{name: getattr(measured, name) for name in NUMBERS})
    if error is not None:
        report = replace(report, error=in_full(error), exit_code=exit_code_of(error))
    with contextlib.suppress(OSError):
        report.leave(task.report)
