"""Links of Markdown files that lead nowhere: to a file that is not there, or to a heading that it has not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")


def dead_links(file: Path) -> Iterator[str]:
    """What a file links to that is not there. Links to the web are not followed."""
    for target in LINK.findall(CODE.sub("", FENCE.sub("", file.read_text()))):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, heading = target.partition("#")
        path = (file.parent / name).resolve() if name else file
        if not path.exists() or (heading and heading not in headings_of(path)):
            yield f"{file.name}: {target}"


def headings_of(file: Path) -> set[str]:
    """The headings, as a link names them."""
    titles = re.findall(r"^#+ +(.*)$", FENCE.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
