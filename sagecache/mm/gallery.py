"""Pseudo-labels to look at: what a run's EMA teacher says of unlabeled persons, and what became of it.

`look` runs the teacher and the recipe's filters over some persons, or looks up what a run with semi.refresh
had stored of them; `Picked` are the best, the worst and the
silent ones; `views_of` makes the pictures that the networks saw of one. Shows; trains and counts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sagecache.data.dataset import UnlabeledViews, collate
from sagecache.data.matching import joint_errors, with_annotation
from sagecache.data.splits import evenly
from sagecache.geometry.affine import apply_affine
from sagecache.geometry.distortion import bend, covered
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.explain import trained_estimator
from sagecache.mm.loaders import unlabeled_views
from sagecache.mm.refresh import stored_labels, stored_votes
from sagecache.project import Project
from sagecache.project.trained import TrainedRun
from sagecache.semi.refresh import LabelTable
from sagecache.structures import Fate, Instance, PseudoLabels

BATCH = 32
TITLES = {"weak": "weak view", "appearance": "appearance view"}
SILENT_BELOW = 3  # learned joints: an error over fewer says nothing of the pose


@dataclass(frozen=True, eq=False)
class Judged:
    """A person with its pseudo-label.

    index: in the list that was judged. target (K, 2): what the student is to learn, and keypoints (K, 2):
    what the teacher said, both in image pixels; confidence (K,) in [0, 1]; weights (K,): 0 where a joint is
    not learned from; fates: for each joint what became of it, a name of `Fate` in small letters.
    plausibility in [0, 1]; teacher: 'A', 'B' or 'nobody'. errors (K,): of target, in diagonals of the box,
    NaN where the truth is not known. strong (M, 3, H, W) uint8: the strong views as the student gets them,
    mixed, and strong_learned (M, K) bool: joints that it learns from in each.
    """

    index: int
    instance: Instance
    keypoints: np.ndarray
    target: np.ndarray
    confidence: np.ndarray
    weights: np.ndarray
    fates: tuple[str, ...]
    plausibility: float
    teacher: str
    errors: np.ndarray
    strong: np.ndarray
    strong_learned: np.ndarray

    @property
    def learned(self) -> np.ndarray:
        """(K,) bool."""
        return self.weights > 0

    @property
    def score(self) -> float:
        """The teacher's own opinion of this label, in [0, 1]."""
        return float(self.plausibility * self.confidence.mean())

    @property
    def error(self) -> float:
        """Mean error of the joints that are learned from; NaN where it is not known."""
        known = self.errors[self.learned & np.isfinite(self.errors)]
        return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True, eq=False)
class SeenView:
    """A picture that a network saw: image (H, W, 3) uint8 RGB and view_from_image (3, 3); bent: the lattice
    of what distorts it after that (`geometry.distortion`), None where nothing does.

    learned (K,) bool: joints that the student learns from in it; None for a view of the teacher.
    """

    title: str
    image: np.ndarray
    view_from_image: np.ndarray
    learned: np.ndarray | None = None
    bent: np.ndarray | None = None

    def follow(self, points: np.ndarray) -> np.ndarray:
        """Points (K, 2) of the image in pixels of the view; NaN where it is not known how the view bends."""
        size = self.image.shape[1], self.image.shape[0]
        moved = apply_affine(self.view_from_image, points.astype(float))
        if self.bent is None:
            return moved
        return np.where(covered(moved, size)[:, None], bend(moved, self.bent, size), np.nan)


@dataclass(frozen=True, eq=False)
class Gallery:
    """judged: a share of the persons of an unlabeled split, of whom there are ``total``. views makes their
    pictures, by the index of `Judged`. stored: the iteration of the refresh whose labels these are; None
    where they were made now, by the checkpoint.
    """

    judged: list[Judged]
    total: int
    views: UnlabeledViews
    stored: int | None = None


def look(project: Project, run: TrainedRun, count: int, report: Callable[..., None] | None = None) -> Gallery:
    """At most count persons of the run's unlabeled split, evenly over it, as its checkpoint sees them."""
    split = run.recipe.data.unlabeled
    instances = project.instances(split)
    chosen = evenly(instances, count)
    if any(one.keypoints is None for one in chosen):
        annotated: dict[int, list[Instance]] = {}
        for one in project.instances(split, "annotations"):
            annotated.setdefault(one.image_id, []).append(one)
        chosen = [with_annotation(one, annotated.get(one.image_id, ())) for one in chosen]
    views = unlabeled_views(run.recipe, run.model, chosen)  # an index stands for a draw of its own
    stored = None
    if run.recipe.semi.refresh:
        stored = stored_labels(run.work_dir, _iterations(run), chosen)
    judged = judge(project, run, views, report, None if stored is None else stored.table)
    return Gallery(judged, len(instances), views, None if stored is None else stored.iteration)


class Picked:
    """Which persons to show: worst first, best first, and those from whom nothing is learned.

    By true error where most of them have one (by_error), and then those without stand aside.
    """

    def __init__(self, judged: Sequence[Judged], count: int) -> None:
        heard = [one for one in judged if one.learned.sum() >= SILENT_BELOW]
        measured = [one for one in heard if np.isfinite(one.error)]
        self.by_error = 2 * len(measured) > len(heard)
        order = sorted(measured if self.by_error else heard, key=self._goodness)
        half = len(order) // 2
        self.worst = order[: min(count, len(order) - half)]
        self.best = order[::-1][: min(count, half)]
        silent = [one for one in judged if one.learned.sum() < SILENT_BELOW]
        self.silent = sorted(silent, key=lambda one: one.score)[: max(count // 2, 1)]

    def _goodness(self, one: Judged) -> float:
        return -one.error if self.by_error else one.score


@torch.no_grad()
def judge(
    project: Project,
    run: TrainedRun,
    views: UnlabeledViews,
    report: Callable[..., None] | None = None,
    table: LabelTable | None = None,
) -> list[Judged]:
    """Pseudo-labels of all instances of views, by the run's teacher and filters as they ended, or from a
    table of these instances.

    Keypoints of an instance measure the label's error; neither teacher nor filters see them.
    """
    estimator = trained_estimator(project, run.recipe, run.model, run.checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    estimator.to(device).step = _steps(run)
    votes = stored_votes(run.work_dir, views.instances) if run.recipe.semi.swaps else None
    estimator.votes = None if votes is None else votes.to(device)
    estimator.table = None if table is None else table.to(device)
    judged: list[Judged] = []
    torch.manual_seed(0)  # mixing draws from the global generator
    for first in range(0, len(views), BATCH):
        indices = range(first, min(first + BATCH, len(views)))
        batch = collate([views.views(index) for index in indices])
        batch = {name: value.to(device) for name, value in batch.items()}
        labels = estimator.labels_of_step(batch)
        strong = _strong_views(estimator, batch, labels)
        judged += _judged(labels, indices, views.instances, estimator.prior is not None, strong)
        if report is not None:
            report(len(judged), len(views))
    return judged


def _steps(run: TrainedRun) -> int:
    """Optimiser steps behind the run's checkpoint."""
    return _iterations(run) // run.recipe.accumulation


def _iterations(run: TrainedRun) -> int:
    """Behind the run's checkpoint, as far as its name or the run's end tells."""
    number = re.search(r"iter_(\d+)$", run.checkpoint.stem)
    return int(number[1]) if number else run.iterations or 0


def _strong_views(
    estimator: SemiPoseEstimator, batch: dict[str, Tensor], labels: PseudoLabels
) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, M, 3, H, W) after mixing, and which joints (B, M, K) are learned from in them."""
    images, learned = [], []
    for m in range(batch["strong"].shape[1]):
        one = {name: batch[name][:, m : m + 1] for name in batch if name.startswith("strong")}
        mixed, remaining, _ = estimator.strong_images(batch | one, labels)
        images.append(mixed.cpu().numpy())
        learned.append(remaining.keep.cpu().numpy())
    return np.stack(images, 1), np.stack(learned, 1)


def _judged(
    labels: PseudoLabels,
    indices: range,
    instances: Sequence[Instance],
    by_prior: bool,
    strong: tuple[np.ndarray, np.ndarray],
) -> list[Judged]:
    def plain(name: str) -> np.ndarray:
        return getattr(labels, name).cpu().numpy()

    keypoints, weights, teacher_a = plain("keypoints"), plain("weights"), plain("teacher_a")
    target = np.where(teacher_a[:, None, None] | (not by_prior), keypoints, plain("corrected"))
    confidence, plausibility, fates = plain("confidence"), plain("plausibility"), plain("fate")
    judged = []
    for i, index in enumerate(indices):
        heard = "B" if by_prior and (weights[i] > 0).any() else "nobody"
        judged.append(
            Judged(
                index,
                instances[index],
                keypoints[i],
                target[i],
                confidence[i],
                weights[i],
                tuple(Fate(fate).name.lower() for fate in fates[i].tolist()),
                float(plausibility[i]),
                "A" if teacher_a[i] else heard,
                joint_errors(target[i], instances[index]),
                strong[0][i],
                strong[1][i],
            )
        )
    return judged


def views_of(views: UnlabeledViews, one: Judged) -> list[SeenView]:
    """What the teachers and the student see of one person, each view once."""
    item = views.views(one.index)
    seen = [
        SeenView(title, item[name].transpose(1, 2, 0), item[f"{name}_from_image"])
        for name, title in TITLES.items()
        if name in item
    ]
    bent = item.get("strong_distortion")
    for m, (image, matrix) in enumerate(zip(one.strong, item["strong_from_image"], strict=True)):
        title = f"strong view {m + 1}" if len(one.strong) > 1 else "strong view"
        lattice = None if bent is None else bent[m, 0]
        seen.append(SeenView(title, image.transpose(1, 2, 0), matrix, one.strong_learned[m], lattice))
    return seen
