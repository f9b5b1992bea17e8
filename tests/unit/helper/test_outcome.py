"""What libxl and `pyrestore` are given of an error."""

from __future__ import annotations

import errno

import pytest

from saverestore.errors import DomainError, ExitCode, ImageError, Interrupted, TransportError
from saverestore.helper.outcome import errno_of, exit_code_of, in_full


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


class OfXen(OSError):
    call = "xc_domain_getinfo"


FULL = OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize(
    ("error", "number", "code", "text"),
    [
        (FULL, errno.ENOSPC, ExitCode.IO, "[Errno 28] full"),
        (caused(TransportError("web1.img"), FULL), errno.ENOSPC, ExitCode.IO, "web1.img"),
        (DomainError("busy"), errno.EINVAL, ExitCode.DOMAIN, "busy"),
        (ImageError("cut", offset=16), errno.EINVAL, ExitCode.IMAGE, "cut (at byte 0x10 = 16)"),
        (caused(Interrupted("by Ctrl-C"), FULL), errno.EINTR, ExitCode.INTERRUPTED, "by Ctrl-C"),
        (OfXen(errno.EPERM, "no"), errno.EPERM, ExitCode.XEN, "[Errno 1] no"),
        (ValueError("odd"), errno.EINVAL, ExitCode.IO, "ValueError: odd"),
        (MemoryError(), errno.EINVAL, ExitCode.IO, "MemoryError: MemoryError"),
    ],
)
def test_an_error_has_an_errno_an_exit_code_and_a_text(error, number, code, text):
    assert (errno_of(error), exit_code_of(error), in_full(error)) == (number, code, text)


def test_notes_are_part_of_the_text():
    error = DomainError("busy")
    error.add_note("web1 is running again")
    assert in_full(error) == "busy; web1 is running again"
