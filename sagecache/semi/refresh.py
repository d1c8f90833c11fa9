"""Pseudo-labels that are looked up: made for all instances at once, anew every few epochs.

A step then needs no teacher, and what it learns from stands still between two refreshes, which is steadier
than a teacher that moves with every step (Kim et al. 2022, UniFrame, and most self-training do so).
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from sagecache.structures import PseudoLabels

KEPT = tuple(one.name for one in fields(PseudoLabels) if one.name != "probability")


class LabelTable(nn.Module):
    """Labels of N instances by their position in the unlabeled split; maps are not kept.

    Moves with its model, but is no state of it: it has files of its own.
    """

    def __init__(self, count: int, num_keypoints: int) -> None:
        super().__init__()
        pose, joints = (num_keypoints, 2), (num_keypoints,)
        shapes = dict(keypoints=pose, corrected=pose, plausibility=(), teacher_a=())
        kinds = dict(fate=torch.int64, teacher_a=torch.bool)
        for name in KEPT:
            empty = torch.zeros(count, *shapes.get(name, joints), dtype=kinds.get(name, torch.float32))
            self.register_buffer(name, empty, persistent=False)

    def __len__(self) -> int:
        return len(self.keypoints)

    @torch.no_grad()
    def put(self, index: Tensor, labels: PseudoLabels) -> None:
        """Labels of the instances at index (B,)."""
        for name in KEPT:
            getattr(self, name)[index] = getattr(labels, name).to(getattr(self, name).dtype)

    def look_up(self, index: Tensor) -> PseudoLabels:
        """Labels of the instances at index (B,). Their maps are empty, (B, K, 0, 0)."""
        values = {name: getattr(self, name)[index] for name in KEPT}
        empty = values["confidence"].new_zeros(*values["confidence"].shape, 0, 0)
        return PseudoLabels(probability=empty, **values)

    def arrays(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {name: getattr(self, name) for name in KEPT}

    def fill(self, arrays: dict[str, Tensor]) -> None:
        """Take over all values. Raises ValueError where they are of another number of instances."""
        for name, own in self.arrays().items():
            if arrays[name].shape != own.shape:
                raise ValueError(f"{name} has the shape {tuple(arrays[name].shape)}, not {tuple(own.shape)}")
        for name, own in self.arrays().items():
            own.copy_(arrays[name])
