#!/usr/bin/env python
"""How much the vote on front or back knows, by draw of labels: persons of the demo whose truth is rendered.

    python tools/vote_evidence.py [--draws 0 1 2]

For each draw the votes that a run with `semi.swaps` kept (`sagecache ablate sage --arms swaps`): how many
labeled persons are seen from behind; the chance that the vote ranks a person seen from the front above one
seen from behind (AUC, .5 is a coin); of votes beyond the recipe's thresholds, how many are right. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sagecache.data.matching import with_annotation  # noqa: E402
from sagecache.mm.refresh import FACING, stored_votes  # noqa: E402
from sagecache.project import Project  # noqa: E402
from sagecache.project.runs import STARTED  # noqa: E402
from sagecache.structures import Instance  # noqa: E402

FROM_THE_SIDE = 3.0  # pixels of shoulders and hips across the torso's axis, below which neither is meant
PAIRS, TORSO = ((5, 6), (11, 12)), ((5, 6), (11, 12))  # COCO's shoulders and hips, left first


def facing(instance: Instance) -> float:
    """Pixels by which left joints lie where a body seen from the front has them; below 0: from behind."""
    if instance.keypoints is None:
        return np.nan
    points = instance.keypoints[:, :2]
    shoulders, hips = (points[list(pair)].mean(0) for pair in TORSO)
    up = (shoulders - hips) / max(np.linalg.norm(shoulders - hips), 1e-6)
    across = sum(points[left] - points[right] for left, right in PAIRS)
    return float(up[0] * across[1] - up[1] * across[0])


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive's score is above a negative's (Mann-Whitney); NaN without one of either."""
    above = scores[positive][:, None] - scores[~positive][None]
    return float((np.sign(above) / 2 + 0.5).mean()) if above.size else np.nan


def run_of(project: Project) -> Path:
    """The first run of the draw that keeps votes."""
    for place in sorted([*project.work_root.glob("*/"), *project.work_root.glob("ablations/*/")]):
        if (place / FACING).is_dir():
            return place
    raise SystemExit(f"no votes in {project.work_root}: sagecache ablate sage --arms swaps")


def row(project: Project, persons: Sequence[Instance], annotated: dict[int, list[Instance]]) -> list[str]:
    labeled = np.array([facing(one) for one in project.instances("labeled")])
    run = run_of(project)
    votes = stored_votes(run, persons).numpy()
    truth = np.array([facing(with_annotation(one, annotated.get(one.image_id, []))) for one in persons])
    known = np.isfinite(votes) & (np.abs(truth) > FROM_THE_SIDE)
    votes, front = votes[known], truth[known] > 0
    swaps = json.loads((run / STARTED).read_text())["recipe"]["semi"]["swaps"]
    sure = (votes > swaps["front"]) | (votes < -swaps["back"])
    right = (votes > 0) == front
    shares = [right[sure & front].mean(), right[sure & ~front].mean()]
    behind = f"{int((labeled < -FROM_THE_SIDE).sum())} of {len(labeled)}"
    return [
        behind,
        f"{auc(votes, front):.2f}",
        f"{100 * sure.mean():.0f} %",
        *(f"{100 * s:.0f} %" for s in shares),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    draws = parser.parse_args().draws
    project = Project.open(None)
    persons, annotated = project.instances("unlabeled"), {}
    for one in project.instances("unlabeled", "annotations"):
        annotated.setdefault(one.image_id, []).append(one)
    print("| draw | labels seen from behind | AUC | sure | right of sure, front | right of sure, behind |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number in draws:
        drawn = project.redrawn(number) if number else project
        print(f"| {number} | {' | '.join(row(drawn, persons, annotated))} |")


if __name__ == "__main__":
    main()
