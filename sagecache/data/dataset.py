"""Batches of labeled and unlabeled views with their cached targets: what a training step is fed with.

A sampler draws, a dataset makes: `MixedBatchSampler` says for each step which instances each stream shows
and from what entropy their views are drawn, `CachedTargetDataset` turns that into one dict of stacked
tensors. A step's batch is therefore a function of (seed, step, rank) alone: not of the number of workers,
nor of what ran before, so a resumed run continues the very same stream. Knows no model, no mmpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sagecache.data.coco import read_image
from sagecache.data.sampling import Draw, MixedBatchSampler, StepDraws
from sagecache.data.views import View, ViewConfig, make_view, move_keypoints
from sagecache.errors import SagecacheError, counted
from sagecache.geometry.affine import Size
from sagecache.geometry.distortion import NODES
from sagecache.skeleton import Skeleton
from sagecache.store import JoinedReader, StoreReader
from sagecache.store.spec import NO_BODY, NOT_DONE, OK, STATUS_TEXT, UNREADABLE
from sagecache.structures import Instance


class ImageReader:
    """Reads images and keeps decoded ones in memory until cache_bytes are full.

    Nothing is evicted: a shuffled pass asks for each image once, and then whatever stays is as good as any
    other choice. A copy in another process (a worker) starts empty and fills its own cache_bytes.
    """

    def __init__(self, cache_bytes: int = 0) -> None:
        self.cache_bytes = cache_bytes
        self._images: dict[Path, np.ndarray] = {}
        self._used = 0

    def __getstate__(self) -> dict:
        return {"cache_bytes": self.cache_bytes}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def __call__(self, path: Path) -> np.ndarray:
        """(H, W, 3) uint8 RGB; don't write to it."""
        image = self._images.get(path)
        if image is None:
            image = read_image(path)
            if self._used + image.nbytes <= self.cache_bytes:
                self._images[path] = image
                self._used += image.nbytes
        return image


class LabeledViews(Dataset):
    """One view of each annotated instance.

    size (width, height) of a view; padding as in crop_affine. An item, numpy, view pixels:
    image (3, H, W) uint8 RGB, keypoints (K, 2) float32, visible (K,) float32 in {0, 1},
    view_from_image (3, 3) float32, bbox (4,) float32 xywh in image pixels, image_id and instance int64.
    Raises SagecacheError for an instance whose box or keypoints can't be used.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        size: Size,
        padding: float,
        config: ViewConfig,
        skeleton: Skeleton,
        images: ImageReader | None = None,
    ) -> None:
        _require_boxes(instances)
        for instance in instances:
            _require_keypoints(instance, skeleton)
        self.instances, self.size, self.padding, self.config = instances, size, padding, config
        self.flip_indices = skeleton.flip_indices
        self.images = images or ImageReader()

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, draw: Draw | int) -> dict[str, np.ndarray]:
        """The item of a draw; a plain index stands for a fixed draw of its own."""
        instance, rng = self.instances[_index(draw)], _generator(draw)
        image = self.images(instance.path)
        view = make_view(image, instance.bbox, self.size, self.padding, self.config, rng)
        keypoints, visible = move_keypoints(
            instance.keypoints, view.view_from_image, self.size, self.flip_indices, view.distortion
        )
        return {
            "image": _channels_first(view),
            "keypoints": keypoints,
            "visible": visible,
            "view_from_image": view.view_from_image.astype(np.float32),
            **_identity(instance),
        }


class UnlabeledViews(Dataset):
    """A weak view and several strong views of each instance, with its stored targets.

    targets: None for training without a store. An item, numpy:
    weak (3, H, W) uint8 RGB, weak_from_image (3, 3) float32, strong (M, 3, H, W) and
    strong_from_image (M, 3, 3) likewise, strong_distortion (M, 2, n, n, 2) float32 only where the strong
    config distorts (forward and inverse of geometry.distortion, zeros for a view without), appearance and
    appearance_from_image like weak where that config is given, bbox (4,) float32 xywh in image pixels,
    bbox_scale () float32 = sqrt(w h), image_id and instance int64, and what the store has of depth,
    depth_range, normal, mask in stored dtypes (see data.targets.dequantise) with target_from_image (3, 3)
    float32.

    An instance without usable targets is an error on construction (on_missing='error'), or is left out and
    counted in `skipped` (on_missing='skip'), and in `not_computed` where nobody has tried to make them yet.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        targets: StoreReader | JoinedReader | None,
        size: Size,
        padding: float,
        weak: ViewConfig,
        strong: ViewConfig,
        num_strong_views: int = 1,
        on_missing: str = "error",
        images: ImageReader | None = None,
        *,
        appearance: ViewConfig | None = None,
    ) -> None:
        _require_boxes(instances)
        _require_affine(weak, appearance)
        self.instances, self.skipped, self.not_computed = _with_targets(instances, targets, on_missing)
        self.targets, self.size, self.padding = targets, size, padding
        self.weak, self.strong, self.num_strong_views = weak, strong, num_strong_views
        self.appearance = appearance
        self.images = images or ImageReader()

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, draw: Draw | int) -> dict[str, np.ndarray]:
        """The item of a draw; a plain index stands for a fixed draw of its own."""
        item = self.views(draw)
        targets = self.read_targets([_index(draw)])
        return item | {name: values[0] for name, values in targets.items()}

    def views(self, draw: Draw | int) -> dict[str, np.ndarray]:
        """An item without its targets."""
        instance, rng = self.instances[_index(draw)], _generator(draw)
        image = self.images(instance.path)
        configs = [self.weak] + [self.strong] * self.num_strong_views
        if self.appearance is not None:  # last, so that it leaves the other views' draws as they were
            configs.append(self.appearance)
        views = [make_view(image, instance.bbox, self.size, self.padding, config, rng) for config in configs]
        item = _named("weak", views[0])
        if self.appearance is not None:
            item |= _named("appearance", views.pop())
        scale = np.float32(np.sqrt(instance.bbox[2] * instance.bbox[3]))
        index = np.int64(_index(draw))
        return item | self._strong(views[1:]) | dict(bbox_scale=scale, index=index, **_identity(instance))

    def _strong(self, views: Sequence[View]) -> dict[str, np.ndarray]:
        """Strong views stacked; there may be none."""
        images, matrices = [_channels_first(view) for view in views], [view.view_from_image for view in views]
        item = {
            "strong": np.array(images, np.uint8).reshape(-1, 3, *self.size[::-1]),
            "strong_from_image": np.array(matrices, np.float32).reshape(-1, 3, 3),
        }
        if self.strong.distorts:
            lattices = np.array([view.lattices() for view in views], np.float32)
            item["strong_distortion"] = lattices.reshape(-1, 2, NODES, NODES, 2)
        return item

    def read_targets(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Stored targets of several instances with a leading axis B; empty without a store."""
        if self.targets is None or not indices:
            return {}
        rows = self.targets.read_many([self.instances[index].key for index in indices])
        rows["target_from_image"] = rows["target_from_image"].astype(np.float32)
        rows.pop("status")  # all ok: the others were sorted out on construction
        return rows


class CachedTargetDataset(Dataset):
    """Both streams as whole batches: an item is all that one training step on one rank consumes.

    dataset[StepDraws] -> {'labeled': batch, 'unlabeled': batch} of stacked torch tensors; a stream from
    which nothing is drawn is absent. The targets of a batch are read in one call. Use with `build_loader`.
    """

    def __init__(self, labeled: LabeledViews | None, unlabeled: UnlabeledViews | None) -> None:
        self.labeled, self.unlabeled = labeled, unlabeled

    def __getitem__(self, draws: StepDraws) -> dict[str, dict[str, Tensor]]:
        batch = {}
        if draws.labeled:
            batch["labeled"] = collate([self.labeled[draw] for draw in draws.labeled])
        if draws.unlabeled:
            targets = self.unlabeled.read_targets([draw.index for draw in draws.unlabeled])
            views = collate([self.unlabeled.views(draw) for draw in draws.unlabeled])
            batch["unlabeled"] = views | {name: torch.from_numpy(value) for name, value in targets.items()}
        return batch


def build_loader(
    dataset: CachedTargetDataset,
    sampler: MixedBatchSampler,
    workers: int = 0,
    pin_memory: bool = False,
    context: str | None = None,
) -> DataLoader:
    """A loader whose every item is one step's batch, the same for any number of workers.

    context: 'fork', 'spawn' or 'forkserver' for the workers; None is the platform's own. Global random
    state is neither read nor changed.
    """
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_one_thread if workers else None,
        persistent_workers=workers > 0,
        multiprocessing_context=context if workers else None,
        generator=torch.Generator(),
    )


def collate(items: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Stack items of one stream: each value (...) becomes a tensor (B, ...) of the same dtype."""
    return {name: torch.from_numpy(np.stack([item[name] for item in items])) for name in items[0]}


# --- inside --------------------------------------------------------------------------------------


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's own threads would fight for the cores


def _index(draw: Draw | int) -> int:
    return draw.index if isinstance(draw, Draw) else draw


def _generator(draw: Draw | int) -> np.random.Generator:
    return np.random.default_rng(draw.entropy if isinstance(draw, Draw) else draw)


def _channels_first(view: View) -> np.ndarray:
    return np.ascontiguousarray(view.image.transpose(2, 0, 1))


def _named(name: str, view: View) -> dict[str, np.ndarray]:
    return {name: _channels_first(view), f"{name}_from_image": view.view_from_image.astype(np.float32)}


def _require_affine(weak: ViewConfig, appearance: ViewConfig | None) -> None:
    if weak.distorts:
        raise SagecacheError(
            "the teacher's weak view must stay affine, it has radial, tilt or bend",
            record="views.weak",
            fix="Set these to 0 and distort views.strong instead",
        )
    if appearance is not None and appearance.moves:
        raise SagecacheError(
            "the appearance view is the plain crop in other colours, but a key of its geometry is set",
            record="views.appearance",
            fix="Set rotation, scale, shift, flip, radial, tilt and bend to 0 there",
        )


def _identity(instance: Instance) -> dict[str, np.ndarray]:
    return {
        "bbox": np.array(instance.bbox, dtype=np.float32),
        "image_id": np.int64(instance.image_id),
        "instance": np.int64(instance.instance),
    }


def _record(instance: Instance) -> str:
    return f"image_id {instance.image_id}, instance {instance.instance}"


def _require_boxes(instances: Sequence[Instance]) -> None:
    for instance in instances:
        if not (np.isfinite(instance.bbox).all() and min(instance.bbox[2:]) > 0):
            raise SagecacheError(
                f"the box {tuple(instance.bbox)} has no area",
                record=_record(instance),
                fix="'sagecache data check' lists such records",
            )


def _require_keypoints(instance: Instance, skeleton: Skeleton) -> None:
    shape = (skeleton.num_keypoints, 3)
    if instance.keypoints is None or instance.keypoints.shape != shape:
        found = "none" if instance.keypoints is None else f"an array {instance.keypoints.shape}"
        raise SagecacheError(
            f"needs keypoints {shape} for the skeleton '{skeleton.name}', has {found}",
            record=_record(instance),
            fix="Leave persons without keypoints out of the labeled split",
        )


def _with_targets(
    instances: Sequence[Instance], targets: StoreReader | JoinedReader | None, on_missing: str
) -> tuple[list[Instance], int, int]:
    """The instances whose targets can be read, how many were left out, and for how many nobody tried yet.

    A box in which the teacher saw nobody is always left out: no command would give it targets, and it is most
    likely a false detection.
    """
    if on_missing not in ("error", "skip"):
        raise SagecacheError(f"on_missing must be 'error' or 'skip', got '{on_missing}'")
    if targets is None:
        return list(instances), 0, 0
    status = {(entry.image_id, entry.instance): entry.status for entry in targets.failures()}
    status = {tuple(key): status.get(tuple(key), OK) for key in targets.ids.tolist()}
    kept = [instance for instance in instances if status.get(instance.key) == OK]
    missing = [instance for instance in instances if status.get(instance.key) not in (OK, NO_BODY)]
    if missing and on_missing == "error":
        _raise_missing(targets, missing[0], len(missing), len(instances))
    _require_same_boxes(kept, targets)
    untried = [one for one in missing if status.get(one.key, NOT_DONE) == NOT_DONE]
    return kept, len(instances) - len(kept), len(untried)


def _require_same_boxes(instances: Sequence[Instance], targets: StoreReader | JoinedReader) -> None:
    """A number names the first or second box of an image: other detections give it to another person."""
    now = np.array([one.bbox for one in instances], np.float64).reshape(-1, 4)
    moved = (targets.boxes([one.key for one in instances]) != now).any(axis=1)
    if moved.any():
        raise SagecacheError(
            f"the targets of {counted(int(moved.sum()), 'instance')} were made for other boxes than these",
            file=targets.root,
            record=_record(instances[int(moved.argmax())]),
            fix=f"Run '{targets.attributes.get('command', 'sagecache precompute geo')} --force', "
            "or put the former boxes back.",
        )


def _raise_missing(targets: StoreReader | JoinedReader, first: Instance, missing: int, count: int) -> None:
    """The store's own words on the first missing instance, which name the command, and how many there are."""
    try:
        targets.read(*first.key)
    except SagecacheError as error:
        others = f" (and {missing - 1} more of {counted(count, 'instance')})" if missing > 1 else ""
        message = error.message
        if "cache import" in targets.attributes.get("command", ""):  # the status has no words for a map
            message = message.replace(STATUS_TEXT[UNREADABLE], "the image or its map could not be read")
        raise SagecacheError(message + others, file=error.file, fix=error.fix) from None
