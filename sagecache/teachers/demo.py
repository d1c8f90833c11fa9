"""The demo project's frozen networks: a person's geometry, and person boxes. Weights are in the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sagecache.models.convnet import GeometryNet, PersonDetector
from sagecache.models.weights import load_geometry_net, load_person_detector, weights_path
from sagecache.strict import positive
from sagecache.teachers.base import (
    TeacherSpec,
    check_crops,
    file_hash,
    in_parts,
    mirror_maps,
    resize_maps,
    to_tensor,
)
from sagecache.teachers.detectors import BoxRule, letterbox


class DemoGeometry:
    """Depth, normals and mask from GeometryNet.

    flip_test averages the maps of the crop and its mirror image, at twice the cost. map_size
    (width, height): maps are resized to it; by default the network's own.
    net: another network than the committed one, with its own weights_hash.
    """

    def __init__(
        self,
        flip_test: bool = True,
        map_size: tuple[int, int] | None = None,
        net: GeometryNet | None = None,
        weights_hash: str | None = None,
    ) -> None:
        width, height = GeometryNet.INPUT_SIZE
        own = (width // GeometryNet.STRIDE, height // GeometryNet.STRIDE)
        for side in map_size or ():
            positive("map_size", side)
        self.flip_test = flip_test
        self.spec = TeacherSpec(
            name="demo-geometry",
            input_size=(width, height),
            map_size=tuple(map_size) if map_size else own,
            outputs=("depth", "normal", "mask"),
            depth_kind="affine",
            unit="crop widths",
        )
        self._net = (net or load_geometry_net()).eval().to(memory_format=torch.channels_last)
        self._hash = weights_hash or file_hash(weights_path("geometry"))

    def __call__(self, crops: np.ndarray) -> dict[str, Tensor]:
        check_crops(crops, self.spec.input_size)
        return in_parts(self._run, crops)

    @torch.inference_mode()
    def _run(self, crops: np.ndarray) -> dict[str, Tensor]:
        images = (to_tensor(crops) / 255).contiguous(memory_format=torch.channels_last)
        maps = self._maps(images)
        if self.flip_test:
            mirrored = mirror_maps(self._maps(images.flip(3)))
            maps = {name: (value + mirrored[name]) / 2 for name, value in maps.items()}
        maps = {name: resize_maps(value, self.spec.map_size) for name, value in maps.items()}
        maps["normal"] = F.normalize(maps["normal"], dim=1)
        maps["mask"] = maps["mask"].sigmoid()
        return maps

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        out = self._net(images)
        # The relief's constant is free: centre each, or the mean would mix two of them.
        depth = out.relief - out.relief.mean((2, 3), keepdim=True)
        return dict(depth=depth, normal=out.normals, mask=out.person)

    def fingerprint(self) -> dict[str, object]:
        preprocessing = dict(scale="1/255", colour="rgb", flip_test=self.flip_test)
        return dict(spec=self.spec.as_dict(), weights=self._hash, preprocessing=preprocessing)


class DemoDetector:
    """Person boxes from PersonDetector; score, nms, limit as in BoxRule."""

    def __init__(
        self,
        score: float = BoxRule.score,
        nms: float = BoxRule.nms,
        limit: int = BoxRule.limit,
        net: PersonDetector | None = None,
        weights_hash: str | None = None,
    ) -> None:
        self._rule = BoxRule(score, nms, limit)
        self._net = (net or load_person_detector()).eval().to(memory_format=torch.channels_last)
        self._hash = weights_hash or file_hash(weights_path("detector"))

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            self._rule(boxes, scores, (image.shape[1], image.shape[0]))
            for image, (boxes, scores) in zip(images, self._raw(images), strict=True)
        ]

    def _raw(self, images: list[np.ndarray], batch: int = 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Boxes above the score in each image's own pixels, before suppression."""
        for first in range(0, len(images), batch):
            fitted = [letterbox(image, PersonDetector.INPUT_SIZE) for image in images[first : first + batch]]
            out = in_parts(self._maps, np.stack([picture for picture, _, _ in fitted]))["boxes"]
            for maps, (_, scale, offset) in zip(out, fitted, strict=True):
                boxes, scores = decode_boxes(maps, self._rule.score)
                # continuous coordinates (pixel i covers [i, i + 1]) -> centres at integers
                yield (boxes - np.array([*offset, *offset])) / scale - 0.5, scores

    @torch.inference_mode()
    def _maps(self, pictures: np.ndarray) -> dict[str, Tensor]:
        images = (to_tensor(pictures) / 255).contiguous(memory_format=torch.channels_last)
        return dict(boxes=self._net(images))

    def fingerprint(self) -> dict[str, object]:
        preprocessing = dict(
            input_size=list(PersonDetector.INPUT_SIZE), scale="1/255", colour="rgb", border="mean"
        )
        return dict(
            name="demo-detector", weights=self._hash, preprocessing=preprocessing, rule=asdict(self._rule)
        )


def decode_boxes(maps: Tensor, score: float) -> tuple[np.ndarray, np.ndarray]:
    """Peaks of the centre map and their boxes, in continuous pixels of the network's input.

    maps (5, h, w) of PersonDetector. Returns boxes xyxy (n, 4) float64 and scores (n,) float64.
    """
    centre = maps[0].sigmoid()
    peak = F.max_pool2d(centre[None, None], 3, 1, 1)[0, 0] == centre
    rows, columns = torch.nonzero(peak & (centre >= score), as_tuple=True)
    middle = torch.stack([columns, rows, columns, rows], 1) + 0.5
    sides = maps[1:, rows, columns].T.clamp(-4, 5).exp() * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    boxes = (middle + sides) * PersonDetector.STRIDE
    return boxes.double().numpy(), centre[rows, columns].double().numpy()
