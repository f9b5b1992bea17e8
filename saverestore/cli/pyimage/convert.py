"""`pyimage convert`: the same domain in another form of image."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.cli.pyimage.common import (
    Bar,
    Subparsers,
    add_command,
    add_output,
    new_file,
    say,
    size_text,
)
from saverestore.cli.remedies import words
from saverestore.errors import ExitCode, UsageError
from saverestore.stream.digest_algorithms import DIGEST_OPTIONS, KEEP_DIGEST, NO_DIGEST

if TYPE_CHECKING:
    from saverestore.stream.codecs import Coding
    from saverestore.transport.base import ImageSink
    from saverestore.transport.newfile import NewFile
    from saverestore.transport.stdout import StandardOutput

DIALECTS = ("xen", "draft-b")
CODEC = "zstd"
LEVELS = range(1, 20)
ZSTD = re.compile(r"zstd(?::([0-9]{1,2}))?", re.ASCII)
STDOUT = "-"


def add_to(commands: Subparsers) -> None:
    """Declare `convert`."""
    command = add_command(
        commands,
        "convert",
        run,
        "write an image in another form",
        "Whatever comes in, zstd, gzip and lz4 included, becomes the dialect and compression that are asked for; "
        "images of Xen 4.6 to 4.13 (version 2) become version 3. The domain's state stays what it is. IMAGE and "
        "FILE may be '-'.",
    )
    command.add_argument("image", metavar="IMAGE", help="file with the image, or '-' for standard input")
    add_output(command, "the image to be made, mode 0600; '-' is standard output")
    command.add_argument(
        "--to",
        choices=DIALECTS,
        default=DIALECTS[0],
        help="xen: what stock Xen reads (the default). draft-b: with a checksum for each record and coded pages, for "
        "pyrestore and pyimage alone",
    )
    command.add_argument(
        "--codec",
        metavar="CODEC[:LEVEL]",
        help="how pages are coded with --to draft-b: zstd (the default), lz4, deflate or none",
    )
    command.add_argument(
        "--compress",
        metavar="HOW",
        type=compression_from,
        default=None,
        help="zstd or zstd:LEVEL (1 to 19): seekable zstd, which every subcommand reads as it is; "
        "none (the default)",
    )
    command.add_argument(
        "--digest",
        choices=(KEEP_DIGEST, *DIGEST_OPTIONS),
        default=KEEP_DIGEST,
        help="the digest of the whole image: one of the kind that IMAGE has (keep, the default), or this one",
    )
    command.add_argument(
        "--plain",
        action="store_true",
        help="leave out our own records: the note of host, time and domain, and the digest",
    )


def compression_from(text: str) -> int | None:
    """Read HOW: zstd's level, or None for no compression."""
    if text == "none":
        return None
    found = ZSTD.fullmatch(text)
    level = int(found[1] or 1) if found else 0
    if level not in LEVELS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of: none, zstd, zstd:1 to zstd:{LEVELS[-1]}")
    return level


def run(arguments: argparse.Namespace) -> int:
    """Convert the image."""
    if arguments.plain and arguments.digest not in (KEEP_DIGEST, NO_DIGEST):
        raise UsageError("--plain leaves the digest out; --digest asks for one")
    coding = _coding(arguments)
    from saverestore.image.convert import convert
    from saverestore.transport.opening import open_image

    with open_image(arguments.image) as source, _output(arguments) as file:
        with (
            _compressing(file.sink, arguments.compress) as sink,
            Bar(source.total_bytes, "converting") as bar,
        ):
            done = convert(
                source,
                sink,
                coding=coding,
                plain=arguments.plain,
                digest=arguments.digest,
                may_continue=source.may_continue,
                on_progress=bar.update_to,
                folder=_folder(arguments.output),
            )
        length = file.sink.offset
    for name, advice in done.left_out.items():
        say("; ".join([f"left out: {name}", *([] if advice is None else [words(advice, "pyimage")])]))
    say(f"{file.sink.name}: {done.nr_pages} pages, {size_text(length)} (was {size_text(source.offset)})")
    return ExitCode.DONE


def _coding(arguments: argparse.Namespace) -> Coding | None:
    """How pages are to be coded; None for Xen's own dialect. UsageError for what cannot be."""
    if arguments.to == DIALECTS[0]:
        if arguments.codec is not None:
            raise UsageError(
                "--codec codes pages of --to draft-b; to compress an image of Xen's own, use --compress"
            )
        return None
    from saverestore.stream.codecs import Codec, Coding

    coding = Coding.parse(arguments.codec or CODEC)
    if coding.codec is Codec.XOR:
        raise UsageError("xor codes what changes during a live save; for a conversion choose another codec")
    return coding


def _folder(output: str) -> Path | None:
    """Where there is room for what is needed meanwhile: beside a file; not beside a pipe or device."""
    path = Path(output)
    return None if output == STDOUT or (path.exists() and not path.is_file()) else path.parent


@contextmanager
def _output(arguments: argparse.Namespace) -> Iterator[NewFile | StandardOutput]:
    from saverestore.transport.stdout import StandardOutput

    if arguments.output != STDOUT:
        with new_file(arguments) as file:
            yield file
        return
    if os.isatty(1):
        raise UsageError("an image is no text for a terminal; give standard output to a file or pipe")
    out = StandardOutput()
    yield out
    out.sync()


@contextmanager
def _compressing(sink: ImageSink, level: int | None) -> Iterator[ImageSink]:
    """What compresses into `sink`, or `sink` itself; all has been given at the end of the block."""
    if level is None:
        yield sink
        sink.finish()
        return
    from saverestore.transport.zstd_sink import ZstdSink

    with ZstdSink(sink, level=level) as compressing:
        yield compressing
        compressing.finish()
