#!/usr/bin/env python
"""What the swap check does to pseudo-labels whose truth is known: precision before and after, by posture.

    python tools/swap_evidence.py [--checkpoint FILE ...]

Votes are taken by the network that the recipe starts from, as a training takes them; the labels are those of
the same network, and of each --checkpoint. Prints a Markdown table: of all joints of the posture
the share that is learned from, and how many of these lie within .05 and .1 of the true box's diagonal. Run it
where the demo ran, or let it make what it needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sagecache.cli.actions import ensure  # noqa: E402
from sagecache.data.coco import load_coco  # noqa: E402
from sagecache.data.dataset import UnlabeledViews, collate  # noqa: E402
from sagecache.data.sampling import Draw  # noqa: E402
from sagecache.data.splits import evenly  # noqa: E402
from sagecache.mm.build import build_estimator  # noqa: E402
from sagecache.mm.checkpoints import load_network  # noqa: E402
from sagecache.mm.estimator import SemiPoseEstimator  # noqa: E402
from sagecache.mm.loaders import unlabeled_views  # noqa: E402
from sagecache.project import Project  # noqa: E402
from sagecache.structures import Instance, PseudoLabels  # noqa: E402

BATCH, ROUNDS = 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="sage-pose")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[])
    parser.add_argument("--split", default="unlabeled_truth")
    parser.add_argument("--count", type=int, default=700, help="persons, evenly over the split")
    options = parser.parse_args()

    project = Project.demo()
    recipe, model = project.recipe(options.recipe)
    ensure(project, project.requirements(recipe))
    ensure(project, project.split_requirements(options.split))
    persons = evenly(project.instances(options.split, "annotations"), options.count)
    estimator = build_estimator(project, recipe, model, with_terms=False).eval()
    views = unlabeled_views(recipe, model, persons)
    views.num_strong_views = 0  # the teachers' views alone
    with torch.no_grad():
        votes = sum(_each(estimator.facing_votes, views, round_) for round_ in range(ROUNDS)) / ROUNDS
        tables = [("start", _labels(estimator, views, None), _labels(estimator, views, votes))]
        for path in options.checkpoint:
            load_network(estimator.ema_teacher, path)
            tables.append((path.stem, _labels(estimator, views, None), _labels(estimator, views, votes)))
    postures = _postures(project, options.split, persons)
    print("\n".join(table(tables, persons, postures)))


def _batches(views: UnlabeledViews, round_: int) -> Iterator[dict]:
    for first in range(0, len(views), BATCH):
        rows = range(first, min(first + BATCH, len(views)))
        yield collate([views.views(Draw(index, (0, 2, round_, index))) for index in rows])


def _each(function, views: UnlabeledViews, round_: int) -> torch.Tensor:
    return torch.cat([function(batch) for batch in _batches(views, round_)])


def _labels(
    estimator: SemiPoseEstimator, views: UnlabeledViews, votes: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (N, K, 2), image pixels, and which are learned from (N, K)."""
    estimator.votes = votes
    labels: list[PseudoLabels] = [estimator.pseudo_labels(batch) for batch in _batches(views, 0)]
    keypoints = torch.cat([one.keypoints for one in labels]).numpy()
    return keypoints, torch.cat([one.keep for one in labels]).numpy()


def _postures(project: Project, split: str, persons: list[Instance]) -> np.ndarray:
    annotations = load_coco(project.path(project.split(split).annotations))["annotations"]
    kind = {one["id"]: one.get("kind", "?") for one in annotations}
    return np.array([kind[person.annotation_id] for person in persons])


def table(tables: list, persons: list[Instance], postures: np.ndarray) -> list[str]:
    """Lines of Markdown."""
    truth = np.stack([person.keypoints for person in persons])
    diagonal = np.array([np.hypot(*person.bbox[2:]) for person in persons])
    kinds = ["all", *sorted(set(postures), key=lambda kind: -(postures == kind).sum())]
    lines = [
        "| labels of | swap check | " + " | ".join(kinds) + " |",
        "|" + " --- |" * (len(kinds) + 2),
    ]
    for name, *pair in tables:
        for check, (keypoints, keep) in zip(("without", "with"), pair, strict=True):
            error = np.linalg.norm(keypoints - truth[..., :2], axis=-1) / diagonal[:, None]
            cells = []
            for kind in kinds:
                known = (truth[..., 2] > 0) & ((postures == kind) | (kind == "all"))[:, None]
                kept = known & keep
                right = [100 * (error[kept] < limit).mean() for limit in (0.05, 0.1)]
                cells.append(f"{100 * kept.sum() / known.sum():.0f} %, {right[0]:.1f} / {right[1]:.1f}")
            lines.append(f"| {name} | {check} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
