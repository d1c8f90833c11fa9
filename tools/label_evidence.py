#!/usr/bin/env python
"""What better pseudo-labels would be worth: a recipe trained with parts of its labels put right by the truth.

    python tools/label_evidence.py [--seed N] [--amp]

Four trainings on the demo's unlabeled persons in their annotated boxes, equal but for what the terms learn
from: the labels as they are; of all joints those that happen to lie within .05 of the true box's diagonal
(a perfect choice); the joints that the recipe keeps, at their true places; all joints at their true places.
The teacher speaks in all of them, and its labels are put right afterwards. Prints a Markdown table, measured
on --split. Run it where the demo ran, or let it make what it needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sagecache.cli.actions import train  # noqa: E402
from sagecache.cli.evaluate import evaluate  # noqa: E402
from sagecache.mm.estimator import SemiPoseEstimator  # noqa: E402
from sagecache.project import Project  # noqa: E402
from sagecache.structures import PseudoLabels  # noqa: E402

SPLIT = "unlabeled_truth"
NEAR = 0.05

# Labels, and of the same persons true keypoints (B, K, 2), which are known (B, K), the box's diagonal (B,).
Mend = Callable[[PseudoLabels, Tensor, Tensor, Tensor], PseudoLabels]


def chosen(labels: PseudoLabels, truth: Tensor, known: Tensor, diagonal: Tensor) -> PseudoLabels:
    near = (labels.keypoints - truth).norm(dim=-1) < NEAR * diagonal[:, None]
    return _learned_from(labels, near & known)


def placed(labels: PseudoLabels, truth: Tensor, known: Tensor, diagonal: Tensor) -> PseudoLabels:
    kept = labels.keep | (labels.places > 0)
    return _learned_from(replace(labels, keypoints=truth), kept & known)


def true(labels: PseudoLabels, truth: Tensor, known: Tensor, diagonal: Tensor) -> PseudoLabels:
    return _learned_from(replace(labels, keypoints=truth), known)


def _learned_from(labels: PseudoLabels, joints: Tensor) -> PseudoLabels:
    """These joints with a whole weight, names of sides included, and no others."""
    return replace(
        labels,
        teacher_a=torch.ones_like(labels.teacher_a),
        weights=joints.to(labels.weights.dtype),
        places=torch.zeros_like(labels.places),
    )


WAYS: dict[str, tuple[str, Mend | None]] = {
    "teacher": ("the labels as they are", None),
    "chosen": (f"of all joints those within {NEAR:g} of the truth", chosen),
    "placed": ("the joints that are kept, at their true places", placed),
    "true": ("all joints at their true places", true),
}


@contextmanager
def put_right(project: Project, mend: Mend | None):
    """Within, trainings on SPLIT learn from labels that the truth has mended."""
    if mend is None:
        yield
        return
    persons = project.instances(SPLIT)
    keypoints = torch.stack([torch.from_numpy(person.keypoints).float() for person in persons])
    diagonal = torch.tensor([person.bbox[2:] for person in persons]).norm(dim=-1)
    as_it_is = SemiPoseEstimator.labels_of_step

    def labels_of_step(self: SemiPoseEstimator, unlabeled: dict) -> PseudoLabels:
        labels, index = as_it_is(self, unlabeled), unlabeled["index"].cpu()
        known = (keypoints[index, :, 2] > 0, keypoints[index, :, :2], diagonal[index])
        known, truth, size = (value.to(labels.weights.device) for value in known)
        return mend(labels, truth, known, size)

    SemiPoseEstimator.labels_of_step = labels_of_step
    try:
        yield
    finally:
        SemiPoseEstimator.labels_of_step = as_it_is


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="sage-pose")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--split", default="val")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--max-iters", type=int)
    parser.add_argument("--amp", action="store_true")
    options = parser.parse_args()

    project = Project.demo()
    overrides = {"data.unlabeled": SPLIT, "amp": options.amp}
    rows = ["| learned from | AP | PCK@0.05 | PCK@0.1 |", "|" + " --- |" * 4]
    for way in options.ways:
        told, mend = WAYS[way]
        work_dir = project.work_root / "label_evidence" / f"{options.recipe}_{way}"
        with put_right(project, mend):
            checkpoint = train(
                project,
                options.recipe,
                overrides,
                work_dir=work_dir,
                seed=options.seed,
                max_iters=options.max_iters,
            )
        figures = evaluate(project, checkpoint, options.split)
        cells = " | ".join(f"{100 * figures[name]:.1f}" for name in ("AP", "PCK@0.05", "PCK@0.1"))
        rows.append(f"| {told} | {cells} |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
