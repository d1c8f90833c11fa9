"""Labeled images in the colours and the light of unlabeled ones: Fourier and colour-statistics transfer.

For a domain gap that shows in tone (another camera, another ward), not in shape: nothing moves, so that
annotations stay true. Works on a whole batch, on the device, without the host's waiting; knows no network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.geometry.precision import full_precision
from sagecache.strict import share

MAX_GAIN = 4.0  # of contrast by channel: a flat channel has no structure to bring out, only noise


class StyleTransfer(nn.Module):
    """Gives labeled images the style of unlabeled ones, with a probability each.

    fda: probability of Fourier transfer. fda_size: its L, in (0, .5): half side of the square of low
    frequencies, as a share of the image's shorter side (.01 to .1 in the paper; at 96 px .02 is b = 1).
    colour: probability of colour transfer. Drawn independently; where both fall on an image it takes both
    from one style image, colour first. What is 0 costs nothing, both 0 return the images as they are.
    """

    def __init__(self, fda: float = 0.0, fda_size: float = 0.02, colour: float = 0.0) -> None:
        super().__init__()
        share("style.fda", fda)
        share("style.colour", colour)
        if not 0 < fda_size < 0.5:
            raise SagecacheError(f"style.fda_size is {fda_size}, it must be between 0 and .5", fix="Try .02")
        self.fda, self.fda_size, self.colour = fda, fda_size, colour

    @torch.no_grad()
    def forward(self, images: Tensor, styles: Tensor) -> Tensor:
        """images (B, 3, H, W) uint8, labeled; styles (N, 3, H, W) uint8, weak unlabeled views, N > 0.

        Each image draws its own style. Returns (B, 3, H, W) uint8; the input is not changed.
        """
        if not (self.fda or self.colour):
            return images
        if not len(styles):
            raise ValueError("no image to take a style from")
        chosen = torch.randint(len(styles), (len(images),), device=images.device)
        changed, style = _floats(images), _floats(styles[chosen])
        if self.colour:
            transfer_colour_(changed, style, self._drawn(images, self.colour))
        if self.fda:
            transfer_spectrum_(changed, style, self.fda_size, self._drawn(images, self.fda))
        return changed.round_().clamp_(0, 255).to(images.dtype)

    @staticmethod
    def _drawn(images: Tensor, probability: float) -> Tensor:
        return torch.rand(len(images), device=images.device) < probability


@full_precision
def transfer_colour_(images: Tensor, styles: Tensor, apply: Tensor) -> Tensor:
    """Mean and standard deviation of each RGB channel, over the whole image, taken from the style.

    (x - mean_x) sd_s / sd_x + mean_s: the colour transfer of Reinhard et al. 2001, in RGB rather than in
    their decorrelated space: a change of contrast and balance such as cameras differ by, and no conversion
    there and back. It is not AdaIN, which has the same formula for the features of a trained encoder
    and needs a trained decoder; on pixels the formula moves colours and nothing else.

    images (B, 3, H, W) float, grey levels, changed in place and not clipped; styles likewise; apply (B,)
    bool. The gain is at most 4, at least 1/4.
    """
    mean, spread = _statistics(images)
    style_mean, style_spread = _statistics(styles)
    gain = (style_spread / spread).clamp(1 / MAX_GAIN, MAX_GAIN)
    apply = apply[:, None, None, None]
    gain = torch.where(apply, gain, 1)
    return images.mul_(gain).add_(torch.where(apply, style_mean - mean * gain, 0))


@full_precision
def transfer_spectrum_(images: Tensor, styles: Tensor, size: float, apply: Tensor) -> Tensor:
    """FDA: amplitudes of the lowest frequencies taken from the style, all phases kept.

    Yang and Soatto, CVPR 2020 (arXiv 2004.05498), eq. 2: the square of frequencies |u|, |v| <= b,
    b = floor(size min(H, W)), of each channel. Only these (2b + 1)^2 coefficients change, and of a real
    image half of them tell all: they are found and put back by thin matrix products, at a fraction of the
    cost of whole transforms.

    images (B, 3, H, W) float, contiguous, changed in place and not clipped; styles likewise; apply (B,) bool.
    """
    height, width = images.shape[-2:]
    band = math.floor(size * min(height, width))
    rows = _waves(torch.arange(-band, band + 1, device=images.device), height)  # (2b + 1, H)
    columns = torch.view_as_real(_waves(torch.arange(band + 1, device=images.device), width))  # (b + 1, W, 2)
    columns = columns.permute(1, 0, 2).flatten(1)  # (W, 2 (b + 1)): cos, sin, cos, …
    spectrum = _low_frequencies(images, rows, columns)
    amplitude = _low_frequencies(styles, rows, columns).abs()
    change = torch.polar(amplitude, spectrum.angle()) - spectrum
    change = change * apply[:, None, None, None]
    # back: e^{+i} is the conjugate, and u > 0 stands for itself and for -u
    twice = torch.full((band + 1,), 2.0, device=images.device)
    twice[:1] = 1
    part = (rows.mH @ change) * (twice / (height * width))  # (B, 3, H, b + 1)
    # Re(a conj(w)) = Re a Re w + Im a Im w
    images.view(-1, width).addmm_(torch.view_as_real(part).view(-1, columns.shape[1]), columns.T)
    return images


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (at least .1 grey levels) by channel, (B, 3, 1, 1) each."""
    mean = images.mean((-2, -1), keepdim=True)
    square = torch.linalg.vector_norm(images, dim=(-2, -1), keepdim=True).square() / images[0, 0].numel()
    return mean, (square - mean.square()).clamp_min(0.01).sqrt()


def _floats(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _waves(frequencies: Tensor, length: int) -> Tensor:
    """e^(-2 pi i f x / length) for x = 0..length - 1. (F, length) complex."""
    # whole turns taken off as integers: float32 would lose the phase of large f x
    turns = frequencies[:, None] * torch.arange(length, device=frequencies.device) % length
    angle = turns.float() * (-2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle)


def _low_frequencies(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Fourier coefficients (B, 3, 2b + 1, b + 1) of images (B, 3, H, W) by the tables of both axes."""
    return rows @ torch.view_as_complex((images @ columns).unflatten(-1, (-1, 2)))
