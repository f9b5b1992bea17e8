"""A picture of a few kinds of elements, as SVG or PNG.

SVG is written here: whoever shows it has the letters, and a raster in it is a PNG, which zlib makes in a few lines.
For PNG as a whole letters must be drawn, which is Pillow's work (an extra: `pip install 'pysave[picture]'`, Debian's
python3-pil).
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from saverestore.errors import ErrorName, UsageError

if TYPE_CHECKING:
    from PIL import ImageFont

Rgb = NDArray[np.uint8]

FONT_SIZE = 13
BACKGROUND = "#ffffff"
FOREGROUND = "#222222"


@dataclass(frozen=True)
class Rect:
    """A filled rectangle."""

    x: int
    y: int
    width: int
    height: int
    color: str


@dataclass(frozen=True)
class Text:
    """One line of text; `y` is its middle."""

    x: int
    y: int
    text: str
    anchor: Literal["start", "end"] = "start"


@dataclass(frozen=True)
class Raster:
    """Cells, shape (rows, columns, 3), each drawn as a square of `scale` pixels."""

    x: int
    y: int
    cells: Rgb
    scale: int


@dataclass
class Drawing:
    """Elements in the order in which they are drawn, in pixels from the upper left."""

    width: int = 0
    height: int = 0
    elements: list[Rect | Text | Raster] = field(default_factory=list)

    def as_svg(self) -> bytes:
        """The picture as SVG."""
        parts = [
            # As wide as the window where that is narrower: no width and height of its own.
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'style="max-width: {self.width}px" font-family="sans-serif" font-size="{FONT_SIZE}">',
            f'<rect width="100%" height="100%" fill="{BACKGROUND}"/>',
            *map(_svg_of, self.elements),
            "</svg>\n",
        ]
        return "\n".join(parts).encode("utf-8", "replace")

    def as_png(self) -> bytes:
        """The picture as PNG. UsageError without Pillow."""
        require_pillow()
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (self.width, self.height), BACKGROUND)
        draw = ImageDraw.Draw(image)
        font = _font()
        for one in self.elements:
            if isinstance(one, Rect):
                draw.rectangle((one.x, one.y, one.x + one.width - 1, one.y + one.height - 1), fill=one.color)
            elif isinstance(one, Text):
                left, top, right, bottom = draw.textbbox((0, 0), one.text, font=font)
                x = one.x - (right - left if one.anchor == "end" else 0)
                draw.text((x, one.y - (top + bottom) // 2), one.text, fill=FOREGROUND, font=font)
            else:
                cells = one.cells.repeat(one.scale, axis=0).repeat(one.scale, axis=1)
                image.paste(Image.fromarray(cells), (one.x, one.y))
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return out.getvalue()


Encoder = Callable[[Drawing], bytes]


def encoder_for(name: str) -> Encoder:
    """What makes a file of this name from a drawing. UsageError, before any work, when it cannot be had."""
    suffix = PurePath(name).suffix.lower()
    if suffix == ".svg":
        return Drawing.as_svg
    if suffix == ".png":
        require_pillow()
        return Drawing.as_png
    raise UsageError(f"{name}: the name must end in .png or .svg", name=ErrorName.FILE_UNSUITABLE)


def require_pillow() -> None:
    """UsageError, with what to install, when there is no Pillow."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "PNG needs Pillow: install python3-pil, or pip install 'pysave[picture]'; "
            "a FILE whose name ends in .svg needs nothing",
            name=ErrorName.PACKAGE_MISSING,
        ) from error


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    try:
        return ImageFont.load_default(FONT_SIZE)
    except TypeError:  # before 10.1 there is one font of one size, without letters beyond Latin-1
        return ImageFont.load_default()


def _svg_of(one: Rect | Text | Raster) -> str:
    if isinstance(one, Rect):
        return f'<rect x="{one.x}" y="{one.y}" width="{one.width}" height="{one.height}" fill="{one.color}"/>'
    if isinstance(one, Text):
        return (
            f'<text x="{one.x}" y="{one.y}" dominant-baseline="central" text-anchor="{one.anchor}" '
            f'fill="{FOREGROUND}">{escape(one.text)}</text>'
        )
    rows, columns = one.cells.shape[:2]
    data = base64.b64encode(png_of(one.cells)).decode()
    return (
        f'<image x="{one.x}" y="{one.y}" width="{columns * one.scale}" height="{rows * one.scale}" '
        f'preserveAspectRatio="none" style="image-rendering: pixelated" href="data:image/png;base64,{data}"/>'
    )


# PNG: signature, then chunks {length, type, data, CRC-32}: IHDR, IDAT (rows, each after a filter byte 0), IEND.
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">IIBBBBB")
EIGHT_BITS, TRUE_COLOR = 8, 2


def png_of(pixels: Rgb) -> bytes:
    """RGB pixels, shape (height, width, 3), as PNG."""
    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + width * 3), dtype=np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = PNG_HEADER.pack(width, height, EIGHT_BITS, TRUE_COLOR, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
