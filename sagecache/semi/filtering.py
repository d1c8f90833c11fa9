"""Which joints may be learned from, by their confidence.

One fixed threshold for now. The running mean and variance by joint, on which dynamic thresholds rest, are
kept already: as buffers, over kept and dropped joints alike (over the kept alone they would drift upward),
so that they are saved and resumed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sagecache.errors import SagecacheError


class KeypointFilter(nn.Module):
    """Keep joints whose confidence is above a threshold.

    threshold in [0, 1], in units of `geometry.heatmap.decode` (1 = the peak of a perfect map). decay in
    [0, 1): share of the running statistics that stays at each batch, with the warm-up 1 - 1/(updates + 1).
    Buffers: mean and variance (K,) of the confidence by joint, updates (0-d integer).
    """

    def __init__(self, num_keypoints: int, threshold: float = 0.5, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise SagecacheError(f"the filter's threshold is {threshold}, it must be in [0, 1]")
        if not 0 <= decay < 1:
            raise SagecacheError(f"the filter's decay is {decay}, it must be in [0, 1)")
        self.threshold, self.decay = threshold, decay
        self.register_buffer("mean", torch.zeros(num_keypoints))
        self.register_buffer("variance", torch.zeros(num_keypoints))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, confidence: Tensor) -> Tensor:
        """confidence (B, K) in [0, 1] -> keep (B, K) bool. In training mode the statistics move on."""
        if self.training:
            self._update(confidence)
        return confidence > self.threshold

    @torch.no_grad()
    def _update(self, confidence: Tensor) -> None:
        confidence = confidence.float()
        rate = (1 / (self.updates + 1.0)).clamp(min=1 - self.decay)  # a tensor: the host need not wait
        self.mean.lerp_(confidence.mean(0), rate)
        # spread about the running mean, not within the batch, whose own mean moves with its pictures
        self.variance.lerp_((confidence - self.mean).square().mean(0), rate)
        self.updates += 1
