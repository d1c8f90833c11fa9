"""Photometric changes: what each key does to pixels, and RandAugment's operations one by one."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from sagecache.data.photometric import OPERATIONS, randaugment, recolour
from sagecache.data.views import ViewConfig, make_view

SIZE = (96, 128)
BOX = (60.0, 40.0, 90.0, 140.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photo(height: int = 240, width: int = 220, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise of middling contrast."""
    coarse = rng(seed).integers(40, 200, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def dot_image(x: float, y: float, size: tuple[int, int], sigma: float) -> np.ndarray:
    """A bright Gaussian dot on black, centred at (x, y), RGB."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(dot).astype(np.uint8)[..., None], 3, axis=2)


# --- what each key does --------------------------------------------------------------------------


def test_noise_has_the_stated_spread_and_no_colour():
    grey = np.full((300, 300, 3), 128, dtype=np.uint8)
    spreads = []
    for seed in range(40):
        view = make_view(grey, (0, 0, 300, 300), (128, 128), 1.0, ViewConfig(noise=8), rng(seed)).image
        assert (view == view[..., :1]).all()
        assert abs(view.mean() - 128) < 1
        spreads.append(view[..., 0].std())
    assert np.max(spreads) < 8.6 and 3 < np.mean(spreads) < 5, "uniform between 0 and 8"


def test_cut_outs_are_flat_and_few():
    grey = np.full((300, 300, 3), 5, dtype=np.uint8)
    covered = []
    for seed in range(40):
        view = make_view(grey, (0, 0, 300, 300), SIZE, 1.0, ViewConfig(cutout=2), rng(seed)).image
        colours = np.unique(view.reshape(-1, 3), axis=0)
        assert len(colours) <= 3
        covered.append((view != 5).any(-1).mean())
    assert 0 in covered and max(covered) < 2 * 36 * 36 / (96 * 128) + 1e-6


def test_grey_loses_colour():
    view = make_view(photo(), BOX, SIZE, 1.25, ViewConfig(grey=1), rng()).image
    assert (view == view[..., :1]).all()


def test_blur_grows_with_the_view():
    """The same picture at twice the size is blurred over twice the pixels: as strong to the eye."""
    image = dot_image(100, 100, (200, 200), 2.0)
    spread = []
    for size in ((128, 128), (256, 256)):
        view = make_view(image, (0, 0, 200, 200), size, 1.0, ViewConfig(blur=1), rng(2)).image
        weights = view[..., 0] / view[..., 0].sum()
        rows, _ = np.mgrid[: size[1], : size[0]]
        spread.append(np.sqrt((weights * (rows - (size[1] - 1) / 2) ** 2).sum()))
    assert spread[1] / spread[0] == pytest.approx(2, rel=0.08)


# --- RandAugment ---------------------------------------------------------------------------------


class Scripted:
    """Stands for a generator: chosen operations, then coins."""

    def __init__(self, choices: list[int], coin: float = 0.0) -> None:
        self.choices, self.coin = choices, coin

    def integers(self, low: int, high: int, count: int) -> np.ndarray:
        assert (low, high, count) == (0, len(OPERATIONS), len(self.choices))
        return np.array(self.choices)

    def random(self) -> float:
        return self.coin


IDENTITY, AUTOCONTRAST, EQUALIZE, POSTERIZE, SOLARIZE, JPEG, COLOUR, CONTRAST, BRIGHTNESS, SHARPNESS = range(
    10
)
STRONGER, WEAKER = 0.2, 0.8  # coins


def applied(operation: int, magnitude: float, coin: float = STRONGER, image: np.ndarray | None = None):
    """The picture before and after, as integers."""
    image = photo() if image is None else image
    before = image.copy()
    after = randaugment(image, 1, magnitude, Scripted([operation], coin))
    assert after.shape == image.shape and after.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    return before.astype(int), after.astype(int)


def test_the_identity():
    before, after = applied(IDENTITY, 1.0)
    np.testing.assert_array_equal(after, before)


def test_autocontrast_stretches_each_channel_over_all_levels():
    before, after = applied(AUTOCONTRAST, 0.5)
    low, high = before.min((0, 1)), before.max((0, 1))
    np.testing.assert_allclose(after, (before - low) * 255 / (high - low), atol=1)


def test_equalize_spreads_the_levels_evenly():
    _, after = applied(EQUALIZE, 0.5)
    for channel in range(3):
        deciles = np.percentile(after[..., channel], np.arange(10, 100, 10))
        np.testing.assert_allclose(deciles, np.arange(10, 100, 10) * 2.55, atol=6)


@pytest.mark.parametrize(("magnitude", "bits"), [(0, 8), (0.5, 6), (1, 4)])
def test_posterize_keeps_the_upper_bits(magnitude, bits):
    before, after = applied(POSTERIZE, magnitude)
    np.testing.assert_array_equal(after, before >> (8 - bits) << (8 - bits))


@pytest.mark.parametrize("magnitude", [0, 0.4, 1])
def test_solarize_inverts_what_is_brighter(magnitude):
    before, after = applied(SOLARIZE, magnitude)
    np.testing.assert_array_equal(
        after, np.where(before >= round(256 * (1 - magnitude)), 255 - before, before)
    )


def test_jpeg_is_a_file_read_back_with_its_colours_in_place():
    """About what Pillow's own encoder does at that quality, worse the stronger."""
    before, light = applied(JPEG, 0)
    _, heavy = applied(JPEG, 1)
    data = io.BytesIO()
    Image.fromarray(photo()).save(data, "JPEG", quality=20)
    expected = np.asarray(Image.open(data)).astype(int)
    assert np.abs(light - before).mean() < 2 < np.abs(heavy - before).mean()
    assert np.abs(heavy - expected).mean() < 3


@pytest.mark.parametrize(("coin", "factor"), [(STRONGER, 1.45), (WEAKER, 0.55)])
def test_factors_of_colour_contrast_and_brightness(coin, factor):
    before, after = applied(BRIGHTNESS, 0.5, coin)
    np.testing.assert_allclose(after, (before * factor).clip(0, 255), atol=1)
    before, after = applied(CONTRAST, 0.5, coin)
    mean = (before @ (0.299, 0.587, 0.114)).mean()
    np.testing.assert_allclose(after, (mean + factor * (before - mean)).clip(0, 255), atol=2)
    before, after = applied(COLOUR, 0.5, coin)
    grey = (before @ (0.299, 0.587, 0.114))[..., None]
    np.testing.assert_allclose(after, (grey + factor * (before - grey)).clip(0, 255), atol=2)


def test_sharpness_raises_or_lowers_detail():
    edges = [np.abs(np.diff(applied(SHARPNESS, 1.0, coin)[1], axis=1)).mean() for coin in (STRONGER, WEAKER)]
    plain = np.abs(np.diff(photo().astype(int), axis=1)).mean()
    assert edges[1] < plain < edges[0]


def test_operations_follow_each_other_in_the_drawn_order():
    image = photo()
    both = randaugment(image, 2, 0.6, Scripted([SOLARIZE, POSTERIZE]))
    one = randaugment(image, 1, 0.6, Scripted([SOLARIZE]))
    np.testing.assert_array_equal(both, randaugment(one, 1, 0.6, Scripted([POSTERIZE])))
    other = randaugment(image, 2, 0.6, Scripted([POSTERIZE, SOLARIZE]))
    assert (both != other).any()


def test_every_operation_is_drawn_and_the_generator_alone_decides():
    image = photo(64, 48)
    pictures = [randaugment(image, 1, 0.7, rng(seed)) for seed in range(120)]
    again = [randaugment(image, 1, 0.7, rng(seed)) for seed in range(120)]
    assert all(np.array_equal(one, two) for one, two in zip(pictures, again, strict=True))
    # six operations of one outcome, four of two
    assert len({picture.tobytes() for picture in pictures}) == 14


def test_recolour_without_keys_changes_nothing():
    image = photo()
    np.testing.assert_array_equal(recolour(image, ViewConfig(), rng()), image)


def test_randaugment_comes_before_cut_outs():
    """A cut-out stays flat in its own colour: it was not there yet when levels were spread."""
    grey = np.full((128, 96, 3), 5, dtype=np.uint8)
    for seed in range(20):
        changed = recolour(grey, ViewConfig(randaugment=2, cutout=2), rng(seed))
        assert len(np.unique(changed.reshape(-1, 3), axis=0)) <= 3
