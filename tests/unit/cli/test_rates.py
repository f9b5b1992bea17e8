"""Rates as a person gives them."""

from __future__ import annotations

import argparse

import pytest

from saverestore.cli import arguments
from saverestore.transport import paced


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("50MiB/s", 50 << 20),
        ("50MB/s", 50_000_000),
        ("1.5GiB/s", 3 << 29),
        ("400Mbit/s", 50_000_000),
        ("1Gbit/s", 125_000_000),
        ("1Gibit/s", 1 << 27),
        ("64KiB/s", 64 << 10),
        ("100kB/s", 100_000),
        ("100 kB/s", 100_000),
        ("65536B/s", 65536),
    ],
)
def test_a_rate_is_bytes_or_bits_per_second(text, bytes_per_s):
    assert arguments.rate(text) == bytes_per_s


@pytest.mark.parametrize(
    "text", ["50", "50M", "50MiB", "50Mb/s", "0B/s", "-1MiB/s", "63KiB/s", "none", "", "1e9B/s"]
)
def test_what_is_no_rate_or_too_small_a_one_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        arguments.rate(text)


def test_no_limit_is_called_none():
    assert arguments.rate_or_none("none") is None
    assert arguments.rate_or_none("1MiB/s") == 1 << 20


def test_the_smallest_rate_is_the_transports():
    assert arguments.SMALLEST_RATE == paced.SMALLEST_RATE
