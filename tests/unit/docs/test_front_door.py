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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"final_state": "frozen"}, "final_state: 'frozen' is not one of: destroyed, running, paused"),
        ({"toolstack": "xl"}, "toolstack: 'xl' is not one of: auto, bare, libxl"),
        ({"cache": "none"}, "cache: 'none' is not one of: auto, direct, page"),
        ({"digest": "md5"}, "digest: 'md5' is not one of: xxh3, sha256, blake3, none"),
        ({"compress": 0}, "compress: 0 is not a level of zstd, 1 to 19"),
        ({"compress": 20}, "compress: 20 is not a level of zstd, 1 to 19"),
        ({"suspend_timeout_s": 0.5}, "suspend_timeout_s: must be at least 1, not 0.5"),
        ({"live": True, "max_rounds": 0}, "max_rounds: must be at least 1, not 0"),
        ({"live": True, "max_time_s": 0.0}, "max_time_s: must be greater than 0, not 0.0"),
        ({"live": True, "downtime_s": float("nan")}, "downtime_s: must be greater than 0, not nan"),
        ({"downtime_s": 0.3}, "downtime_s: is for live saves only"),
        ({"max_rounds": 3}, "max_rounds: is for live saves only"),
        ({"max_time_s": 3.0}, "max_time_s: is for live saves only"),
    ],
)
def test_a_save_with_a_value_that_makes_no_sense_is_refused_before_xen_is_opened(wrong, said):
    with pytest.raises(saverestore.UsageError) as refused:
        saverestore.save("web1", "a.img", **wrong)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"toolstack": "xl"}, "toolstack: 'xl' is not one of: auto, bare, libxl"),
        ({"name": ""}, "name: must not be empty"),
    ],
)
def test_a_restore_with_a_value_that_makes_no_sense_is_refused_before_the_image_is_opened(wrong, said):
    with pytest.raises(saverestore.UsageError) as refused:
        saverestore.restore("there-is-none.img", **wrong)
    assert str(refused.value) == said


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
