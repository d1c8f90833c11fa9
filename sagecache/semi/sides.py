"""Where a pair of joints is, and not which of them is the left one: for names that can't be trusted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sagecache.geometry.heatmap import log_probability
from sagecache.geometry.precision import full_precision
from sagecache.semi.consistency import draw_in_view, kl
from sagecache.structures import TermOutput, UnlabeledBatch


class SideAgnostic(nn.Module):
    """Term: KL of the mean map of each mirror pair, student against pseudo-label.

    mean over pairs of KL((p_l + p_r) / 2 || (q_l + q_r) / 2) with p drawn at the labels' keypoints: it says
    that there are two knees and where, and nothing in it says whose is whose. Only pairs whose names are
    silenced (`PseudoLabels.places`) take part, both of them in view. Divided by the number of all joints of
    the batch, as consistency with normalise='all' is. In a mirrored view a pair's joints change names, which
    changes nothing here.
    pairs (P, 2): mirror pairs. sigma in heatmap pixels.
    """

    def __init__(self, pairs: Tensor, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.register_buffer("pairs", torch.as_tensor(pairs), persistent=False)

    @full_precision
    def forward(self, batch: UnlabeledBatch) -> TermOutput:
        with torch.no_grad():
            target, in_view = draw_in_view(batch, batch.pseudo_labels.keypoints, self.sigma)
            weights = batch.pseudo_labels.places * in_view
            target = target[:, self.pairs].mean(2)  # (B, P, h, w)
            weights = weights[:, self.pairs].amin(-1)  # (B, P)
            target = target.flatten(2)
            target = target / target.sum(-1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
        log_q = log_probability(batch.student_heatmaps, batch.heatmap_kind)[:, self.pairs].flatten(3)
        log_mean = torch.logsumexp(log_q, 2) - torch.log(torch.tensor(2.0))
        loss = 2 * (weights * kl(log_mean, target)).sum() / batch.pseudo_labels.places.numel()
        return TermOutput(loss, {"share": (weights > 0).float().mean()})
