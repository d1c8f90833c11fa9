"""Pseudo-labels of the whole unlabeled split, made anew every few epochs and kept beside the checkpoints."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine import dist
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sagecache.data.dataset import UnlabeledViews, collate
from sagecache.data.sampling import UNLABELED, Draw
from sagecache.errors import SagecacheError
from sagecache.mm.hooks import unwrap
from sagecache.semi.refresh import LabelTable
from sagecache.store.labels import read_labels, write_labels
from sagecache.structures import Fate

BATCH = 64
STREAM = 2  # of a draw's entropy: not the labeled (0) nor the unlabeled (1) stream of a training step


class RefreshHook(Hook):
    """Fills the estimator's label table every ``every`` iterations, the first of the training among them.

    views: the unlabeled stream. folder: where each refresh is written, ``iter_<n>.zarr``; a resumed run reads
    the one it was learning from. provenance: goes into each of them; its 'seed' draws the views.
    """

    priority = "HIGH"  # after SemiHook, which seeds the step

    def __init__(
        self, views: UnlabeledViews, every: int, folder: Path, provenance: Mapping, workers: int = 0
    ) -> None:
        self.crops, self.every, self.folder = _WeakViews(views, provenance["seed"]), every, folder
        self.workers, self.provenance = workers, dict(provenance, every_iterations=every)

    @classmethod
    def of(
        cls, estimator: nn.Module, loader: DataLoader, epochs: int, folder: Path, provenance: Mapping
    ) -> RefreshHook:
        """For a training loader of ``EncodedSteps``; gives the estimator its table."""
        views = loader.dataset.steps.unlabeled
        estimator.table = LabelTable(len(views), len(estimator.labeler.flip_indices))
        every = epochs * loader.sampler.steps_an_epoch(UNLABELED)
        return cls(views, every, folder, provenance, loader.num_workers)

    def before_train(self, runner) -> None:
        iteration = runner.iter // self.every * self.every
        if runner.iter == iteration:
            return  # the next step makes them anew
        path = self._path(iteration)
        arrays, _ = read_labels(path)
        if arrays.pop("ids").tolist() != self._ids().tolist():
            raise SagecacheError(
                "the pseudo-labels are of other instances than today's unlabeled split",
                file=path,
                fix="Put the split back, or train anew: leave --resume out.",
            )
        unwrap(runner.model).table.fill({name: torch.from_numpy(value) for name, value in arrays.items()})

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter % self.every == 0:
            self._refresh(runner)

    def _refresh(self, runner) -> None:
        model = unwrap(runner.model)
        rank, world = dist.get_rank(), dist.get_world_size()
        self.crops.number = runner.iter // self.every
        table = LabelTable(len(self.crops), model.table.keypoints.shape[1]).to(model.table.keypoints.device)
        loader = DataLoader(
            self.crops,
            batch_size=BATCH,
            sampler=range(rank, len(self.crops), world),
            num_workers=self.workers,
            collate_fn=collate,
            generator=torch.Generator(),  # a loader draws a seed, and the step's own must stay as it is
        )
        for batch in loader:
            views = model.data_preprocessor.cast_data(batch)
            table.put(views["index"], model.pseudo_labels(views))
        model.table.fill({name: _of_all_processes(value) for name, value in table.arrays().items()})
        if rank == 0:
            arrays = {name: value.cpu().numpy() for name, value in model.table.arrays().items()}
            about = dict(
                self.provenance, iteration=runner.iter, ema_teacher_sha256=_digest(model.ema_teacher)
            )
            about["fates"] = {fate.name.lower(): int(fate) for fate in Fate}
            write_labels(self._path(runner.iter), arrays | {"ids": self._ids()}, about)

    def _path(self, iteration: int) -> Path:
        return self.folder / f"iter_{iteration}.zarr"

    def _ids(self) -> np.ndarray:
        return np.array([one.key for one in self.crops.views.instances], np.int64)


class _WeakViews(Dataset):
    """What the teachers look at, of each instance; a fresh draw at each refresh."""

    def __init__(self, views: UnlabeledViews, seed: int) -> None:
        self.views, self.seed, self.number = copy.copy(views), seed, 0
        self.views.num_strong_views = 0

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.views.views(Draw(index, (self.seed, STREAM, self.number, index)))


def _of_all_processes(values: Tensor) -> Tensor:
    """Each process has filled its own rows, the others' are zero."""
    total = values.int() if values.dtype == torch.bool else values
    dist.all_reduce(total)
    return total.to(values.dtype)


def _digest(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
