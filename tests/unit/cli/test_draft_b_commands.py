"""The dialect draft-b as a user meets it: options of pysave, images in pyimage, codecs that are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from stream_samples import golden

from saverestore.cli import pyimage, pysave
from saverestore.errors import ExitCode
from saverestore.stream.codecs import Codec, Coding

ROOT = Path(__file__).parents[3]

WITHOUT_LZ4 = (
    "import sys; sys.modules['lz4.frame'] = None\n"
    "from saverestore.cli import {0}; sys.exit({0}.main(sys.argv[1:]))"
)


def run_without_lz4(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_LZ4.format(command)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.fixture
def asked(monkeypatch):
    """What `pysave` would save with."""
    seen = []
    monkeypatch.setattr(pysave, "_save", lambda arguments, coding: seen.append(coding))
    return seen


@pytest.mark.parametrize(
    ("options", "coding"),
    [
        ([], None),
        (["--format", "xen"], None),
        (["--format", "draft-b"], Coding(Codec.ZSTD, 1)),
        (["--format", "draft-b", "--codec", "none"], Coding()),
        (["--format", "draft-b", "--codec", "lz4:3"], Coding(Codec.LZ4, 3)),
        (["--live", "--format", "draft-b", "--codec", "xor"], Coding(Codec.XOR)),
    ],
)
def test_the_options_say_how_pages_are_coded(asked, options, coding):
    assert pysave.main([*options, "web1", "out.img"]) == 0
    assert asked == [coding]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--codec", "zstd"], "--codec needs --format draft-b"),
        (["--format", "draft-b", "--codec", "xor"], "--codec xor needs --live"),
        (
            ["--format", "draft-b", "--codec", "zip"],
            "no codec 'zip'; there are none, xor, deflate, zstd, lz4",
        ),
        (["--format", "draft-b", "--codec", "zstd:99"], "zstd has levels 1 to 19, not '99'"),
        (["--format", "draft-a"], "is not one of: xen, draft-b"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(asked, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        pysave.main([*options, "web1", "out.img"])
    assert caught.value.code == ExitCode.USAGE
    assert message in capsys.readouterr().err
    assert asked == []


def test_a_codec_that_is_not_installed_is_refused_before_anything_is_done():
    done = run_without_lz4("pysave", "--format", "draft-b", "--codec", "lz4", "web1", "out.img")
    assert done.returncode == ExitCode.USAGE
    assert "lz4 needs the Python package lz4 (Debian: python3-lz4), which is not installed" in done.stderr


def test_an_image_whose_codec_is_not_installed_is_not_called_damaged(tmp_path):
    image = tmp_path / "out.img"
    image.write_bytes(golden("hvm-draft-b-codecs"))
    done = run_without_lz4("pyimage", "verify", str(image))
    assert done.returncode == ExitCode.IMAGE
    assert "python3-lz4" in done.stderr
    assert "DAMAGED" not in done.stdout + done.stderr


def test_pyimage_tells_the_dialect(tmp_path, capsys):
    image = tmp_path / "out.img"
    image.write_bytes(golden("hvm-draft-b-be"))
    assert pyimage.main(["info", str(image)]) == 0
    assert "libxc, version 1 (draft-b, big-endian)" in capsys.readouterr().out
    assert pyimage.main(["verify", str(image)]) == 0


def test_pyimage_finds_a_changed_byte_of_a_page(tmp_path, capsys):
    image = tmp_path / "out.img"
    data = bytearray(golden("pv-draft-b"))
    data[1000] ^= 1
    image.write_bytes(data)
    assert pyimage.main(["verify", str(image)]) == ExitCode.IMAGE
    assert "PAGE_DATA record: damaged: its bytes have the CRC-32" in capsys.readouterr().out
