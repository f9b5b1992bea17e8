"""What the subcommands share: arguments, progress, text that is harmless on a terminal, the file they write."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saverestore.errors import UsageError

if TYPE_CHECKING:
    from saverestore.image.index import ImageIndex
    from saverestore.transport.newfile import NewFile
    from saverestore.transport.random_access import RandomAccess

EXIT_CODES = """\
exit codes:
  0    done; the image is whole
  1    diff: the images differ
  2    wrong usage, or no such file
  4    the image is damaged, incomplete, or not an image
  5    reading or writing failed
  130  interrupted by Ctrl-C or another signal

IMAGE may be compressed with zstd, gzip or lz4, and '-', for standard input, with info, verify and convert. The
others read here and there, and need a file, plain or in seekable zstd as we write it.
"""

DIFFERENT = 1
"""What diff exits with when the images differ, as diff(1) does. No failure, so no `ExitCode`."""

LABEL_WIDTH = 16
HELP_WIDTH = 100

Run = Callable[[argparse.Namespace], int]
Subparsers = Any  # argparse's own class for them is private


def add_command(
    commands: Subparsers, name: str, run: Run, text: str, more: str = ""
) -> argparse.ArgumentParser:
    """Declare a subcommand; `text`: one line for the list of commands, `more`: what --help says besides."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=textwrap.fill(f"{text[0].upper()}{text[1:]}. {more}", HELP_WIDTH),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def add_output(command: argparse.ArgumentParser, text: str) -> None:
    """Declare -o and --overwrite."""
    command.add_argument("-o", "--output", metavar="FILE", required=True, help=text)
    command.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def line(label: str, value: object) -> str:
    """One line of a report."""
    return f"{label:<{LABEL_WIDTH}}{plain(str(value))}"


def plain(text: str) -> str:
    """Make text from an image harmless on a terminal: no control characters, no line breaks."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def size_text(length_bytes: int) -> str:
    """Return a size as people read it: 1.5 GiB, 17 bytes."""
    size = float(length_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


class Bar:
    """A progress bar on standard error, if that is a terminal and tqdm is there."""

    def __init__(self, total_bytes: int | None, text: str = "reading") -> None:
        self._done = 0
        self._bar = None
        if sys.stderr is None or not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:  # an adornment: the command works without it
            return
        tqdm.monitor_interval = 0  # as in cli/progress.py
        self._bar = tqdm(
            total=total_bytes,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            delay=0.5,
            desc=text,
        )

    def update_to(self, done_bytes: int) -> None:
        """Show that so many bytes are done."""
        if self._bar is not None:
            self._bar.update(done_bytes - self._done)
            self._done = done_bytes

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def new_file(arguments: argparse.Namespace) -> Iterator[NewFile]:
    """The file of -o: on the disk and under its name at the end of the block, not there if that fails.

    UsageError when it exists and may not be replaced; the image itself never may.
    """
    from saverestore.transport.newfile import NewFile

    output = Path(arguments.output)
    if output.exists() and Path(arguments.image).exists() and output.samefile(arguments.image):
        raise UsageError(f"{output} is the image itself; give another name")
    with NewFile(output, overwrite=arguments.overwrite) as file:
        yield file
        file.sync()
        file.publish()


@contextmanager
def opened(image: str) -> Iterator[tuple[RandomAccess, ImageIndex]]:
    """An image for reading at any place, and its index; with a bar while that is made."""
    from saverestore.image.access import open_image
    from saverestore.image.index import index_image

    with open_image(image) as access:
        with Bar(access.size, "looking for pages") as bar:
            index = index_image(access, bar.update_to)
        yield access, index


def say(text: str) -> None:
    """One line on standard error."""
    if sys.stderr is not None:
        print(f"pyimage: {plain(text)}", file=sys.stderr)
