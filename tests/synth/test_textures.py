import numpy as np
import pytest

from sagecache.synth.textures import (
    PALETTES,
    TILE,
    Print,
    noise_tile,
    pick,
    sample_tile,
    slope_tile,
    soft_step,
    to_display,
    to_linear,
)


def test_noise_has_no_seam():
    tile = noise_tile(3, 4, 1)
    inside = np.abs(np.diff(tile, axis=1)).max()
    assert np.abs(tile[:, 0] - tile[:, -1]).max() <= 1.05 * inside
    assert tile.std() == pytest.approx(0.4, abs=1e-3) and abs(tile.mean()) < 0.01


def test_slopes_are_the_gradient():
    height, slope = noise_tile(3, 3, 11), slope_tile(3, 3, 11)
    along_u = height[10, 21] - height[10, 19]
    along_v = height[11, 20] - height[9, 20]
    assert slope[10, 20, 0] * along_v == pytest.approx(slope[10, 20, 1] * along_u, rel=1e-3)


def test_sampling_hits_texels_wraps_and_interpolates():
    tile = noise_tile(3, 4, 1)
    u = np.array([5, 5 + 3 * TILE, 5 - 2 * TILE, 5.5, TILE - 0.5]) / TILE
    v = np.full(5, 9 / TILE)
    value = sample_tile(tile, u, v)
    np.testing.assert_allclose(value[:3], tile[9, 5], atol=1e-3)
    assert value[3] == pytest.approx((tile[9, 5] + tile[9, 6]) / 2, abs=1e-2)
    assert value[4] == pytest.approx((tile[9, -1] + tile[9, 0]) / 2, abs=1e-2)


def test_long_lists_and_channels_survive_the_fold():
    rng = np.random.default_rng(0)
    u, v = rng.integers(0, TILE, (2, 9001))
    out = sample_tile(slope_tile(3, 3, 11), u / TILE, v / TILE)
    np.testing.assert_allclose(out, slope_tile(3, 3, 11)[v, u], atol=2e-2)


@pytest.mark.parametrize("kind", ["plain", "stripes", "gingham", "checks", "stars", "dots"])
def test_prints_are_shares_periodic_and_fade_when_fine(kind):
    cloth = Print(kind, np.ones(3), 5.0, 0.0, np.zeros(2))
    u, v = np.random.default_rng(1).random((2, 500)).astype(np.float32)
    share = cloth.cover(u, v, 0.001)
    assert share.min() >= 0 and share.max() <= 1
    np.testing.assert_allclose(share, cloth.cover(u + 0.4, v + 0.4, 0.001), atol=2e-3)  # two repeats on
    assert cloth.cover(u, v, 1.0).std() == pytest.approx(0, abs=1e-6)
    assert (share.std() > 0.1) == (kind != "plain")


def test_soft_step_and_colours():
    assert soft_step(np.array([-1.0, 0, 1]), 0.5).tolist() == [0, 0.5, 1]
    colour = np.array([0.2, 0.5, 1.0])
    np.testing.assert_allclose(to_display(to_linear(colour)), colour)
    rng = np.random.default_rng(0)
    for name in PALETTES:
        assert all(0 < channel < 1 for channel in pick(rng, name))
