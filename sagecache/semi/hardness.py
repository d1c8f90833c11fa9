"""Which joints the student gets wrong: a running error by joint, for what hides hard joints more often."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.geometry.precision import full_precision
from sagecache.semi.reduction import over_processes

FARTHEST = 1.0  # one box: how far beyond a joint is lost makes no difference


class JointHardness(nn.Module):
    """Running mean, by joint, of the distance from the student's keypoint to the pseudo-label.

    decay in [0, 1): share that stays at each update, with the warm-up 1 - 1/(updates + 1); a joint that no
    sample keeps stands still. Buffers: error (K,) in units of the box, 0 until the first update; updates
    (K,) int64, by joint.
    """

    def __init__(self, num_keypoints: int, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise SagecacheError(f"the joint hardness' decay is {decay}, it must be in [0, 1)")
        self.decay = decay
        self.register_buffer("error", torch.zeros(num_keypoints))
        self.register_buffer("updates", torch.zeros(num_keypoints, dtype=torch.int64))

    @torch.no_grad()
    @full_precision
    def update(self, student: Tensor, label: Tensor, keep: Tensor, bbox_scale: Tensor) -> None:
        """student and label (B, K, 2) and bbox_scale (B,), sqrt(w h), in pixels of one view and one naming.

        keep (B, K) bool: joints with a label, less those that were covered in the student's view or lie
        outside it: a joint would look hard because it can't be seen, and be hidden more often for that. Of
        all processes together in one reduction; positions that are not finite don't count.
        """
        distance = (student - label).norm(dim=-1) / bbox_scale[:, None]
        counts = keep & distance.isfinite()
        distance = torch.where(counts, distance, 0).clamp_max(FARTHEST)
        sums = over_processes(torch.stack([distance.sum(0), counts.sum(0).to(distance.dtype)]))
        seen = sums[1] > 0
        rate = (1 / (self.updates + 1.0)).clamp(min=1 - self.decay) * seen
        self.error.lerp_((sums[0] / sums[1].clamp_min(1)).to(self.error.dtype), rate)
        self.updates += seen
