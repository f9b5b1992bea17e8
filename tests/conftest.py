"""What holds for all tests."""

from __future__ import annotations

import signal

import pytest

from saverestore.interrupts import SIGNALS

pytest_plugins = ["on_xen"]


def pytest_configure(config: pytest.Config) -> None:
    """Signals as a terminal's shell leaves them.

    A script's background job starts with SIGINT ignored, nohup ignores SIGHUP, and the tools under test rightly
    keep it so.
    """
    for number in SIGNALS:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
