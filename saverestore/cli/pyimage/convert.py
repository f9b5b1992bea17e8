"""`pyimage convert`: the same domain in another form of image."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from saverestore.cli.arguments import zstd_level_or_none
from saverestore.cli.pyimage.common import (
    ALSO_COMPRESSED,
    Bar,
    Subparsers,
    add_command,
    add_image,
    add_output,
    file_size_text,
    new_file,
    say,
    size_text,
)
from saverestore.cli.remedies import words
from saverestore.errors import ExitCode, UsageError
from saverestore.stream.digest_algorithms import DIGEST_OPTIONS, KEEP_DIGEST, NO_DIGEST
from saverestore.words import counted

if TYPE_CHECKING:
    from saverestore.stream.codecs import Coding
    from saverestore.transport.base import ImageSink
    from saverestore.transport.descriptor import Descriptor
    from saverestore.transport.newfile import NewFile

DIALECTS = ("xen", "draft-b")
CODEC = "zstd"
STDIN = STDOUT = "-"


def add_to(commands: Subparsers) -> None:
    """Declare `convert`."""
    command = add_command(
        commands,
        "convert",
        run,
        "write an image in another form",
        f"{ALSO_COMPRESSED} Images of Xen 4.6 to 4.13 (version 2) become version 3. The domain's state does "
        "not change.",
    )
    add_image(command, "file with the image; '-' is standard input")
    add_output(command, "the new image, made with mode 0600; '-' is standard output")
    command.add_argument(
        "--to",
        choices=DIALECTS,
        default=DIALECTS[0],
        help="xen (the default): what xl reads; draft-b: checksums for each record and coded pages, for "
        "pyrestore and pyimage only",
    )
    command.add_argument(
        "--codec",
        metavar="CODEC[:LEVEL]",
        help="how pages are coded with --to draft-b: zstd (the default), lz4, deflate or none",
    )
    command.add_argument(
        "--compress",
        metavar="zstd[:LEVEL]",
        type=zstd_level_or_none,
        default=None,
        help="write seekable zstd, level 1 (the default) to 19, which every subcommand reads as it is; none (the "
        "default) writes it uncompressed",
    )
    command.add_argument(
        "--digest",
        choices=(KEEP_DIGEST, *DIGEST_OPTIONS),
        default=KEEP_DIGEST,
        help="the digest of the whole image: keep (the default), of the kind that IMAGE has, or another",
    )
    command.add_argument(
        "--plain",
        action="store_true",
        help="leave out our records: the note of host, time and domain, and the digest",
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert the image."""
    if arguments.plain and arguments.digest not in (KEEP_DIGEST, NO_DIGEST):
        raise UsageError("--plain leaves the digest out, so it excludes --digest")
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
    read, made = Path(arguments.image), Path(arguments.output)
    before = file_size_text(read) if read.is_file() else size_text(source.offset)
    after = file_size_text(made) if made.is_file() else size_text(length)
    shown = "standard input" if arguments.image == STDIN else arguments.image
    say(f"{file.sink.name}: {counted(done.nr_pages, 'page')}, {after} ({shown}: {before})")
    return ExitCode.DONE


def _coding(arguments: argparse.Namespace) -> Coding | None:
    """How pages are to be coded; None for Xen's own dialect. UsageError for what cannot be."""
    if arguments.to == DIALECTS[0]:
        if arguments.codec is not None:
            raise UsageError("--codec needs --to draft-b; --compress compresses an image in Xen's own format")
        return None
    from saverestore.stream.codecs import Codec, Coding

    coding = Coding.parse(arguments.codec or CODEC)
    if coding.codec is Codec.XOR:
        raise UsageError("--codec xor is for live saves only; choose another codec")
    if arguments.compress is not None and coding.compresses:
        raise UsageError(
            f"--to draft-b compresses pages by {coding.codec.name.lower()}, so --compress would compress them twice; "
            "use --codec none with --compress, or leave --compress out"
        )
    return coding


def _folder(output: str) -> Path | None:
    """Where there is room for what is needed meanwhile: beside a file; not beside a pipe or device."""
    path = Path(output)
    return None if output == STDOUT or (path.exists() and not path.is_file()) else path.parent


@contextmanager
def _output(arguments: argparse.Namespace) -> Iterator[NewFile | Descriptor]:
    from saverestore.transport.descriptor import Descriptor

    if arguments.output != STDOUT:
        with new_file(arguments) as file:
            yield file
        return
    if os.isatty(1):
        raise UsageError("an image cannot be written to a terminal; redirect standard output")
    out = Descriptor()
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
