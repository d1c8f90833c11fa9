"""What ``data.py`` of a project may say: splits, boxes, crop rule, teachers, where the cache lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sagecache.errors import SagecacheError, nearest
from sagecache.strict import at_least, positive, share


@dataclass(frozen=True)
class RenderSettings:
    """A split that ``sagecache data synth`` renders: ``count`` images of a look, from a seed."""

    look: str
    count: int
    seed: int
    size: tuple[int, int] = (256, 256)
    geometry: bool = True

    def __post_init__(self) -> None:
        at_least("count", self.count, 1)
        at_least("seed", self.seed, 0)
        for side in self.size:
            at_least("size", side, 16)


@dataclass(frozen=True)
class SplitSettings:
    """Images and where their boxes come from.

    boxes: 'annotations' (ground truth), 'detect' (``sagecache precompute detect`` writes them), or the
    path of a COCO detection JSON. min_score and max_per_image apply to detections only.
    """

    images: Path
    annotations: Path
    boxes: str = "annotations"
    min_score: float = 0.3
    max_per_image: int = 20
    render: RenderSettings | None = None

    def __post_init__(self) -> None:
        share("min_score", self.min_score)
        at_least("max_per_image", self.max_per_image, 1)


@dataclass(frozen=True)
class CropSettings:
    """The target crop: the box grown to the teacher's aspect, times ``padding``.

    1.25 as in training: keypoints lie in the box, and terms carry them to the targets, so the crop needs
    no margin for the augmentation of views.
    """

    padding: float = 1.25
    border: Literal["replicate", "constant"] = "replicate"

    def __post_init__(self) -> None:
        positive("padding", self.padding)


@dataclass(frozen=True)
class EvaluationSettings:
    """How ``val`` and ``eval`` cut and score.

    padding: of the box, as in mmpose's GetBBoxCenterScale. area: in OKS. pck_normaliser: what PCK's
    threshold is a fraction of. sampling: 'training' cuts crops as training views are (filtered before they
    shrink, edges replicated), 'mmpose' as its TopdownAffine does (neither; black outside the image), for
    figures beside published ones.
    """

    padding: float = 1.25
    area: Literal["bbox53", "annotation"] = "bbox53"
    pck_normaliser: Literal["diagonal", "max_side"] = "diagonal"
    sampling: Literal["training", "mmpose"] = "training"

    def __post_init__(self) -> None:
        positive("padding", self.padding)


@dataclass(frozen=True)
class ShardCacheSettings:
    """folder: of kept shards; by default below cache_root. gigabytes: of all of them; 0 keeps nothing."""

    folder: Path | None = None
    gigabytes: float = 20.0

    def __post_init__(self) -> None:
        at_least("gigabytes", self.gigabytes, 0)


@dataclass(frozen=True)
class DataSettings:
    """A project's ``data.py``. Relative paths start at the project folder (embedded demo: here).

    That holds for ``path`` and ``files`` of the teacher and the detector too. stats_splits: whose
    annotations skeleton_stats.json summarises. codec: of new target stores, 'fast' (lz4), 'compact' (zstd, a
    third fewer bytes, three times as long to decode) or 'lossless' (float32 as the teacher gave it).
    shard_size: instances a file of a store, and what a kill may cost; by default after the maps' size.
    store_root: where target stores lie, a folder or the URL of one in an object store (s3://bucket/folder);
    by default cache_root. shard_cache: what is kept on this machine of stores in an object store.
    more_targets: split -> further stores of its instances, folders or URLs, such as another teacher's:
    training reads from them the fields that the split's own store lacks.
    """

    splits: dict[str, SplitSettings]
    teacher: dict[str, Any]
    detector: dict[str, Any] = field(default_factory=dict)
    dataset_info: str = "coco"
    cache_root: Path = Path("cache")
    work_root: Path = Path("work_dirs")
    crop: CropSettings = CropSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    stats_splits: tuple[str, ...] = ("labeled",)
    codec: Literal["fast", "compact", "lossless"] = "fast"
    shard_size: int | None = None
    store_root: str | None = None
    shard_cache: ShardCacheSettings = ShardCacheSettings()
    more_targets: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shard_size is not None:
            at_least("shard_size", self.shard_size, 1)
        for key, names in (("stats_splits", self.stats_splits), ("more_targets", self.more_targets)):
            for name in names:
                if name not in self.splits:
                    raise SagecacheError(f"{key}: no split '{name}'", fix=nearest(name, self.splits))
