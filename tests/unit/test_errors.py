"""What a failure is called, and what a command ends with: also of those that are not of this package."""

from __future__ import annotations

import errno

import pytest

from saverestore.errors import (
    DomainError,
    ExitCode,
    ImageError,
    Interrupted,
    TransportError,
    exit_code_of,
    fact_of,
)


class OfXen(OSError):
    call = "xc_domain_getinfo"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "full"), ExitCode.IO, "[Errno 28] full"),
        (TransportError("web1.img"), ExitCode.IO, "web1.img"),
        (DomainError("busy"), ExitCode.DOMAIN, "busy"),
        (ImageError("cut", offset=16), ExitCode.IMAGE, "cut (at byte 0x10 = 16)"),
        (Interrupted("by Ctrl-C"), ExitCode.INTERRUPTED, "by Ctrl-C"),
        (OfXen(errno.EPERM, "no"), ExitCode.XEN, "[Errno 1] no"),
        (ImportError("no pyxc"), ExitCode.XEN, "no pyxc"),
        (ValueError("odd"), ExitCode.IO, "ValueError: odd"),
        (ValueError(), ExitCode.IO, "ValueError: ValueError"),
        (MemoryError(), ExitCode.IO, "out of memory in this domain"),
    ],
)
def test_any_error_has_an_exit_code_and_a_text(error, code, text):
    assert (exit_code_of(error), fact_of(error)) == (code, text)


def test_notes_are_part_of_the_text():
    error = DomainError("busy")
    error.add_note("web1 is running again")
    assert fact_of(error) == "busy; web1 is running again"
