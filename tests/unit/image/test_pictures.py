"""What a picture of memory is made of, and that it can be looked at."""

from __future__ import annotations

import dataclasses
import io
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from image_files import Sent, hvm_image, page

from saverestore.cli import pyimage
from saverestore.image.access import open_image
from saverestore.image.drawing import Drawing, Raster, Rect, Text, png_of
from saverestore.image.facts import Kind, gather, page_hashes
from saverestore.image.index import index_image
from saverestore.image.picture import COLORS, Grid, bands, cells, draw, grid_for

RANDOM = np.random.default_rng(5)
NOISE = [RANDOM.bytes(4096) for _ in range(40)]


def facts_of(path):
    with open_image(str(path)) as access:
        return gather(access, index_image(access))


@pytest.fixture
def image(tmp_path):
    entries = [(0, 0, page(1)), (1, 0, bytes(4096)), (2, 0, NOISE[0]), (3, 0, NOISE[0]), (4, 2, page(3))]
    entries += [(5, 12, page(4)), (6, 13, None), (7, 14, None), (8, 15, None), (9, 1, bytes(4096))]
    entries += [(0x10000 + i, 0, noise) for i, noise in enumerate(NOISE[1:])]
    return hvm_image(tmp_path / "a.img", [Sent(entries)])


def test_each_page_is_of_the_kind_that_its_type_and_content_make_it(image):
    facts = facts_of(image)
    assert [Kind(kind).name for kind in facts.kinds[:10]] == [
        *("DATA", "ZERO", "DUPLICATE", "DUPLICATE", "L2", "L4_PINNED"),
        *("BROKEN", "ALLOCATE_ONLY", "NOT_THERE", "L1"),
    ]
    assert facts.packed[1] == facts.packed[9] == 0  # zeroes take nothing
    assert (facts.packed[11:] == 255).all()  # noise takes all
    assert 39 * 4096 <= facts.packed_bytes <= 45 * 4096


def test_pages_that_differ_anywhere_have_other_hashes():
    pages = np.zeros((4096 * 2, 4096), dtype=np.uint8)
    for i in range(4096):
        pages[i, i] = 0x80
        pages[4096 + i, i] = 1
    assert len(np.unique(page_hashes(pages))) == len(pages)
    assert page_hashes(pages[:1]) == page_hashes(pages[:1].copy())


def test_cells_have_the_color_of_what_most_of_their_pages_are(image):
    facts = facts_of(image)
    by_kind, by_size = cells(facts, Grid(64, 1), 0, 0)
    assert by_kind.shape == by_size.shape == (1, 64, 3)
    assert by_kind[0, 5].tobytes().hex() == COLORS[Kind.L4_PINNED][0][1:]
    assert by_kind[0, 20].tobytes().hex() == by_size[0, 20].tobytes().hex() == COLORS[Kind.NOT_THERE][0][1:]
    by_kind, _ = cells(facts, Grid(64, 4), 0, 0)
    assert by_kind[0, 0].tobytes().hex() == COLORS[Kind.DUPLICATE][0][1:]
    assert by_kind[0, 2].tobytes().hex() == COLORS[Kind.NOT_THERE][0][1:]


def test_rows_without_anything_become_a_strip_that_names_them(image):
    facts = facts_of(image)
    assert grid_for(facts) == Grid(64, 1)
    assert bands(facts, Grid(64, 1)) == [(0, 0), (0x400, 0x400)]
    texts = [element.text for element in draw(facts, "title").elements if isinstance(element, Text)]
    assert "no pages from pfn 0x40 to 0xffff" in texts
    assert "0x10000 (256 MiB)" in texts
    assert "other content: 40 (0.2 MiB)" in texts
    assert "title; each cell is a page" in texts


def test_a_large_domain_has_cells_of_several_pages():
    from saverestore.image.facts import Facts

    pfns = np.arange(1 << 21, dtype=np.uint64)
    kinds = np.full(1 << 21, Kind.DATA, dtype=np.uint8)
    facts = Facts(pfns, kinds, kinds, 1)
    assert grid_for(facts) == Grid(256, 16)
    drawing = draw(facts, "8 GiB")
    assert drawing.height < 1200
    assert any(isinstance(one, Raster) and one.cells.shape == (512, 256, 3) for one in drawing.elements)


def test_memory_that_compresses_to_almost_nothing_has_a_size_that_is_not_zero(image):
    facts = dataclasses.replace(facts_of(image), packed_bytes=41 << 10)
    texts = [element.text for element in draw(facts, "title").elements if isinstance(element, Text)]
    assert any(text.endswith(" of pages compress to 41 KiB") for text in texts)


def test_an_empty_domain_can_be_drawn(tmp_path):
    drawing = draw(facts_of(hvm_image(tmp_path / "a.img", [])), "empty")
    assert drawing.width > drawing.height > 0


def test_png_pixels_are_read_back_by_another_library():
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    pixels = RANDOM.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_of(pixels)))), pixels)


def test_both_formats_show_the_same_elements():
    cells = np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8)
    drawing = Drawing(60, 40, [Rect(0, 0, 10, 10, "#0000ff"), Raster(20, 20, cells, 4), Text(2, 30, "<&>")])
    svg = ElementTree.fromstring(drawing.as_svg())
    assert [element.tag.rpartition("}")[2] for element in svg] == ["rect", "rect", "image", "text"]
    assert svg[3].text == "<&>"
    assert (svg[2].get("width"), svg[2].get("height")) == ("8", "4")
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    pixels = np.asarray(Image.open(io.BytesIO(drawing.as_png())))
    assert pixels.shape == (40, 60, 3)
    assert pixels[5, 5].tolist() == [0, 0, 255]
    assert pixels[23, 23].tolist() == [255, 0, 0]
    assert pixels[20, 24].tolist() == [0, 255, 0]
    assert pixels[39, 59].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", [".svg", ".png", ".PNG"])
def test_map_makes_the_format_that_the_name_says(image, tmp_path, capsys, suffix):
    if suffix != ".svg":
        pytest.importorskip("PIL")
    out = tmp_path / f"memory{suffix}"
    assert pyimage.main(["map", str(image), "-o", str(out)]) == 0
    assert out.read_bytes().startswith(b"<svg" if suffix == ".svg" else b"\x89PNG")
    assert re.search(r"184.0 KiB of pages, 16\d.\d KiB compressed", capsys.readouterr().err)


def test_map_says_which_formats_there_are_and_what_png_needs(image, tmp_path, capsys, monkeypatch):
    assert pyimage.main(["map", str(image), "-o", str(tmp_path / "memory.jpg")]) == 2
    assert ".png or .svg" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert pyimage.main(["map", str(image), "-o", str(tmp_path / "memory.png")]) == 2
    assert "python3-pil" in capsys.readouterr().err
    assert not (tmp_path / "memory.png").exists()
    assert pyimage.main(["map", str(image), "-o", str(tmp_path / "memory.svg")]) == 0
