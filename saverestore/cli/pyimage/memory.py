"""`pyimage cat` and `pyimage dump`: the domain's memory as it is."""

from __future__ import annotations

import argparse
import re
import sys
from typing import TYPE_CHECKING

from saverestore.cli.pyimage.common import (
    RANDOM_ACCESS,
    Bar,
    Subparsers,
    add_command,
    add_image,
    add_output,
    new_file,
    opened,
    say,
    size_text,
)
from saverestore.errors import ExitCode, UsageError
from saverestore.kernels.page import PAGE_SIZE
from saverestore.words import counted

if TYPE_CHECKING:
    from saverestore.image.index import ImageIndex
    from saverestore.transport.random_access import RandomAccess

PFNS = re.compile(r"(0x[0-9a-f]+|[0-9]+)(?:-(0x[0-9a-f]+|[0-9]+))?", re.IGNORECASE | re.ASCII)
PFN_BITS = 52


def add_to(commands: Subparsers) -> None:
    """Declare `cat` and `dump`."""
    cat = add_command(
        commands,
        "cat",
        run_cat,
        "write the contents of some pages to standard output",
        f"{RANDOM_ACCESS} Only these pages are read, and the index of the image. If a live save sent a page several "
        "times, the last version is written. Page tables of PV guests hold pfns, as in the image.",
    )
    add_image(cat)
    cat.add_argument(
        "--pfn",
        metavar="N[-M]",
        required=True,
        type=pfns_from,
        help="page frame number, or a range with both ends; one that starts with 0x is hexadecimal",
    )
    cat.add_argument("--hex", action="store_true", help="a hexadecimal dump, with addresses and page types")
    dump = add_command(
        commands,
        "dump",
        run_dump,
        "write all memory into a file, the page of pfn n at offset n * 4096",
        f"{RANDOM_ACCESS} FILE is sparse: where no page is, and where pages are zero, it has holes.",
    )
    add_image(dump)
    add_output(dump, "the file to be made, mode 0600")


def pfns_from(text: str) -> tuple[int, int]:
    """Read "N" or "N-M" as the first and last pfn."""
    found = PFNS.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"must be a pfn or a range of pfns, such as 17 or 0x10-0x1f, not '{text}'"
        )
    first = _number(found[1])
    last = first if found[2] is None else _number(found[2])
    if first > last:
        raise argparse.ArgumentTypeError(f"the range {text} ends before it begins")
    if last >> PFN_BITS:
        raise argparse.ArgumentTypeError(f"{text} is more than {PFN_BITS} bits, which a pfn cannot be")
    return first, last


def _number(text: str) -> int:
    return int(text, 16) if text.lower().startswith("0x") else int(text)


def run_cat(arguments: argparse.Namespace) -> int:
    """Write the pages: raw, or as hexadecimal text. Pages that are not in the image are zero, with a message."""
    if not arguments.hex and sys.stdout.isatty():
        raise UsageError(
            "raw pages cannot be written to a terminal; --hex prints them, or redirect standard output"
        )
    with opened(arguments.image) as (access, index):
        _cat(access, index, arguments.pfn, as_hex=arguments.hex)
    return ExitCode.DONE


def _cat(access: RandomAccess, index: ImageIndex, pfns: tuple[int, int], *, as_hex: bool) -> None:
    from saverestore.image.hexdump import lines_of
    from saverestore.image.pages import check_range, pages_from

    check_range(index, *pfns)
    nr_absent = 0
    for batch in pages_from(access, index.pages, *pfns):
        nr_absent += int((~batch.there).sum())
        if as_hex:
            for text in lines_of(batch):
                print(text)
        else:
            sys.stdout.buffer.write(batch.pages.data)
    if nr_absent and not as_hex:
        sys.stdout.flush()
        say(f"{counted(nr_absent, 'page')} not in the image, written as zeroes")


def run_dump(arguments: argparse.Namespace) -> int:
    """Write all memory into a sparse file."""
    with opened(arguments.image) as (access, index):
        from saverestore.image.dump import dump
        from saverestore.image.pages import count_with_data

        nr_pages = count_with_data(index.pages)
        with new_file(arguments) as file, Bar(nr_pages * PAGE_SIZE, "dumping") as bar:
            nr_pages, size = dump(access, index, file.sink.fileno(), arguments.output, bar.update_to)
    say(f"{arguments.output}: {counted(nr_pages, 'page')}, {size_text(size)} with holes")
    return ExitCode.DONE
