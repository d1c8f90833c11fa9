"""Geometry as a second task: the student's features predict the cached depth, normals and mask of its view.

CMGC asks the cached maps about joints that are found already. This term asks the features to know the body's
surface, of every unlabeled person, whether or not a pseudo-label is kept: where the outline runs, which limb
is in front. One linear layer reads that off the last features and is thrown away after training, so that what
is learned stays in the backbone.

Legend: B strong views; C feature channels; h, w cells of the predicted maps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import Size, compose, invert_affine
from sagecache.geometry.precision import full_precision
from sagecache.geometry.sampling import warp_depth, warp_mask, warp_normals
from sagecache.structures import TermOutput, UnlabeledBatch

CHANNELS = {"normal": 3, "depth": 1, "mask": 1}
LOWEST_SPREAD = 1e-6  # of a flat body's depth: its residual is zero anyway


class GeometryDistillation(nn.Module):
    """Term: a linear layer on the student's features against the cached maps, carried into the view.

    loss = normal * mean(1 - n . n') + depth * mean|d - d'| + mask * mean(BCE(m, m')), the first two over the
    person's cells, the third over the cells that the cached map reaches; d' is the cached depth less its mean
    over the person, in units of its mean deviation there: free of scale and shift (Ranftl et al., TPAMI 2022,
    eq. 5, with means for medians). Normals turn with the view, see `geometry.sampling.warp_normals`. Persons
    without a target (an empty mask) take no part. A part of weight zero is not predicted.

    channels: C of the student's last features. upsample: cells along each side of a feature's cell; 1 fits
    features at a quarter of the input's size, 4 those of a ViT of 16 pixels a patch.
    The layer starts from surfaces that face the camera: nothing is drawn at random. Raises SagecacheError for
    weights that leave nothing to learn.
    """

    def __init__(
        self, channels: int, normal: float = 1.0, depth: float = 0.25, mask: float = 1.0, upsample: int = 1
    ) -> None:
        super().__init__()
        weights = dict(normal=normal, depth=depth, mask=mask)
        if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
            told = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            raise SagecacheError(
                f"the term 'geometry' needs finite weights of at least 0, one of them above: {told}",
                fix="Set normal, depth or mask, or give the term weight 0.",
            )
        if upsample < 1:
            raise SagecacheError(f"upsample must be 1 or more, not {upsample}")
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.upsample = upsample
        self.layer = nn.Conv2d(channels, sum(CHANNELS[name] for name in self.weights) * upsample**2, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        if normal:  # of a vector of length zero the direction has no gradient
            self.layer.bias.data[2 * upsample**2 : 3 * upsample**2] = -1

    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        predicted = self.predict(batch.student_features)
        some = next(iter(predicted.values()))
        size = (some.shape[-1], some.shape[-2])
        with torch.no_grad():
            view_from_map = compose(
                cells_from_pixels(batch.strong_size, size, some),
                batch.strong_from_image,
                invert_affine(batch.target_from_image),
            )
            target, weight = targets_in_view(batch.targets, view_from_map, size, self.weights)
        losses = map_losses(predicted, target, weight)
        scalars = {name: loss.detach() for name, loss in losses.items()}
        return TermOutput(sum(self.weights[name] * loss for name, loss in losses.items()), scalars)

    @full_precision
    def predict(self, features: Tensor) -> dict[str, Tensor]:
        """features (B, C, h', w') -> maps (B, 3 or 1, h, w) by name, float32; normals of any length."""
        maps = F.pixel_shuffle(self.layer(features), self.upsample)
        return dict(zip(self.weights, maps.split([CHANNELS[name] for name in self.weights], 1), strict=True))


def cells_from_pixels(pixels: Size, cells: Size, like: Tensor) -> Tensor:
    """(3, 3) on the device of like: input pixels -> cells of a map of the same extent, both with centres at
    integers. A convolution's stride keeps edges together: x' + 1/2 = (x + 1/2) w' / w; where a network's
    padding shifts them, by less than a cell, the layer learns the shift.
    """
    matrix = like.new_zeros(3, 3, dtype=torch.float32)
    for axis in range(2):  # filled by numbers: a copy from the host would make it wait
        ratio = cells[axis] / pixels[axis]
        matrix[axis, axis].fill_(ratio)
        matrix[axis, 2].fill_((ratio - 1) / 2)
    matrix[2, 2].fill_(1.0)
    return matrix


@full_precision
def targets_in_view(
    targets: dict[str, Tensor], view_from_map: Tensor, size: Size, names: dict[str, float]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The named targets on the view's cells, and the cells (B, 1, h, w) float that count for each.

    targets as in `structures.UnlabeledBatch`; view_from_map (B, 3, 3) target-map pixels -> cells.
    """
    mask = targets["mask"]
    carried, counted = {}, {}
    if "normal" in names:
        carried["normal"], counted["normal"] = warp_normals(targets["normal"], mask, view_from_map, size)
    if "depth" in names:
        carried["depth"], counted["depth"] = warp_depth(
            standardised(targets["depth"], mask), mask, view_from_map, size
        )
    if "mask" in names:
        carried["mask"] = warp_mask(mask, view_from_map, size).float()
        there = mask.flatten(1).any(1)[:, None, None, None].expand_as(mask)
        counted["mask"] = warp_mask(there, view_from_map, size)
    return carried, {name: cells.float() for name, cells in counted.items()}


def standardised(depth: Tensor, mask: Tensor) -> Tensor:
    """depth (B, 1, H, W) less its mean over mask, in units of its mean absolute deviation there; 0 off it."""
    inside = mask.to(depth.dtype)
    count = inside.sum((2, 3), keepdim=True).clamp_min(1)
    centred = (depth - (depth * inside).sum((2, 3), keepdim=True) / count) * inside
    return centred / (centred.abs().sum((2, 3), keepdim=True) / count).clamp_min(LOWEST_SPREAD)


@full_precision
def map_losses(
    predicted: dict[str, Tensor], target: dict[str, Tensor], weight: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Mean loss of each predicted map over the cells that count, 0 without any; see GeometryDistillation."""
    by_cell = {
        "normal": lambda ours, theirs: 1 - (F.normalize(ours, dim=1) * theirs).sum(1, keepdim=True),
        "depth": lambda ours, theirs: (ours - theirs).abs(),
        "mask": lambda ours, theirs: F.binary_cross_entropy_with_logits(ours, theirs, reduction="none"),
    }
    return {
        name: (by_cell[name](maps, target[name]) * weight[name]).sum() / weight[name].sum().clamp_min(1)
        for name, maps in predicted.items()
    }
