"""What the benchmarks raise."""

from __future__ import annotations


class BenchError(Exception):
    """A benchmark could not do what was asked; the message is one line and says what to do next."""
