"""`pyimage map`: a picture of a domain's memory."""

from __future__ import annotations

import argparse
from pathlib import Path
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
from saverestore.errors import ExitCode
from saverestore.kernels.page import PAGE_SIZE
from saverestore.words import plain

if TYPE_CHECKING:
    from saverestore.image.index import ImageIndex


def add_to(commands: Subparsers) -> None:
    """Declare `map`."""
    command = add_command(
        commands,
        "map",
        run,
        "draw a picture of the domain's memory",
        f"{RANDOM_ACCESS} The picture shows what each page is (page table of which level, zero, duplicate, "
        "absent) and how well it "
        "compresses, as PNG (which needs Pillow: python3-pil) or SVG.",
    )
    add_image(command)
    add_output(command, "the picture to be made; its name ends in .png or .svg")


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture."""
    from saverestore.image.drawing import encoder_for

    encoder = encoder_for(arguments.output)  # before minutes of reading
    with opened(arguments.image) as (access, index):
        from saverestore.image.facts import gather
        from saverestore.image.pages import count_with_data
        from saverestore.image.picture import draw

        nr_bytes = count_with_data(index.pages) * PAGE_SIZE
        with new_file(arguments) as file:
            with Bar(nr_bytes, "reading pages") as bar:
                facts = gather(access, index, bar.update_to)
            file.sink.write(encoder(draw(facts, _title(arguments.image, index))))
    say(f"{arguments.output}: {size_text(nr_bytes)} of pages, {size_text(facts.packed_bytes)} compressed")
    return ExitCode.DONE


def _title(image: str, index: ImageIndex) -> str:
    kind = (
        {"X86_PV": "PV", "X86_HVM": "HVM or PVH", "ARM64": "arm64"}[index.domain.type.name]
        if index.domain
        else "?"
    )
    creation = (index.config or {}).get("c_info")
    name = creation.get("name") if isinstance(creation, dict) else None
    return plain(f"{Path(image).name}: {kind} domain{f' {name}' if name else ''}")
