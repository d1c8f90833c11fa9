"""What is said of the whole unlabeled split at once, and kept beside the checkpoints: pseudo-labels that are
made anew every few epochs, and votes on front or back that are taken once.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sagecache.data.dataset import UnlabeledViews, collate
from sagecache.data.sampling import UNLABELED, Draw
from sagecache.errors import SagecacheError
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.hooks import unwrap
from sagecache.project import Recipe
from sagecache.semi.refresh import LabelTable
from sagecache.store.labels import read_labels, write_labels
from sagecache.structures import Fate, Instance

logger = logging.getLogger(__name__)

BATCH = 64
LABELS = Path("pseudo_labels")  # below a work dir
FACING = LABELS / "facing.zarr"
ROUNDS = 3  # draws that a vote is the mean of
STREAM = 2  # of a draw's entropy: not the labeled (0) nor the unlabeled (1) stream of a training step


def label_hooks(
    recipe: Recipe,
    estimator: SemiPoseEstimator,
    loader: DataLoader,
    work_dir: Path,
    provenance: Mapping,
    report: Callable[..., None],
) -> list[Hook]:
    """What the recipe asks for of the two; gives the estimator the table that a refresh fills.

    loader: of a training, of ``EncodedSteps``. report: as for `ProgressHook`.
    """
    if not recipe.uses_unlabeled:
        return []
    views, hooks = loader.dataset.steps.unlabeled, []
    if recipe.semi.swaps:
        hooks.append(FacingHook(views, work_dir / FACING, provenance, loader.num_workers, report))
    if recipe.semi.refresh:
        estimator.table = LabelTable(len(views), len(estimator.labeler.flip_indices))
        every = recipe.semi.refresh * loader.sampler.steps_an_epoch(UNLABELED)
        hooks.append(RefreshHook(views, every, work_dir / LABELS, provenance, loader.num_workers, report))
    return hooks


class RefreshHook(Hook):
    """Fills the estimator's label table every ``every`` iterations, the first of the training among them.

    views: the unlabeled stream. folder: where each refresh is written, ``iter_<n>.zarr``; a resumed run reads
    the one it was learning from. provenance: goes into each of them; its 'seed' draws the views. report: as
    for `ProgressHook`.
    """

    priority = "HIGH"  # after SemiHook, which seeds the step

    def __init__(
        self,
        views: UnlabeledViews,
        every: int,
        folder: Path,
        provenance: Mapping,
        workers: int = 0,
        report: Callable[..., None] = lambda *told: None,
    ) -> None:
        self.crops, self.every = _WeakViews(views, provenance["seed"], workers, report), every
        self.folder, self.provenance = folder, dict(provenance, every_iterations=every)

    def before_train(self, runner) -> None:
        iteration = runner.iter // self.every * self.every
        if runner.iter == iteration:
            return  # the next step makes them anew
        path = self._path(iteration)
        arrays, _ = read_labels(path)
        self.crops.require_same(arrays.pop("ids"), path)
        unwrap(runner.model).table.fill({name: torch.from_numpy(value) for name, value in arrays.items()})

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter % self.every == 0:
            self._refresh(runner)

    def _refresh(self, runner) -> None:
        """Labels by statistics of all instances, not of those that happen to come first: where decisions
        depend on them, the teacher looks twice.
        """
        model = unwrap(runner.model)
        self.crops.number = runner.iter // self.every
        keypoint_filter = model.labeler.keypoint_filter
        keypoint_filter.eval()
        self._label(model)
        if keypoint_filter.measure(model.table.confidence):
            self._label(model)
        keypoint_filter.train(model.training)
        if dist.get_rank() == 0:
            arrays = {name: value.cpu().numpy() for name, value in model.table.arrays().items()}
            about = self.provenance | _moment(runner.iter, model.ema_teacher)
            about["fates"] = {fate.name.lower(): int(fate) for fate in Fate}
            write_labels(self._path(runner.iter), arrays | {"ids": self.crops.ids()}, about)

    def _label(self, model: nn.Module) -> None:
        """Fill the table; the filter stands still, so that processes may have unequal numbers of batches."""
        table = LabelTable(len(self.crops), model.table.keypoints.shape[1]).to(model.table.keypoints.device)
        for views in self.crops.batches(model, f"labels of {len(self.crops)} persons"):
            table.put(views["index"], model.pseudo_labels(views))
        model.table.fill({name: _of_all_processes(value) for name, value in table.arrays().items()})

    def _path(self, iteration: int) -> Path:
        return self.folder / f"iter_{iteration}.zarr"


class FacingHook(Hook):
    """Before the first step each unlabeled person's front or back is voted on by the start weights.

    They stand outside of what the training feeds back into itself, and so can hold the names of left and
    right (semi.swaps). The mean of ROUNDS draws of the teachers' views. path: where the votes are written; a
    resumed run reads them. provenance: as for `RefreshHook`. report: as for `ProgressHook`.
    """

    priority = "ABOVE_NORMAL"  # labels that are made before the first step need them

    def __init__(
        self,
        views: UnlabeledViews,
        path: Path,
        provenance: Mapping,
        workers: int = 0,
        report: Callable[..., None] = lambda *told: None,
    ) -> None:
        self.crops, self.path = _WeakViews(views, provenance["seed"], workers, report), path
        self.provenance = dict(provenance, rounds=ROUNDS)

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        votes = self._read() if runner.iter else self._vote(model)
        model.votes = votes.to(model.heatmap_from_input.device)

    def _vote(self, model: nn.Module) -> Tensor:
        votes = torch.zeros(len(self.crops), device=model.heatmap_from_input.device)
        training = model.training
        model.eval()
        for number in range(ROUNDS):
            self.crops.number = number
            what = f"front or back of {len(votes)} persons, look {number + 1} of {ROUNDS}"
            for views in self.crops.batches(model, what):
                votes[views["index"]] += model.facing_votes(views) / ROUNDS
        model.train(training)
        votes = _of_all_processes(votes)
        if dist.get_rank() == 0:
            arrays = dict(ids=self.crops.ids(), votes=votes.cpu().numpy())
            about = self.provenance | _moment(0, model.ema_teacher)
            write_labels(self.path, arrays, about, kind="facing")
        return votes

    def _read(self) -> Tensor:
        arrays, _ = read_labels(self.path, kind="facing")
        self.crops.require_same(arrays["ids"], self.path)
        return torch.from_numpy(arrays["votes"])


def stored_votes(work_dir: Path, instances: Sequence[Instance]) -> Tensor | None:
    """Votes (N,) that a run took of these instances, NaN of others; None and a warning where it kept none."""
    path = work_dir / FACING
    if not path.is_dir():
        logger.warning("%s is not there, so left and right are not checked", path)
        return None
    arrays, _ = read_labels(path, kind="facing")
    known = dict(zip(map(tuple, arrays["ids"].tolist()), arrays["votes"].tolist(), strict=True))
    return torch.tensor([known.get(one.key, math.nan) for one in instances])


class StoredLabels(NamedTuple):
    """table: labels of given instances, by their place among them. iteration: when they were made."""

    table: LabelTable
    iteration: int


def stored_labels(work_dir: Path, iterations: int, instances: Sequence[Instance]) -> StoredLabels | None:
    """What a run with semi.refresh learned from in the last of so many iterations; None where that is gone,
    or lacks one of the instances.
    """
    made = (int(path.stem.removeprefix("iter_")) for path in (work_dir / LABELS).glob("iter_*.zarr"))
    for iteration in sorted((one for one in made if one < iterations), reverse=True):
        try:
            arrays, about = read_labels(work_dir / LABELS / f"iter_{iteration}.zarr")
        except SagecacheError:  # damaged: as good as gone
            continue
        every = about["every_iterations"]
        if (iterations - 1) // every * every != iteration:
            return None
        row = {tuple(key): i for i, key in enumerate(arrays.pop("ids").tolist())}
        if any(one.key not in row for one in instances):
            return None
        rows = [row[one.key] for one in instances]
        table = LabelTable(len(rows), arrays["keypoints"].shape[1])
        table.fill({name: torch.from_numpy(value[rows]) for name, value in arrays.items()})
        return StoredLabels(table, iteration)
    return None


class _WeakViews(Dataset):
    """What the teachers look at, of each instance; a fresh draw at each refresh. workers: loader processes.
    report: as for `ProgressHook`.
    """

    def __init__(self, views: UnlabeledViews, seed: int, workers: int, report: Callable[..., None]) -> None:
        self.views, self.seed, self.number = copy.copy(views), seed, 0
        self.workers, self.report = workers, report
        self.views.num_strong_views = 0

    def batches(self, model: nn.Module, what: str) -> Iterator[dict[str, Tensor]]:
        """This process's share of all instances, on the model's device. It takes minutes: each fifth is told,
        and what it is for.
        """
        loader = DataLoader(
            self,
            batch_size=BATCH,
            sampler=range(dist.get_rank(), len(self), dist.get_world_size()),
            num_workers=self.workers,
            collate_fn=collate,
            generator=torch.Generator(),  # a loader draws a seed, and the step's own must stay as it is
        )
        told = -1
        for number, views in enumerate(map(model.data_preprocessor.cast_data, loader)):
            if 5 * number // len(loader) > told:
                told = 5 * number // len(loader)
                self.report(0, 0, f"{what}: {20 * told} %")
            yield views

    def ids(self) -> np.ndarray:
        return np.array([one.key for one in self.views.instances], np.int64)

    def require_same(self, ids: np.ndarray, file: Path) -> None:
        """Raise SagecacheError unless a file is of today's instances."""
        if ids.tolist() != self.ids().tolist():
            raise SagecacheError(
                "is of other instances than today's unlabeled split",
                file=file,
                fix="Put the split back, or train anew: leave --resume out.",
            )

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.views.views(Draw(index, (self.seed, STREAM, self.number, index)))


def _of_all_processes(values: Tensor) -> Tensor:
    """Each process has filled its own rows, the others' are zero."""
    total = values.int() if values.dtype == torch.bool else values
    dist.all_reduce(total)
    return total.to(values.dtype)


def _moment(iteration: int, ema_teacher: nn.Module) -> dict[str, object]:
    return dict(iteration=iteration, ema_teacher_sha256=_digest(ema_teacher))


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
