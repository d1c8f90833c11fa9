"""Degradation of clean rendered pictures while training; the target look's own ranges are never consulted."""

from __future__ import annotations

import cv2
import numpy as np

NOISE = np.random.default_rng(5).standard_normal((640, 640)).astype(np.float32)
FULL_WIDTH = 192  # blur is given in pixels of a picture this wide


def degrade(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Clean uint8 picture -> degraded uint8 picture: colour, contrast, exposure, blur, noise, gamma."""
    x = image.astype(np.float32) / 255
    if rng.random() < 0.3:
        x = x[..., rng.permutation(3)]
    if rng.random() < 0.3:
        x = x @ (np.eye(3) * 0.6 + 0.4 * rng.dirichlet([1, 1, 1], 3)).T.astype(np.float32)
    pivot, tint = np.float32(rng.uniform(0.25, 0.55)), 1 + rng.normal(0, 0.1, 3).astype(np.float32)
    contrast = np.float32(rng.uniform(0.4, 1.15))
    exposure = np.float32(np.exp(rng.uniform(np.log(0.38), np.log(1.25))))
    x = x * (tint * contrast * exposure) + pivot * (1 - contrast) * exposure
    if rng.random() < 0.85:
        sigma = rng.uniform(0.35, 1.6) * image.shape[1] / FULL_WIDTH
        x = cv2.GaussianBlur(x, (0, 0), max(sigma, 0.2))
    if rng.random() < 0.25:
        x = x * 0.2 + 0.8 * x.mean(2, keepdims=True)
    h, w = image.shape[:2]
    i, j = rng.integers(0, 640 - h), rng.integers(0, 640 - w)
    noise = NOISE[i : i + h, j : j + w, None]
    if rng.random() < 0.3:
        noise = 2 * cv2.GaussianBlur(noise, (0, 0), 0.8)[..., None]
    x = x + noise * np.float32(rng.uniform(0, 0.05) if rng.random() < 0.8 else 0.004)
    # A table for the gamma: a power of every pixel is the dearest step.
    levels = np.clip(x * 255 + 0.5, 0, 255).astype(np.uint8)
    table = np.round(255 * (np.arange(256) / 255) ** (1 / rng.uniform(0.85, 1.4))).astype(np.uint8)
    return cv2.LUT(levels, table)
