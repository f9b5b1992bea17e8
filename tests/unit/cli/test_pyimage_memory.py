"""`pyimage cat` and `pyimage dump` as a user runs them."""

from __future__ import annotations

import itertools
import os
import signal
import stat

import pytest
from image_files import Sent, hvm_image, page

from saverestore.cli import pyimage


@pytest.fixture
def image(tmp_path):
    letters = b"a page of text. " * 256
    entries = [(0, 0, page(7)), (1, 0, bytes(4096)), (3, 1, letters), (0x12, 15, None), (0x20, 0, page(9))]
    return hvm_image(tmp_path / "a.img", [Sent(entries)])


def test_cat_writes_one_page(image, capfdbinary):
    assert pyimage.main(["cat", "--pfn", "0x20", str(image)]) == 0
    out, err = capfdbinary.readouterr()
    assert (out, err) == (page(9), b"")


def test_cat_writes_a_range_with_zeroes_for_what_is_not_there_and_says_so(image, capfdbinary):
    assert pyimage.main(["cat", "--pfn", "0-4", str(image)]) == 0
    out, err = capfdbinary.readouterr()
    assert out == page(7) + bytes(8192) + b"a page of text. " * 256 + bytes(4096)
    assert err == b"pyimage: 2 pages not in the image, written as zeroes\n"


def test_cat_shows_pages_in_hexadecimal_with_their_addresses(image, capsys):
    assert pyimage.main(["cat", "--pfn", "2-3", "--hex", str(image)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pfn 0x2  XTAB  not in the image",
        "pfn 0x3  L1TAB",
        "000000003000  61 20 70 61 67 65 20 6f  66 20 74 65 78 74 2e 20  |a page of text. |",
        "*",
    ]


@pytest.mark.parametrize("pfns", ["x", "1-", "-1", "3-2", "0x", "1-2-3", str(1 << 52), "٣"])
def test_cat_takes_pfns_only(image, capsys, pfns):
    with pytest.raises(SystemExit) as caught:
        pyimage.main(["cat", f"--pfn={pfns}", str(image)])
    assert caught.value.code == 2
    assert "--pfn" in capsys.readouterr().err


def test_cat_says_when_the_image_has_no_such_page(image, capsys):
    for pfns, text in (
        ("0x12", "in the image: it is XTAB"),
        ("4-9", "no page of pfn 0x4"),
        ("0x21", "pfn 0x20"),
    ):
        assert pyimage.main(["cat", "--pfn", pfns, str(image)]) == 2
        assert text in capsys.readouterr().err


def test_a_pipe_cannot_be_read_here_and_there(capsys):
    assert pyimage.main(["cat", "--pfn", "1", "-"]) == 2
    assert "standard input does not allow random access" in capsys.readouterr().err


def test_dump_makes_a_sparse_file_with_each_page_at_its_place(image, tmp_path, capsys):
    out = tmp_path / "memory"
    assert pyimage.main(["dump", str(image), "-o", str(out)]) == 0
    data = out.read_bytes()
    assert len(data) == 0x21 * 4096
    assert data[:4096] == page(7)
    assert data[-4096:] == page(9)
    assert data[3 * 4096 : 4 * 4096] == b"a page of text. " * 256
    assert data.count(0) > 0x1D * 4096
    assert out.stat().st_blocks * 512 <= 5 * 4096
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert capsys.readouterr().err == f"pyimage: {out}: 4 pages, 132.0 KiB with holes\n"


def test_a_file_that_exists_is_replaced_when_asked_only(image, tmp_path, capsys):
    out = tmp_path / "memory"
    out.write_bytes(b"mine")
    assert pyimage.main(["dump", str(image), "-o", str(out)]) == 2
    assert out.read_bytes() == b"mine"
    assert "--overwrite" in capsys.readouterr().err
    assert pyimage.main(["dump", str(image), "-o", str(out), "--overwrite"]) == 0
    assert out.stat().st_size == 0x21 * 4096


def test_an_image_is_not_overwritten_with_what_is_made_of_it(image, tmp_path, capsys):
    whole = image.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(image)
    for out in (image, link):
        assert pyimage.main(["dump", str(image), "-o", str(out), "--overwrite"]) == 2
        assert "is the image; give another name" in capsys.readouterr().err
    assert image.read_bytes() == whole


def test_dump_needs_a_file_that_can_have_holes(image, capsys):
    assert pyimage.main(["dump", str(image), "-o", "/dev/null"]) == 2
    assert "not a regular file" in capsys.readouterr().err


def test_a_damaged_image_leaves_no_dump(image, tmp_path, capsys):
    image.write_bytes(image.read_bytes()[:-30])
    assert pyimage.main(["dump", str(image), "-o", str(tmp_path / "memory")]) == 4
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize(("command", "name"), [("dump", "memory"), ("core", "core"), ("map", "map.svg")])
def test_an_interrupt_at_any_read_of_the_image_leaves_nothing(
    image, tmp_path, monkeypatch, capsys, command, name
):
    real = os.preadv
    for number in range(1000):
        reads = itertools.count()

        def read(*arguments, number=number, reads=reads):
            if next(reads) == number:
                signal.raise_signal(signal.SIGTERM)
            return real(*arguments)

        monkeypatch.setattr("os.preadv", read)
        code = pyimage.main([command, str(image), "-o", str(tmp_path / name)])
        if next(reads) <= number:
            assert code == 0
            break
        assert code == 130
        assert list(tmp_path.iterdir()) == [image]
        assert capsys.readouterr().err == "pyimage: interrupted by SIGTERM\n"
    assert number > 2


def test_an_interrupted_or_failed_dump_leaves_nothing(image, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.pwrite", lambda *_: signal.raise_signal(signal.SIGINT))
    assert pyimage.main(["dump", str(image), "-o", str(tmp_path / "memory")]) == 130
    assert list(tmp_path.iterdir()) == [image]

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr("os.pwrite", full)
    assert pyimage.main(["dump", str(image), "-o", str(tmp_path / "memory")]) == 5
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [image]
