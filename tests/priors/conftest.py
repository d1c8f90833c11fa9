"""A family of skeletons that no Gaussian describes: rigid limbs, elbows that bend one way, arms up or not."""

import numpy as np
import pytest
import torch

from sagecache.priors.diffusion_fit import FitConfig, fit
from sagecache.skeleton import COCO17


def make_family(count: int, seed: int) -> np.ndarray:
    """COCO-17 bodies (count, 17, 3), pixels, all joints labeled, upright within 20 degrees."""
    rng = np.random.default_rng(seed)

    def along(start: np.ndarray, angle: np.ndarray, length: float) -> np.ndarray:
        return start + length * np.stack([np.cos(angle), np.sin(angle)], -1)

    points = np.zeros((count, 17, 2))
    points[:, :5] = np.array([[0, -75], [4, -80], [-4, -80], [9, -76], [-9, -76]])
    for side, sign in ((0, 1), (1, -1)):  # left joints have odd numbers and lie at x > 0
        shoulder, hip = np.array([20.0 * sign, -50.0]), np.array([12.0 * sign, 0.0])
        points[:, 5 + side], points[:, 11 + side] = shoulder, hip
        raised = rng.random(count) < 0.5
        lift = np.where(raised, rng.uniform(-80, -30, count), rng.uniform(30, 80, count))
        bend = np.where(raised, -1, 1) * rng.uniform(10, 110, count)
        upper, fore = np.radians(lift), np.radians(lift + bend)
        thigh, shin = np.radians(rng.uniform(10, 80, count)), np.radians(rng.uniform(80, 150, count))
        mirror = np.array([sign, 1])
        points[:, 7 + side] = along(np.zeros(2), upper, 28) * mirror + shoulder
        points[:, 9 + side] = along(np.zeros(2), fore, 24) * mirror + points[:, 7 + side]
        points[:, 13 + side] = along(np.zeros(2), thigh, 32) * mirror + hip
        points[:, 15 + side] = along(np.zeros(2), shin, 28) * mirror + points[:, 13 + side]
    angle = np.radians(rng.uniform(-20, 20, count))
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    placed = rng.uniform(0.5, 2, (count, 1, 1)) * (points @ turn.transpose(0, 2, 1))
    placed += rng.uniform(100, 300, (count, 1, 2))
    return np.concatenate([placed, np.full((count, 17, 1), 2.0)], -1).astype(np.float32)


@pytest.fixture(scope="session")
def family():
    return make_family


@pytest.fixture(scope="session")
def fitted():
    """A prior of 300 bodies after a short training, and its report."""
    torch.set_num_threads(1)
    return fit(make_family(300, 0), COCO17, FitConfig(steps=200, rotation=15.0))
