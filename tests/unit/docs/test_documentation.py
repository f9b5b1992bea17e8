"""The documentation: generated pages are up to date, links lead somewhere, the site builds, the README is short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from documentation.generated import PAGES
from documentation.links import dead_links, headings_of

ROOT = Path(__file__).parents[3]
FILES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_made_of_the_code_is_up_to_date(name):
    assert (ROOT / name).read_text() == PAGES[name](), "run ./tools/docs --write"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_somewhere(file):
    assert list(dead_links(file)) == []


def test_a_dead_link_would_be_found(tmp_path):
    (tmp_path / "there.md").write_text("# A heading, with `code`\n\n## Sub\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#sub) [c](gone.md) [d](there.md#gone) [e](#f) `[g](no-link)`\n"
    )
    assert list(dead_links(page)) == ["page.md: gone.md", "page.md: there.md#gone", "page.md: #f"]
    assert headings_of(tmp_path / "there.md") == {"a-heading-with-code", "sub"}


def test_the_readme_is_two_screens():
    assert len((ROOT / "README.md").read_text().split()) < 1800


@pytest.mark.parametrize("name", ["speed", "compression", "memory-use"])
def test_every_table_of_figures_has_the_day_on_which_they_were_measured(name):
    text = (ROOT / f"docs/explanation/{name}.md").read_text()
    before = re.split(r"^\|[-:| ]+\|$", text, flags=re.MULTILINE)
    for part, table in pairwise(before):
        figures = re.search(r"^\|[^|\n]*(?:\|[^|\n]*)*\| *[\d.,]+%? *\|", table, re.MULTILINE)
        if figures and figures.start() < 200:
            own = re.split(r"^## |\|\n\n", part, flags=re.MULTILINE)[-1]
            assert re.search(r"\b20\d\d-\d\d-\d\d\b", own), own


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert named == pages


@pytest.mark.filterwarnings("default")
def test_the_site_builds_without_a_warning_and_without_the_network(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -e '.[docs]'")
    site = tmp_path / "site"
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/docs", "--to", site],
        cwd=tmp_path,
        env=os.environ | proxies,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {str(path.relative_to(site).with_suffix(".md")) for path in site.rglob("*.html")} - {"404.md"}
    assert pages == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    fetched = {
        address
        for path in site.rglob("*.html")
        for address in re.findall(
            r"<(?:script|img|link)[^>]*(?:src|href)=\"?(https?://[^\s\">]+)", path.read_text()
        )
    }
    assert fetched == set()
