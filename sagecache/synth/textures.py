"""Colours and seamless textures: palettes, tileable noise, fabric prints.

Colours are display RGB in 0..1; ``to_linear`` and ``to_display`` use a square law, close to sRGB and cheap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

TILE = 256  # pixels of a tileable texture
NURSERY = np.array(
    [
        [0.93, 0.91, 0.86], [0.96, 0.95, 0.93], [0.72, 0.82, 0.90], [0.90, 0.76, 0.78], [0.78, 0.85, 0.74],
        [0.95, 0.87, 0.66], [0.80, 0.75, 0.88], [0.62, 0.70, 0.78], [0.86, 0.79, 0.69], [0.55, 0.66, 0.62],
        [0.93, 0.78, 0.67], [0.47, 0.53, 0.63], [0.70, 0.86, 0.84],
    ]
)  # fmt: skip
BRIGHT = np.array(
    [
        [0.82, 0.22, 0.22], [0.20, 0.36, 0.74], [0.22, 0.56, 0.34], [0.93, 0.78, 0.26], [0.92, 0.92, 0.90],
        [0.18, 0.19, 0.23], [0.56, 0.32, 0.58], [0.90, 0.52, 0.24], [0.25, 0.30, 0.42], [0.55, 0.62, 0.68],
        [0.16, 0.52, 0.58], [0.85, 0.45, 0.50],
    ]
)  # fmt: skip
_RANDOM = np.random.default_rng(77)
PALETTES = {
    "nursery": NURSERY,
    "bright": BRIGHT,
    "any": np.concatenate(
        [NURSERY, BRIGHT, _RANDOM.random((24, 3)), np.repeat(_RANDOM.random((8, 1)), 3, axis=1)]
    ),
}
WOOD = np.array([[0.78, 0.62, 0.44], [0.62, 0.44, 0.29], [0.86, 0.76, 0.62], [0.48, 0.34, 0.24]])


def pick(rng: np.random.Generator, palette: str, spread: float = 0.04) -> np.ndarray:
    """A palette colour (3,), moved by a normal spread."""
    colours = PALETTES[palette]
    return np.clip(colours[rng.integers(len(colours))] + rng.normal(0, spread, 3), 0.02, 0.98)


def to_linear(display):
    """Display RGB 0..1 -> linear light."""
    return np.square(display)


def to_display(linear):
    """Linear light -> display RGB; negative light is black."""
    return np.sqrt(np.maximum(linear, 0))


@lru_cache(maxsize=8)
def noise_tile(cells: int, octaves: int, seed: int) -> np.ndarray:
    """Tileable smooth noise (TILE, TILE), about -1..1: band-limited random phases, so it has no seam."""
    rng = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(TILE) * TILE
    radius = np.hypot(frequency[:, None], frequency[None])
    top = cells * 2.0 ** (octaves - 1)
    amplitude = np.where((radius >= cells * 0.5) & (radius <= top), 1 / np.maximum(radius, 1) ** 1.6, 0)
    field = np.fft.ifft2(amplitude * np.exp(2j * np.pi * rng.random((TILE, TILE)))).real
    return (field / (2.5 * field.std())).astype(np.float32)


@lru_cache(maxsize=8)
def slope_tile(cells: int, octaves: int, seed: int) -> np.ndarray:
    """Gradient (TILE, TILE, 2) of noise_tile along (u, v), unit standard deviation: cloth wrinkles."""
    height = noise_tile(cells, octaves, seed)
    slope = np.stack(
        [np.roll(height, -1, 1) - np.roll(height, 1, 1), np.roll(height, -1, 0) - np.roll(height, 1, 0)], -1
    )
    return (slope / slope.std()).astype(np.float32)


def sample_tile(tile: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear wrap-around lookup of a tile at u, v (N,) in tiles -> (N,) or (N, C)."""
    # remap takes maps of at most 32767 rows: fold the list into a rectangle
    count = len(u)
    width = 4096
    rows = -(-count // width)
    maps = np.zeros((2, rows * width), np.float32)
    maps[0, :count], maps[1, :count] = (u % 1) * TILE, (v % 1) * TILE
    maps = maps.reshape(2, rows, width)
    out = cv2.remap(tile, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return out.reshape(rows * width, *tile.shape[2:])[:count]


def mix(first, second, share: np.ndarray) -> np.ndarray:
    """Colours (3,) or (N, 3) blended by share (N, 1) of the second, float32."""
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return first + (second - first) * share.astype(np.float32)


def soft_step(value: np.ndarray, width) -> np.ndarray:
    """0 below -width, 1 above +width, smooth between."""
    x = np.clip(value / (2 * width) + 0.5, 0, 1)
    return x * x * (3 - 2 * x)


@dataclass(frozen=True)
class Print:
    """A two-colour pattern of cloth: kind, its second colour, repeats per unit length, phase."""

    kind: str
    colour: np.ndarray
    repeats: float
    angle: float
    phase: np.ndarray

    def cover(self, u: np.ndarray, v: np.ndarray, pixel: float) -> np.ndarray:
        """How much of the second colour shows at (u, v) (N,); pixel: size of a pixel in the same unit."""
        if self.kind == "plain":
            return np.zeros_like(u)
        c, s = float(np.cos(self.angle)), float(np.sin(self.angle))
        x = (c * u - s * v + float(self.phase[0])) * self.repeats
        y = (s * u + c * v + float(self.phase[1])) * self.repeats
        blur = max(pixel * self.repeats, 0.02)  # a stripe must not be sharper than a pixel
        fade = float(np.clip(1.5 - 2.0 * blur, 0, 1))  # finer than the pixel grid: fade to the mean
        return fade * self._shape(x, y, blur) + (1 - fade) * 0.35

    def _shape(self, x, y, blur):
        wave_x, wave_y = np.abs(x % 1 - 0.5), np.abs(y % 1 - 0.5)
        if self.kind == "stripes":
            return soft_step(wave_x - 0.3, blur)
        if self.kind == "gingham":
            return 0.5 * (soft_step(wave_x - 0.25, blur) + soft_step(wave_y - 0.25, blur))
        if self.kind == "checks":
            a, b = soft_step(wave_x - 0.25, blur), soft_step(wave_y - 0.25, blur)
            return a + b - 2 * a * b
        if self.kind == "stars":
            shift = 0.5 * (np.floor(y) % 2)
            dx, dy = (x + shift) % 1 - 0.5, y % 1 - 0.5
            star = 0.17 + 0.06 * np.cos(5 * np.arctan2(dy, dx))
            return soft_step(star - np.hypot(dx, dy), blur)
        shift = 0.5 * (np.floor(y) % 2)  # dots, in staggered rows
        return soft_step(0.2 - np.hypot((x + shift) % 1 - 0.5, y % 1 - 0.5), blur)


def sample_print(rng, base, palette, kinds, repeats) -> Print:
    """A print whose second colour is a lighter, darker or other colour of the palette."""
    if rng.random() < 0.5:
        colour = np.clip(base * rng.uniform(0.6, 0.85) if base.mean() > 0.45 else base + 0.3, 0, 1)
    else:
        colour = pick(rng, palette)
    angle = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.03)
    return Print(str(rng.choice(kinds)), colour, float(rng.uniform(*repeats)), float(angle), rng.random(2))
