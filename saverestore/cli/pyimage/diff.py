"""`pyimage diff`: what differs between two images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

from saverestore.cli.arguments import FILE, complete
from saverestore.cli.pyimage.common import (
    DIFFERENT,
    DIFFERENT_MEANING,
    Bar,
    Subparsers,
    add_command,
    line,
    opened,
    size_text,
)
from saverestore.errors import ExitCode
from saverestore.kernels.page import PAGE_SIZE
from saverestore.words import counted, plain

if TYPE_CHECKING:
    from saverestore.image.diff import Change, Difference, PageSet

RUNS_SHOWN = 12
RUNS_A_LINE = 6


def add_to(commands: Subparsers) -> None:
    """Declare `diff`."""
    command = add_command(
        commands,
        "diff",
        run,
        "print what differs between two images",
        "Memory, registers, other records and configuration. Exits with 0 if both hold the same domain in the same "
        "state, with 1 if not. Facts about the image itself (format, host, time, digest) are shown and do not count; "
        "nor do pages without content. A and B are files, plain or in seekable zstd as pysave writes it.",
        [(DIFFERENT, DIFFERENT_MEANING)],
    )
    for name, metavar, text in (
        ("image_a", "A", "file with an image"),
        ("image_b", "B", "file with another one"),
    ):
        complete(command.add_argument(name, metavar=metavar, help=text), FILE)
    command.add_argument(
        "--json", action="store_true", help="print JSON, for programs, with all ranges of pfns"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print what differs."""
    with opened(arguments.image_a) as a, opened(arguments.image_b) as b:
        from saverestore.image.diff import as_dict, compare
        from saverestore.image.pages import count_with_data

        at_most = min(count_with_data(a[1].pages), count_with_data(b[1].pages))
        with Bar(at_most * PAGE_SIZE, "comparing") as bar:
            found = compare(a, b, bar.update_to)
    if arguments.json:
        names = {"a": arguments.image_a, "b": arguments.image_b}
        print(json.dumps(names | as_dict(found), indent=2, ensure_ascii=True))
    else:
        print(as_text(found, arguments.image_a, arguments.image_b))
    return ExitCode.DONE if found.same_domain else DIFFERENT


def as_text(found: Difference, name_a: str, name_b: str) -> str:
    """The difference as lines, in sections; what does not differ has none."""
    sections = [[line("A", name_a), line("B", name_b)], list(_pages(found))]
    sections += [list(_changes(vcpu, registers)) for vcpu, registers in found.registers.items()]
    sections.append(list(_changes("records", found.records)))
    sections.append(list(_changes("configuration", found.configuration)))
    sections.append(list(_changes("about the image", found.about)))
    verdict = "the same domain in the same state" if found.same_domain else "different"
    sections.append([line("verdict", verdict)])
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _pages(found: Difference) -> Iterator[str]:
    yield line("pages", f"{found.pages_same} the same ({size_text(found.pages_same * PAGE_SIZE)})")
    for label, one in (("changed", found.changed), ("only in A", found.only_a), ("only in B", found.only_b)):
        if one.nr_pages:
            yield from _page_set(label, one)


def _page_set(label: str, one: PageSet) -> Iterator[str]:
    yield line(f"  {label}", f"{one.nr_pages} ({size_text(one.nr_pages * PAGE_SIZE)})")
    yield line("", ", ".join(f"{name} {count}" for name, count in one.by_type.items()))
    runs = one.runs[:RUNS_SHOWN].tolist()
    texts = [f"{first:#x}" if first == last else f"{first:#x}-{last:#x}" for first, last in runs]
    for begin in range(0, len(texts), RUNS_A_LINE):
        yield line("", "  ".join(texts[begin : begin + RUNS_A_LINE]))
    if len(one.runs) > RUNS_SHOWN:
        yield line("", f"and {counted(len(one.runs) - RUNS_SHOWN, 'more range')}; --json has all")


def _changes(title: str, changes: list[Change]) -> Iterator[str]:
    if not changes:
        return
    yield plain(title)
    width = max(len(plain(change.path)) for change in changes)
    for change in changes:
        yield f"  {plain(change.path):<{width}}  {_value(change.a)} → {_value(change.b)}"


def _value(value: Any) -> str:
    if isinstance(value, Enum):  # Absent
        return str(value.value)
    if isinstance(value, bool) or not isinstance(value, int):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return plain(text)
    return f"{value:#x}" if value > 9 else str(value)
