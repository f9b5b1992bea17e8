"""What the subcommands share: arguments, progress, text that is harmless on a terminal, the file they write."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saverestore.cli import arguments, common
from saverestore.errors import ExitCode, UsageError
from saverestore.words import counted, plain

if TYPE_CHECKING:
    from saverestore.image.index import ImageIndex
    from saverestore.transport.newfile import NewFile
    from saverestore.transport.random_access import RandomAccess

DIFFERENT = 1
"""What diff exits with when the images differ, as diff(1) does. No failure, so no `ExitCode`."""

CODES = (ExitCode.DONE, ExitCode.USAGE, ExitCode.IMAGE, ExitCode.IO, ExitCode.INTERRUPTED)
DIFFERENT_MEANING = "the images differ"

ALSO_COMPRESSED = "IMAGE may be compressed with zstd, gzip or lz4; '-' is standard input."
RANDOM_ACCESS = "IMAGE is a file, plain or in seekable zstd as pysave writes it."

MIB = 1 << 20

LABEL_WIDTH = 16
HELP_WIDTH = 100

Run = Callable[[argparse.Namespace], int]
Subparsers = Any  # argparse's own class for them is private


def add_command(
    commands: Subparsers,
    name: str,
    run: Run,
    text: str,
    more: str = "",
    codes: Sequence[tuple[int, str]] = (),
) -> argparse.ArgumentParser:
    """Declare a subcommand; `text`: one line for the list of commands, `more`: what --help says besides.

    `codes`: exit codes that only this one has. The caller adds arguments, and then calls `arguments.finish`.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=textwrap.fill(f"{text[0].upper()}{text[1:]}. {more}", HELP_WIDTH),
        epilog=arguments.exit_codes(CODES, codes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    command.set_defaults(run=run)
    return command


def add_image(command: argparse.ArgumentParser, text: str = "file with the image", **more: Any) -> None:
    """Declare IMAGE."""
    image = command.add_argument("image", metavar="IMAGE", help=text, **more)
    arguments.complete(image, arguments.FILE)


def add_output(command: argparse.ArgumentParser, text: str) -> None:
    """Declare -o and --overwrite."""
    output = command.add_argument("-o", "--output", metavar="FILE", required=True, help=text)
    arguments.complete(output, arguments.FILE)
    command.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def line(label: str, value: object) -> str:
    """One line of a report."""
    return f"{label:<{LABEL_WIDTH}}{plain(str(value))}"


def size_text(length_bytes: int) -> str:
    """Return a size as people read it: 1.5 GiB, 17 bytes."""
    if length_bytes < 1024:
        return counted(length_bytes, "byte")
    size = length_bytes / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def file_size_text(path: Path) -> str:
    """The length of a file, and what it takes on the disk where that is less."""
    status = path.stat()
    on_disk = status.st_blocks * 512
    text = size_text(status.st_size)
    return (
        f"{text}, {size_text(on_disk)} on disk"
        if size_text(on_disk) != text and on_disk < status.st_size
        else text
    )


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
        from saverestore.cli.progress import bar_options

        tqdm.monitor_interval = 0  # as in cli/progress.py
        self._bar = tqdm(leave=False, delay=0.5, desc=text, **bar_options(total_bytes))

    def update_to(self, done_bytes: int) -> None:
        """Show that so many bytes are done."""
        if self._bar is not None:
            self._bar.update((done_bytes - self._done) / MIB)
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
        raise UsageError(f"{output} is the image; give another name")
    with NewFile(output, overwrite=arguments.overwrite) as file:
        yield file
        file.sync()
        file.publish()


@contextmanager
def opened(image: str) -> Iterator[tuple[RandomAccess, ImageIndex]]:
    """An image for random access, and its index; with a bar while that is made."""
    from saverestore.image.access import open_image
    from saverestore.image.index import index_image

    with open_image(image) as access:
        with Bar(access.size, "indexing pages") as bar:
            index = index_image(access, bar.update_to)
        yield access, index


def say(text: str) -> None:
    """One line on standard error; see `common.say`."""
    common.say(f"pyimage: {text}")
