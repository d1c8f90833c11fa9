"""Where points of the image lie on the student's map: the one place that follows a strong view in full."""

from __future__ import annotations

from torch import Tensor

from sagecache.geometry.affine import compose, transform_points
from sagecache.geometry.distortion import bend_points, covered
from sagecache.geometry.sampling import inside
from sagecache.structures import UnlabeledBatch


def points_on_map(batch: UnlabeledBatch, keypoints: Tensor) -> tuple[Tensor, Tensor]:
    """Image pixels (B, K, 2) -> map pixels (B, K, 2), and whether they lie on the map, (B, K) bool.

    Follows the view's matrix and its distortion; channels stay as they are. A point so far outside the plain
    view that the distortion does not cover it is not on the map, nor is one that is not finite.
    """
    size = (batch.student_heatmaps.shape[-1], batch.student_heatmaps.shape[-2])
    if batch.distortion is None:
        points = transform_points(compose(batch.heatmap_from_strong, batch.strong_from_image), keypoints)
        return points, inside(points, size)
    plain = transform_points(batch.strong_from_image, keypoints)
    bent = bend_points(plain, batch.distortion[0], batch.strong_size)
    points = transform_points(batch.heatmap_from_strong, bent)
    return points, inside(points, size) & covered(plain, batch.strong_size)
