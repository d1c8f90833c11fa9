"""Sheets of pictures: text, fitting into a cell, titles and captions, grids. Knows nothing of bodies."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sagecache.geometry.affine import Size, resize_affine

Colour = tuple[int, int, int]

BACKGROUND: Colour = (24, 26, 31)
INK: Colour = (236, 238, 242)
MUTED: Colour = (150, 156, 168)
MARGIN = 10


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a sheet: image (H, W, 3) uint8 RGB with a title above and a caption below."""

    image: np.ndarray
    title: str = ""
    caption: str = ""


class Text(NamedTuple):
    """A line of text that starts at x, with its top at y (pixels); size is the font's, in pixels."""

    line: str
    x: float
    y: float
    size: int = 14
    colour: Colour = INK


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # Pillow's own Aileron: the same on every machine


def text_width(text: str, size: int = 14) -> int:
    """Width in pixels that write() will need."""
    return int(np.ceil(_font(size).getlength(text)))


def write(image: np.ndarray, texts: Sequence[Text]) -> np.ndarray:
    """A copy of image (H, W, 3) uint8 RGB with lines of text on it."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    for text in texts:
        pen.text((text.x, text.y), text.line, font=_font(text.size), fill=text.colour)
    return np.array(canvas)


def shortened(text: str, width: int, size: int = 14) -> str:
    """text, or as much of it as fits into width pixels with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    keep = len(text)
    while keep and text_width(text[:keep].rstrip() + "...", size) > width:
        keep -= 1
    return text[:keep].rstrip() + "..."


def fit(image: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge or reduce image as much as size (width, height) allows, at its own aspect ratio.

    Returns the picture and shown_from_image (3, 3). Draw afterwards, so that lines stay sharp.
    """
    height, width = image.shape[:2]
    factor = min(size[0] / width, size[1] / height)
    shown = max(1, round(width * factor)), max(1, round(height * factor))
    mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, shown, interpolation=mode), resize_affine((width, height), shown)


def titled(tile: Tile) -> np.ndarray:
    """The tile's image with its title above and its caption below, on the sheet's background.

    Text wider than the image is cut. Space for a line is taken only where there is text.
    """
    height, width = tile.image.shape[:2]
    above, below = 22 if tile.title else 0, 20 if tile.caption else 0
    framed = np.full((height + above + below, width, 3), BACKGROUND, dtype=np.uint8)
    framed[above : above + height] = tile.image
    title = Text(shortened(tile.title, width, 15), 0, 0, 15)
    caption = Text(shortened(tile.caption, width, 13), 0, above + height + 3, 13, MUTED)
    return write(framed, [title, caption])


def grid(tiles: Sequence[Tile], columns: int) -> np.ndarray:
    """Tiles row by row on one sheet (H, W, 3) uint8: cells as wide as their column, as high as their row."""
    if not tiles or columns < 1:
        raise ValueError(f"a sheet needs tiles and columns, got {len(tiles)} and {columns}")
    pictures = [titled(tile) for tile in tiles]
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    widths = [max(row[j].shape[1] for row in rows if j < len(row)) for j in range(len(rows[0]))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    sheet_size = (
        sum(heights) + MARGIN * (len(heights) + 1),
        sum(widths) + MARGIN * (len(widths) + 1),
    )
    sheet = np.full((*sheet_size, 3), BACKGROUND, dtype=np.uint8)
    top = MARGIN
    for row, row_height in zip(rows, heights, strict=True):
        left = MARGIN
        for picture, width in zip(row, widths, strict=False):
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += width + MARGIN
        top += row_height + MARGIN
    return sheet


def stack(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Sheets one below the other, the narrower ones filled up with background."""
    width = max(sheet.shape[1] for sheet in sheets)
    filled = [np.full((sheet.shape[0], width, 3), BACKGROUND, dtype=np.uint8) for sheet in sheets]
    for page, sheet in zip(filled, sheets, strict=True):
        page[:, : sheet.shape[1]] = sheet
    return np.concatenate(filled)
