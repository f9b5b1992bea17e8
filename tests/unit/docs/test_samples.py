"""What the pages show of the commands' output, and which version they name."""

from __future__ import annotations

import json
import re
import sys
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

import saverestore
from saverestore.testing import MemoryDomain, MemorySave

ROOT = Path(__file__).parents[3]
sys.path += [str(ROOT / "tests/vectors"), str(ROOT / "tests/unit/operations")]

UUID = "00000000-0000-4000-8000-000000000001"
CONFIG = {
    "c_info": {"type": "pvh", "name": "web1", "uuid": UUID},
    "b_info": {"max_vcpus": 2, "target_memkb": 65536, "max_memkb": 65536},
}
DISK = {"vdev": "xvda", "path": "/dev/vg0/web1", "bytes": 10 << 30}


def shown_in(page: str, command: str) -> str:
    """What a page shows after this command line, until the next one or the end of the block."""
    text = (ROOT / "docs" / page).read_text()
    return re.search(rf"^\$ {re.escape(command)}\n(.*?)(?=^```|^\$ )", text, flags=re.DOTALL | re.MULTILINE)[
        1
    ]


def save_sample(image: str) -> None:
    """What docs/how-to/images.md shows: an in-memory guest of 64 MiB, half of it zero, saved live."""
    from fake_host import FakeHost, FakeToolstack

    from saverestore.engine.progress import Silence
    from saverestore.operations.requests import SaveRequest
    from saverestore.operations.save import save_domain

    class ConfiguredToolstack(FakeToolstack):
        def config_of(self, _domain: object) -> SimpleNamespace:
            return SimpleNamespace(to_json=lambda: json.dumps(CONFIG).encode(), raw=CONFIG)

    domain = MemoryDomain.pvh(16384)
    frames = domain.p2m[domain.data_pfns()]
    domain.frames[frames[:8192]] = 0
    domain.frames[frames[8192:9216]] = 7
    host = FakeHost(MemorySave(domain), ConfiguredToolstack())
    host.disks = [DISK]
    save_domain(SaveRequest("web1", image, live=True), Silence(), host=host)
    domain.close()


def comparable(text: str) -> str:
    """Without what differs from run to run: host, time, digests, and lengths that depend on them."""
    text = re.sub(r"\b[0-9a-f]{32}\b", "HEX", text)
    text = re.sub(r"^(  host|  time|file|PROVENANCE|PAGE_DATA) .*", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"\(\d+ bytes\)", "", text)
    return text.strip()


def test_the_output_of_pyimage_info_is_that_of_this_version(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)
    from saverestore.cli.pyimage.command import main

    monkeypatch.chdir(tmp_path)
    save_sample("web1.img")
    assert main(["info", "web1.img"]) == 0
    shown = shown_in("how-to/images.md", "pyimage info web1.img")
    assert comparable(shown) == comparable(capsys.readouterr().out)
    assert f"\n  version       {saverestore.__version__}\n" in shown


def test_the_topmost_version_of_the_changelog_is_the_projects():
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0].split(":")[0] == saverestore.__version__


def test_the_packages_version_and_the_man_pages_date_are_the_projects():
    from saverestore.cli.pages import DATE

    text = (ROOT / "debian/changelog").read_text()
    assert text.startswith(f"pysave ({saverestore.__version__}) ")
    when = parsedate_to_datetime(re.search(r"^ -- .*>  (.+)$", text, flags=re.MULTILINE)[1])
    assert f"{when:%Y-%m-%d}" == DATE


def test_names_of_packages_in_the_documentation_have_the_projects_version():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert set(re.findall(r"pysave_(\d+\.\d+\.\d+)", page.read_text())) <= {saverestore.__version__}, page
