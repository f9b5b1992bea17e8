"""`import saverestore`: cheap, and what its pages show is what it does."""

from __future__ import annotations

import doctest
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import saverestore
from saverestore.testing import MemoryDomain, MemorySave

ROOT = Path(__file__).parents[3]
sys.path += [str(ROOT / "tests/vectors"), str(ROOT / "tests/unit/operations")]


def test_importing_it_loads_nothing_else():
    loaded = "[m for m in sys.modules if m.startswith(('saverestore.', 'numpy', 'pyxc'))]"
    code = f"import sys, saverestore; print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_every_name_that_it_offers_is_there_and_documented():
    for name in set(saverestore.__all__) - {"__version__"}:
        assert getattr(saverestore, name).__doc__, name
    assert set(saverestore._HOME) == set(saverestore.__all__) - {"__version__"}
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        saverestore.load  # noqa: B018


def test_the_example_in_its_docstring_does_what_it_shows(tmp_path, monkeypatch):
    from image_files import Sent, hvm_image, page

    hvm_image(tmp_path / "web1.img", [Sent([(0x1000, 0, page(1)), (0x1001, 0, page(2))])])
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(saverestore)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_the_examples_of_the_how_to_do_what_they_show(tmp_path, monkeypatch):
    """On a host without Xen: one domain in memory, and a restore that only notes what was asked for."""
    pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)
    from fake_host import FakeHost

    from saverestore.operations import restore, save
    from saverestore.operations.requests import RestoreRequest

    domain = MemoryDomain.pvh(nr_pfns=1024)

    @contextmanager
    def opened_host(*, process_ends: bool = False):
        yield FakeHost(MemorySave(domain))

    def restored(request: RestoreRequest, _progress: object, report: saverestore.RestoreReport):
        return saverestore.Restored(2, request.name or "web1", report)

    monkeypatch.setattr(save, "opened_host", opened_host)
    monkeypatch.setattr(restore, "restore_domain", restored)
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(ROOT / "docs/how-to/python.md"), module_relative=False)
    domain.close()
    assert (result.failed, result.attempted > 4) == (0, True)


def test_a_final_state_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        saverestore.save("web1", "a.img", final_state="frozen")  # type: ignore[arg-type]


def test_an_image_is_verified_and_a_damaged_one_found(tmp_path):
    from image_files import Sent, hvm_image, page

    path = hvm_image(tmp_path / "web1.img", [Sent([(0, 0, page(1)), (1, 0, page(2))])])
    with saverestore.open_image(path) as image:
        assert image.pfns() == [0, 1]
        assert dict(image.pages()) == {0: page(1), 1: page(2)}
        assert image.provenance == {"tool": "pysave", "host": "here"}
        assert image.verify().is_whole
        with pytest.raises(saverestore.UsageError, match="no pfn 0x5"):
            image.page(5)
    image.close()
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(saverestore.ImageError):
        saverestore.open_image(path)
