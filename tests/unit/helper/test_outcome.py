"""What libxl is given of an error."""

from __future__ import annotations

import errno

import pytest

from saverestore.errors import DomainError, Interrupted, TransportError
from saverestore.helper.outcome import errno_of


def caused(error: BaseException, by: BaseException) -> BaseException:
    error.__cause__ = by
    return error


FULL = OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (FULL, errno.ENOSPC),
        (caused(TransportError("web1.img"), FULL), errno.ENOSPC),
        (DomainError("busy"), errno.EINVAL),
        (caused(Interrupted("by Ctrl-C"), FULL), errno.EINTR),
        (ValueError("odd"), errno.EINVAL),
        (MemoryError(), errno.EINVAL),
    ],
)
def test_an_error_has_an_errno(error, number):
    assert errno_of(error) == number
