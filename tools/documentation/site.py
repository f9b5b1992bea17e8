"""The site: `tools/docs` writes the generated pages, and builds docs/ with mkdocs into build/site."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SITE = CHECKOUT / "build" / "site"


def parser() -> argparse.ArgumentParser:
    """What reads the command line."""
    found = argparse.ArgumentParser(prog="docs", description=__doc__)
    found.add_argument("--write", action="store_true", help="write the generated pages, and build no site")
    found.add_argument("--to", metavar="FOLDER", type=Path, default=SITE, help="where the site goes")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write and build: 0 when there is nothing to complain about."""
    options = parser().parse_args(argv)
    if not options.write and not all(map(find_spec, ("mkdocs", "material", "mkdocstrings"))):
        _enter_environment()
    sys.path.insert(0, str(CHECKOUT))
    write()
    return 0 if options.write else build(options.to)


def write() -> None:
    """Write the pages that are made of the code."""
    from documentation.generated import PAGES

    for name, page in PAGES.items():
        (CHECKOUT / name).write_text(page())


def build(folder: Path) -> int:
    """Build the site; warnings are errors: mkdocs' exit code."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    return subprocess.run(
        command, cwd=CHECKOUT, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ).returncode


def _enter_environment() -> None:
    """Become the same program in the Python of the tests, which has mkdocs."""
    from xenlab import environment

    python = environment.ensure()
    os.execv(python, [str(python), str(CHECKOUT / "tools" / "docs"), *sys.argv[1:]])
