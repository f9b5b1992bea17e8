"""Times and numbers of rounds as options, of the commands that save a running domain or migrate it."""

from __future__ import annotations

import argparse


def seconds(text: str) -> float:
    """A time of an option: a number greater than 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number greater than 0")
    return found


def milliseconds(text: str) -> float:
    """The same, in seconds."""
    return seconds(text) / 1000


def rounds(text: str) -> int:
    """A number of rounds: as many as an option may ask for."""
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds from 1 to 1000")
    return int(text)
