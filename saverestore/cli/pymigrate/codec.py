"""Options for how pages are coded on their way, and what that gained, for people."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from saverestore.cli import arguments

if TYPE_CHECKING:
    from saverestore.migrate.codecs import CodecOptions

AUTO = "auto"
XOR_CACHE_MIB = 48
"""As `engine.settings.XOR_CACHE_BYTES`, which is not loaded to print a help text; a test holds the two together."""


def add_codec(group: argparse._ArgumentGroup) -> None:
    """--codec and --xor-cache."""
    group.add_argument(
        "--codec",
        metavar="CODEC",
        help="how pages are coded: none; zstd[:LEVEL], lz4, deflate; xor, the differences from the version of a page "
        "that was sent last; auto (the default) measures the link, the codecs and the idle cores, and chooses for "
        "each batch of pages what should arrive first. A receiver that knows no codecs gets uncoded pages",
    )
    group.add_argument(
        "--xor-cache",
        metavar="MIB",
        type=arguments.mebibytes,
        default=XOR_CACHE_MIB,
        help="for xor: how much memory, in MiB, this host uses to keep the versions of pages that were sent last; 1 "
        f"to 16384, default {XOR_CACHE_MIB}",
    )


def options_of(given: argparse.Namespace) -> CodecOptions:
    """What was asked for. UsageError for a codec that does not exist, or that this host has no library for."""
    from saverestore.errors import UsageError
    from saverestore.migrate.codecs import CodecOptions
    from saverestore.stream.codecs import Coding

    coding = None
    if given.codec not in (None, AUTO):
        try:
            coding = Coding.parse(given.codec)
        except UsageError as error:
            raise UsageError(f"--codec: {error}; no changes were made", name=error.name) from error
    return CodecOptions(coding, given.xor_cache << 20)
