"""Precision of the pseudo labels while they are learned from: the same teacher, filter and gate, on persons
whose joints are known.

The swap check (``semi.swaps``) takes no part: its votes are of unlabeled persons, and labeled ones have none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sagecache.data.splits import evenly
from sagecache.evaluation.pseudo_labels import PseudoLabelReport, judge
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.hooks import unwrap
from sagecache.mm.registry import codec_of
from sagecache.mm.samples import upright_views
from sagecache.project import Project, Recipe
from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.measure import stacked_keypoints
from sagecache.structures import Fate, Instance

logger = logging.getLogger(__name__)

PERSONS = 1000  # more cost a validation's time and say little more: .5 % of standard error at 17 joints each
BATCH = 64


@HOOKS.register_module()
class ProbeHook(Hook):
    """At each validation and at the end of training: ``probe/…`` scalars of the pseudo labels of a split.

    persons: labeled ones, of which at most PERSONS are taken, evenly. size (width, height) of a view, padding
    as in training. appearance: whether the teachers see the crop as a second view too. It moves no
    statistics, draws from no random stream and leaves the network's mode as it was: a training with it gives
    the weights of one without.
    """

    priority = "LOW"  # after SemiHook has moved the EMA teacher

    def __init__(
        self,
        persons: Sequence[Instance],
        skeleton: Skeleton,
        size: tuple[int, int],
        padding: float,
        appearance: bool,
        normaliser: str,
        interval: int,
    ) -> None:
        self.persons = evenly(persons, PERSONS)
        self.skeleton, self.size, self.padding, self.appearance = skeleton, size, padding, appearance
        self.normaliser, self.interval = normaliser, interval

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if not (self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner)):
            return
        report = self.measure(unwrap(runner.model), dist.get_rank(), dist.get_world_size())
        counts = torch.from_numpy(report.counts())
        dist.all_reduce(counts)
        report = PseudoLabelReport(*counts.numpy())
        scalars = {f"probe/{name}": value for name, value in report.scalars(self.skeleton.names).items()}
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)
        short = ("precision", "kept", "rescued", "swapped")
        told = [f"{name} {scalars[f'probe/{name}']:.3f}" for name in short if f"probe/{name}" in scalars]
        runner.logger.info(f"Iter(probe) [{runner.iter + 1}] {len(self.persons)} persons: {', '.join(told)}")

    @torch.no_grad()
    def measure(self, estimator: SemiPoseEstimator, rank: int = 0, world_size: int = 1) -> PseudoLabelReport:
        """Pseudo labels of this process' share of the persons, judged."""
        persons, training = self.persons[rank::world_size], estimator.training
        nothing = np.zeros((6, self.skeleton.num_keypoints), np.int64)
        report = PseudoLabelReport(*nothing)
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=cuda):
            estimator.eval()
            try:
                for first in range(0, len(persons), BATCH):
                    report += self._judged(estimator, persons[first : first + BATCH])
            finally:
                estimator.train(training)
        return report

    def _judged(self, estimator: SemiPoseEstimator, persons: Sequence[Instance]) -> PseudoLabelReport:
        views = upright_views(persons, self.size, self.padding, self.appearance)
        labels = estimator.pseudo_labels(estimator.data_preprocessor.cast_data(views))
        # what a sample of teacher B is taught is the corrected pose
        learned = torch.where(labels.teacher_a[:, None, None], labels.keypoints, labels.corrected)
        return judge(
            learned.double().cpu().numpy(),
            labels.keep.cpu().numpy(),
            (labels.fate == Fate.RESCUED).cpu().numpy(),
            stacked_keypoints(persons, self.skeleton),
            np.array([one.bbox[2:] for one in persons]),
            self.skeleton.flip_indices,
            normaliser=self.normaliser,
        )


def build_probe(project: Project, recipe: Recipe, model: dict, interval: int) -> ProbeHook | None:
    """The recipe's probe; None where it learns from no pseudo labels or has no labeled person to judge by."""
    if recipe.probe is None:
        return None
    persons = [one for one in project.instances(recipe.probe, "annotations") if one.keypoints is not None]
    if not persons:
        logger.warning("split '%s' has no labeled person: pseudo labels will not be judged", recipe.probe)
        return None
    size, normaliser = tuple(codec_of(model)["input_size"]), project.data.evaluation.pck_normaliser
    padding, appearance = recipe.views.padding, recipe.views.appearance is not None
    return ProbeHook(persons, project.skeleton, size, padding, appearance, normaliser, interval)
