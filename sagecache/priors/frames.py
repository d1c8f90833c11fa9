"""The student's strong view against the image: where its keypoints lie there, and which labels it can see.

Keypoints go from the view to the image, and the image's maps stay where they are.
"""

from __future__ import annotations

from torch import Tensor

from sagecache.geometry.affine import compose, invert_affine, is_mirrored, swap_mirrored, transform_points
from sagecache.geometry.strong_view import points_on_map
from sagecache.structures import UnlabeledBatch


def student_keypoints(
    batch: UnlabeledBatch, flip_indices: Tensor, frame_from_image: Tensor | None = None
) -> Tensor:
    """The student's keypoints, left and right as in the image, (B, K, 2), in image pixels, or in those of
    frame_from_image (B, 3, 3).

    flip_indices (K,) undo the channel order of mirrored views. The gradient passes.
    """
    frame_from_strong = invert_affine(batch.strong_from_image)
    if frame_from_image is not None:
        frame_from_strong = compose(frame_from_image, frame_from_strong)
    keypoints = transform_points(frame_from_strong, batch.student_keypoints)
    return swap_mirrored(keypoints, is_mirrored(batch.strong_from_image), flip_indices)


def labels_in_view(batch: UnlabeledBatch) -> Tensor:
    """Joints whose pseudo-label lies on the student's map, (B, K) bool, left and right as in the image.

    Of a joint that the augmentation pushed out, the student's maximum says nothing, and it never lies
    outside itself.
    """
    return points_on_map(batch, batch.pseudo_labels.keypoints)[1]
