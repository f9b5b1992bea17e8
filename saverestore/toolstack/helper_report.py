"""What the save helper, run by libxl, tells whoever asked libxl: libxl itself passes on only that it failed.

libxl starts the helper, so there is no pipe between the two; the helper leaves one JSON object in a file in memory
whose path $PYXC_REPORT names:

    {"error": null or a text, "exit_code": 0 …, "pages": …, "records": …, "stream_bytes": …, "total_s": …}

$PYXC_IMAGE and $PYXC_IMAGE_OFFSET tell it what the image is called and where libxl's stream begins in it, for its
errors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from saverestore.errors import (
    DomainError,
    ExitCode,
    ImageError,
    SaveRestoreError,
    TransportError,
    UsageError,
    XenRefused,
)

REPORT_VARIABLE = "PYXC_REPORT"
IMAGE_VARIABLE = "PYXC_IMAGE"
OFFSET_VARIABLE = "PYXC_IMAGE_OFFSET"
CHECK_CPU_VARIABLE = "PYXC_CHECK_CPU"
"""One of the helper's settings, see `saverestore.helper.settings`."""

ERRORS: dict[int, type[SaveRestoreError]] = {
    error.exit_code: error for error in (UsageError, DomainError, ImageError, TransportError, XenRefused)
}


@dataclass(frozen=True)
class HelperReport:
    """One helper's work. `error` is None when it succeeded; the numbers are those of a RestoreReport."""

    error: str | None = None
    exit_code: int = ExitCode.DONE
    pages: int = 0
    records: int = 0
    stream_bytes: int = 0
    total_s: float = 0.0

    def leave(self, path: str) -> None:
        """Write it where the one who asked will look."""
        Path(path).write_text(json.dumps(asdict(self)))

    @staticmethod
    @contextmanager
    def awaited() -> Iterator[AwaitedReport]:
        """A place for the report of a helper that is about to be run."""
        fd = os.memfd_create("helper-report")
        try:
            yield AwaitedReport(fd)
        finally:
            os.close(fd)


class AwaitedReport:
    """The place of a report, and later the report."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.path = f"/proc/{os.getpid()}/fd/{fd}"

    def report(self) -> HelperReport:
        """What the helper left; an empty one when it left none, or was killed while it wrote."""
        try:
            return HelperReport(**json.loads(os.pread(self._fd, 1 << 20, 0) or b"{}"))
        except (ValueError, TypeError):
            return HelperReport()

    def error(self) -> SaveRestoreError | None:
        """The helper's failure as the exception that it was; None when it did not fail, or told nothing."""
        found = self.report()
        if found.error is None:
            return None
        return ERRORS.get(found.exit_code, XenRefused)(found.error)
