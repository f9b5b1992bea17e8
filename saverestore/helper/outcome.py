"""What came of the helper's work, as others are given it: an errno for libxl, a report for `pyrestore`."""

from __future__ import annotations

import contextlib
import errno

from saverestore.engine.progress import RestoreReport
from saverestore.errors import Interrupted
from saverestore.toolstack.helper_link import NUMBERS, HelperReport, Task


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


def leave_report(task: Task, measured: RestoreReport, error: BaseException | None = None) -> None:
    """Write the report of a restore where the task wants it.

    A report that cannot be written is no failure of the restore.
    """
    report = HelperReport(**{name: getattr(measured, name) for name in NUMBERS})
    if error is not None:
        report = report.failed(error)
    with contextlib.suppress(OSError):
        report.leave(task.report)
