"""`pyimage` in everyday use: many images at once, sizes of files, mistakes on the command line."""

from __future__ import annotations

import json
import re

import pytest
from stream_samples import golden

from saverestore.cli.pyimage import main
from saverestore.cli.pyimage.common import size_text


def test_verify_reads_many_images_and_goes_through_folders(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "b.img").write_bytes(golden("hvm-v3"))
    (folder / "a.img").write_bytes(golden("pv-v3"))
    (folder / "notes.txt").write_text("no image at all")
    alone = tmp_path / "alone.img"
    alone.write_bytes(golden("pv-v3"))
    assert main(["verify", str(folder), str(alone)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        str(path) for path in (folder / "a.img", folder / "b.img", alone)
    ]
    assert all(": whole: " in line for line in lines)


def test_verify_of_many_exits_with_the_first_failure_and_reads_the_others(tmp_path, capsys):
    good, cut = tmp_path / "good.img", tmp_path / "cut.img"
    good.write_bytes(golden("pv-v3"))
    cut.write_bytes(golden("pv-v3")[:-8])
    assert main(["verify", str(tmp_path / "absent.img"), str(cut), str(good)]) == 2
    said = capsys.readouterr()
    assert "absent.img" in said.err
    assert "cut.img" in said.out and "good.img: whole" in said.out
    assert main(["verify", "--json", str(cut), str(good)]) == 4
    assert [one["whole"] for one in json.loads(capsys.readouterr().out)] == [False, True]


def test_verify_of_a_folder_without_an_image_is_wrong_usage(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no image at all")
    assert main(["verify", str(tmp_path)]) == 2
    assert "there is no image in this directory" in capsys.readouterr().err


def test_info_names_the_compression_and_the_size_of_the_file(tmp_path, capsys):
    image, packed = tmp_path / "a.img", tmp_path / "a.zst"
    image.write_bytes(golden("pv-v3"))
    assert main(["convert", str(image), "-o", str(packed), "--compress", "zstd"]) == 0
    size = packed.stat().st_size
    assert f"({image}: {image.stat().st_size / 1024:.1f} KiB" in capsys.readouterr().err
    assert main(["info", str(packed)]) == 0
    found = re.search(r"^file +(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    assert found[1].startswith(f"{size} bytes" if size < 1024 else f"{size / 1024:.1f} KiB")
    assert found[1].endswith("compressed with zstd")
    assert main(["info", str(image)]) == 0
    assert "not compressed" in capsys.readouterr().out


def test_pages_are_not_compressed_twice(tmp_path, capsys):
    image = tmp_path / "a.img"
    image.write_bytes(golden("pv-v3"))
    options = ["--to", "draft-b", "--compress", "zstd"]
    assert main(["convert", str(image), "-o", str(tmp_path / "b"), *options]) == 2
    assert "would compress them twice; use --codec none" in capsys.readouterr().err
    assert main(["convert", str(image), "-o", str(tmp_path / "b"), *options, "--codec", "none"]) == 0


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["info"], "pyimage: IMAGE is missing; see 'pyimage info --help'"),
        (["info", "--bwlimit", "a.img"], "pyimage: unknown option --bwlimit; see 'pyimage info --help'"),
        (
            ["convert", "a", "-o", "b", "--to", "x"],
            "pyimage: --to: 'x' is not one of: xen, draft-b; see 'pyimage convert --help'",
        ),
        (["frobnicate"], None),
    ],
)
def test_a_mistake_is_one_line(words, line, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line is None or said == line


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (3 << 30, "3.0 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_a_size_has_one_unit_and_one_byte_is_one(length, text):
    assert size_text(length) == text


def test_a_failure_of_a_file_is_not_taken_for_one_of_standard_output(tmp_path, capsys, monkeypatch):
    image = tmp_path / "a.img"
    image.write_bytes(golden("pv-v3"))

    def vanish(path):
        path.unlink()
        path.stat()

    monkeypatch.setattr("saverestore.cli.pyimage.info.file_size_text", vanish)
    assert main(["info", str(image)]) == 5
    assert capsys.readouterr().err == f"pyimage: {image}: No such file or directory\n"
