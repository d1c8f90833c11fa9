import math

import numpy as np
import pytest
import torch
from host import Operations

from sagecache.data.style import StyleTransfer, transfer_colour_, transfer_spectrum_
from sagecache.errors import SagecacheError


def photos(count: int, height: int = 40, width: int = 30, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with some texture, (count, 3, H, W) uint8."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(20, 235, (count, 3, 5, 4))).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    noise = torch.from_numpy(rng.normal(0, 6, (count, 3, height, width))).float()
    return (smooth + noise).round().clamp(0, 255).to(torch.uint8)


def fda_by_hand(image: np.ndarray, style: np.ndarray, size: float) -> np.ndarray:
    """Whole transforms, centred as the paper does it, one channel (H, W)."""
    height, width = image.shape
    band = math.floor(size * min(height, width))
    spectrum = np.fft.fftshift(np.fft.fft2(image.astype(np.float64)))
    target = np.fft.fftshift(np.fft.fft2(style.astype(np.float64)))
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    centre_y, centre_x = height // 2, width // 2
    for v in range(-band, band + 1):
        for u in range(-band, band + 1):
            amplitude[centre_y + v, centre_x + u] = np.abs(target[centre_y + v, centre_x + u])
    return np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phase))).real


@pytest.mark.parametrize("shape", [(40, 30), (33, 47), (32, 32)])
@pytest.mark.parametrize("size", [0.01, 0.07, 0.3, 0.49])
def test_fda_agrees_with_whole_transforms(shape, size):
    image, style = photos(2, *shape).float(), photos(2, *shape, seed=1).float()
    apply = torch.tensor([True, False])
    mixed = transfer_spectrum_(image.clone(), style, size, apply)
    for channel in range(3):
        expected = fda_by_hand(image[0, channel].numpy(), style[0, channel].numpy(), size)
        np.testing.assert_allclose(mixed[0, channel].numpy(), expected, atol=5e-3)
    assert torch.equal(mixed[1], image[1])
    assert (mixed[0] - image[0]).abs().mean() > 5


def test_fda_keeps_the_phase_and_high_frequencies():
    image, style = photos(1).float(), photos(1, seed=1).float()
    mixed = transfer_spectrum_(image.clone(), style, 0.1, torch.tensor([True]))
    before, after = np.fft.fft2(image.numpy()), np.fft.fft2(mixed.numpy())
    turned_back = np.abs(after) * np.exp(1j * np.angle(before))
    np.testing.assert_allclose(turned_back, after, atol=2)  # of values up to 3e5
    v, u = (np.abs(np.fft.fftfreq(n) * n) for n in (40, 30))
    high = (v[:, None] > 3.5) | (u > 3.5)
    np.testing.assert_allclose(after[..., high], before[..., high], atol=2)
    assert np.abs(after - before)[..., ~high].mean() > 1000


def test_the_style_of_oneself_changes_nothing():
    images = photos(1)
    for transfer in (StyleTransfer(fda=1.0, fda_size=0.2), StyleTransfer(colour=1.0)):
        assert torch.equal(transfer(images, images), images)


def test_colour_transfer_reaches_mean_and_spread():
    image, style = photos(3).float(), photos(3, seed=1).float()
    moved = transfer_colour_(image.clone(), style, torch.tensor([True, True, False]))
    for b in range(2):
        for channel in range(3):
            wanted, found = style[b, channel].numpy(), moved[b, channel].numpy()
            assert found.mean() == pytest.approx(wanted.mean(), abs=0.01)
            assert found.std() == pytest.approx(wanted.std(), rel=1e-3)
    assert torch.equal(moved[2], image[2])


def test_a_flat_image_stays_flat_and_finite():
    flat = torch.full((1, 3, 16, 16), 90.0)
    flat[0, 0, 0, 0] = 91  # one grain, which must not become the picture
    style = photos(1, 16, 16).float()
    moved = transfer_colour_(flat.clone(), style, torch.tensor([True]))
    assert moved.isfinite().all()
    assert moved.std((-2, -1)).max() < 0.3
    assert (moved.mean((-2, -1)) - style.mean((-2, -1))).abs().max() < 0.1


def test_each_image_draws_its_style_and_its_chance():
    torch.manual_seed(0)
    images = photos(1).expand(600, -1, -1, -1)
    styles = torch.stack([torch.full((3, 40, 30), level, dtype=torch.uint8) for level in (40, 120, 200)])
    means = StyleTransfer(colour=0.5)(images, styles).float().mean((1, 2, 3))
    shares = [((means - level).abs() < 6).float().mean().item() for level in (40, 120, 200)]
    original = images[0].float().mean()
    assert min(abs(original - level) for level in (40, 120, 200)) > 2  # else shares would run together
    changed = (means - original).abs() > 0.5
    assert 0.43 < changed.float().mean() < 0.57
    assert all(0.12 < share for share in shares)


def test_probabilities_are_independent():
    torch.manual_seed(0)
    images, styles = photos(1).expand(400, -1, -1, -1), photos(1, seed=1)
    results = StyleTransfer(fda=0.5, colour=0.5, fda_size=0.05)(images, styles)
    kinds, counts = torch.unique(results.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 4 and counts.min() > 70  # nothing, either, both


def test_seeds_repeat_and_inputs_stay():
    images, styles = photos(4), photos(5, seed=1)
    kept = images.clone(), styles.clone()
    transfer = StyleTransfer(fda=0.5, colour=0.5)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(transfer(images, styles))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(images, kept[0]) and torch.equal(styles, kept[1])
    assert results[0].dtype == torch.uint8 and results[0].shape == images.shape


def test_the_order_of_memory_does_not_matter():
    images, styles = photos(4), photos(5, seed=1)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        transfer = StyleTransfer(fda=1.0, colour=0.5)
        results.append(transfer(images.to(memory_format=layout), styles.to(memory_format=layout)))
    assert torch.equal(*results)


def test_off_costs_nothing():
    images, styles = photos(2), photos(2, seed=1)
    with Operations() as operations:
        assert StyleTransfer()(images, styles) is images
    assert operations.seen == []


@pytest.mark.parametrize("wrong", [dict(fda=1.2), dict(colour=-0.1), dict(fda_size=0.5), dict(fda_size=0)])
def test_bad_settings_are_named(wrong):
    with pytest.raises(SagecacheError, match=f"style.{next(iter(wrong))}"):
        StyleTransfer(**wrong)


def test_without_styles_it_says_so():
    with pytest.raises(ValueError, match="no image"):
        StyleTransfer(colour=1.0)(photos(1), photos(1)[:0])


def test_the_host_never_waits_for_the_device():
    images = photos(2)
    with Operations() as operations:
        StyleTransfer(fda=0.5, colour=0.5)(images, images)
    assert operations.waiting == set() and len(operations.seen) > 20
