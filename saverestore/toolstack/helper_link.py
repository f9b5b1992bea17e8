"""Between `pyrestore` and the save helper that libxl starts for it: what is to be known, and what came of it.

libxl stands between the two, and passes on only that the helper failed. So $PYSAVE_TASK holds one JSON object, what
the helper is to know beyond what libxl tells it (`Task`), and the helper writes another one (`HelperReport`) into a
file in memory that the task names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from saverestore.errors import (
    Advice,
    DomainError,
    ErrorName,
    ExitCode,
    ImageError,
    Remedy,
    SaveRestoreError,
    TransportError,
    UsageError,
    XenRefused,
    exit_code_of,
    fact_of,
    name_of,
    remedies_of,
)
from saverestore.stream.header_digest import HeaderDigest

HELPER_VARIABLE = "LIBXL_SAVE_HELPER"
TASK_VARIABLE = "PYSAVE_TASK"

ERRORS: dict[int, type[SaveRestoreError]] = {
    error.exit_code: error for error in (UsageError, DomainError, ImageError, TransportError, XenRefused)
}


NUMBERS = (
    "pages",
    "records",
    "stream_bytes",
    "total_s",
    "digest",
    "memory_s",
    "complete_s",
    "peak_memory_bytes",
)
"""What the helper measures of a RestoreReport, and what they are called in a `HelperReport`."""


@dataclass(frozen=True)
class Task:
    """What the helper is to know.

    `image`: what it is called, in errors. `offset`: where the libxc stream begins in it. `header_digest`: of what
    came before that, to be held against the image's own word. `check_cpu`: refuse an image for another CPU.
    `check_disks`: refuse one whose disks have changed: those at `disk_paths`, which a domain had whose UUID was
    `saved_uuid`. `max_kib`: the most memory that the domain's configuration
    lets it have; 0 where that is not known. `pages`: how many it gets while it is filled; 0 where that is not known.
    `name`: what it is called. `report`: a path.
    """

    image: str
    offset: int
    header_digest: HeaderDigest | None
    require_digest: bool = False
    check_cpu: bool = True
    check_disks: bool = True
    disk_paths: list[str] = field(default_factory=list)
    saved_uuid: str = ""
    max_kib: int = 0
    pages: int = 0
    name: str = ""
    report: str = ""

    def pack(self) -> str:
        """The variable's value."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Task | None:
        """The task in these variables; None when it is `xl` that asked. UsageError for what is no task."""
        text = environment.get(TASK_VARIABLE)
        if not text:
            return None
        try:
            fields = json.loads(text)
            header_digest = fields.pop("header_digest")
            return cls(
                header_digest=None if header_digest is None else HeaderDigest(**header_digest), **fields
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"${TASK_VARIABLE} holds no task: {error}") from error


@dataclass(frozen=True)
class HelperReport:
    """One helper's restore. The numbers are those of a RestoreReport.

    `error` is None when it succeeded, else the fact; `name` is that of an ErrorName, `remedies` are pairs of a
    Remedy's name and its object: whoever asked for the restore puts them into its own words.
    """

    error: str | None = None
    exit_code: int = ExitCode.DONE
    name: str = ErrorName.UNEXPECTED.name
    remedies: Sequence[tuple[str, int | str | None]] = ()
    pages: int = 0
    records: int = 0
    stream_bytes: int = 0
    total_s: float = 0.0
    digest: int | None = None
    memory_s: float = 0.0
    complete_s: float = 0.0
    peak_memory_bytes: int | None = None

    def failed(self, error: BaseException) -> HelperReport:
        """The same, of a restore that ended with this."""
        return replace(
            self,
            error=fact_of(error),
            exit_code=exit_code_of(error),
            name=name_of(error).name,
            remedies=[(advice.remedy.name, advice.object) for advice in remedies_of(error)],
        )

    def leave(self, path: str) -> None:
        """Write it where the one who asked will look."""
        Path(path).write_text(json.dumps(asdict(self)))

    def as_error(self) -> SaveRestoreError | None:
        """The helper's failure as the exception that it was; None when it did not fail, or reported nothing.

        Names that are not known, as another version may have them, become UNEXPECTED; such remedies are left out.
        """
        if self.error is None:
            return None
        return ERRORS.get(self.exit_code, XenRefused)(
            self.error,
            name=ErrorName.__members__.get(self.name, ErrorName.UNEXPECTED),
            remedies=[
                Advice(Remedy[remedy], thing)
                for remedy, thing in self.remedies
                if remedy in Remedy.__members__
            ],
        )


class Link:
    """A helper that is about to be run: the task it is given, and a place for its report."""

    def __init__(self, task: Task, fd: int) -> None:
        self._fd = fd
        self.task = replace(task, report=f"/proc/{os.getpid()}/fd/{fd}")

    def report(self) -> HelperReport:
        """What the helper left; an empty one when it left none, or was killed while it wrote."""
        try:
            return HelperReport(**json.loads(os.pread(self._fd, 1 << 20, 0) or b"{}"))
        except (ValueError, TypeError):
            return HelperReport()


@contextmanager
def linked(task: Task) -> Iterator[Link]:
    """Inside this block, a helper may be run, and its report be read."""
    fd = os.memfd_create("helper-report")
    try:
        yield Link(task, fd)
    finally:
        os.close(fd)
