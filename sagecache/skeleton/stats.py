"""Robust summaries of a labeled split's skeletons, kept as ``skeleton_stats.json``.

Limb lengths in units of several body sizes, their left/right log-ratio, angles at joints, offsets of joints
from their neighbours, size and uprightness of whole bodies, and how often each joint is labeled. Names and
edges come from the `Skeleton` (a dataset_info) alone. In two dimensions a limb can only look shorter than it
is: its upper quantiles say more about the body than its mean (MATHS 5).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from sagecache.errors import SagecacheError, nearest
from sagecache.skeleton.definition import Skeleton
from sagecache.skeleton.measure import (
    NORMALISERS,
    all_visible,
    body_size,
    inversion,
    joint_angles,
    joint_offsets,
    limb_lengths,
    relative_size,
)

FORMAT = "sagecache.skeleton_stats"
VERSION = 2
MIN_COUNT = 10  # fewer samples give no quantile worth a threshold
BODY = ("size", "inversion")  # rows of SkeletonStats.body
REMAKE = "Make it again: sagecache precompute stats --force"


@dataclass(frozen=True, eq=False)
class Summary:
    """Distribution of M quantities; each field is (M,), NaN where nothing was measured.

    count: samples. enough: count >= the minimum; below it the figures are there but should not be used.
    mad is the plain median absolute deviation: 1.4826 mad is the robust counterpart of sd.
    """

    count: np.ndarray
    enough: np.ndarray
    median: np.ndarray
    mad: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    q01: np.ndarray
    q025: np.ndarray
    q05: np.ndarray
    q95: np.ndarray
    q975: np.ndarray
    q99: np.ndarray

    @classmethod
    def of(cls, samples: np.ndarray, min_count: int = MIN_COUNT) -> Summary:
        """samples (N, M), NaN where a body doesn't show the quantity."""
        columns = [column[np.isfinite(column)] for column in np.asarray(samples, dtype=np.float64).T]
        count = np.array([len(column) for column in columns], dtype=np.int64)
        rows = np.array([_describe(column) for column in columns]).reshape(len(columns), len(_STATISTICS))
        return cls(count, count >= min_count, *rows.T)


_STATISTICS = tuple(f.name for f in fields(Summary))[2:]
_LEVELS = [0.01, 0.025, 0.05, 0.95, 0.975, 0.99]


@dataclass(frozen=True, eq=False)
class SkeletonStats:
    """What `compute_stats` found; `save` and `load` keep it.

    limbs: normaliser -> Summary over the L limbs of skeleton.limb_edges, lengths in units of that body size.
    log_ratio: over the P rows of skeleton.mirrored_limbs, log(left / right). angles: over the T rows of
    skeleton.angle_triplets, radians. offsets: over the K joints, length of the differential coordinate
    (measure.joint_offsets) / sqrt_area: of one unit only, the one that losses share. body: over the rows of
    BODY, measure.relative_size (to medians of limbs['sqrt_area'] that are enough) and measure.inversion.
    labeled, visible (K,): share of instances with v > 0 and with v = 2.
    counts: 'instances', 'complete' (every limb labeled). provenance: what it was made from.
    """

    skeleton: Skeleton
    limbs: dict[str, Summary]
    log_ratio: Summary
    angles: Summary
    offsets: Summary
    body: Summary
    labeled: np.ndarray
    visible: np.ndarray
    counts: dict[str, int]
    provenance: dict = field(default_factory=dict)

    def limb(self, normaliser: str = "sqrt_area") -> Summary:
        if normaliser not in self.limbs:
            raise SagecacheError(f"no limb statistics by '{normaliser}'", fix=nearest(normaliser, self.limbs))
        return self.limbs[normaliser]

    def as_dict(self) -> dict:
        """Plain values for JSON; what was not measured is null."""
        limb_names, triplets = self.skeleton.limb_names, _triplet_names(self.skeleton)
        return {
            "format": FORMAT,
            "version": VERSION,
            "skeleton": self.skeleton.as_dict(),
            "provenance": dict(self.provenance),
            "counts": dict(self.counts),
            "visibility": {
                name: {"labeled": _plain(a), "visible": _plain(b)}
                for name, a, b in zip(self.skeleton.names, self.labeled, self.visible, strict=True)
            },
            "limbs": {name: _to_rows(summary, limb_names) for name, summary in self.limbs.items()},
            "log_ratio": _to_rows(self.log_ratio, _pair_names(self.skeleton)),
            "angles": _to_rows(self.angles, triplets),
            "offsets": _to_rows(self.offsets, self.skeleton.names),
            "body": _to_rows(self.body, BODY),
        }

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all: temporary name, fsync, rename."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path, skeleton: Skeleton | None = None) -> SkeletonStats:
        """Read what `save` wrote. Raises SagecacheError for a missing or foreign file, another version,
        contents that contradict themselves, or, where skeleton is given, statistics of another skeleton.
        """
        content = _read(path)
        try:
            stats = _from_dict(content)
        except SagecacheError as error:
            raise SagecacheError(error.message, file=path, record=error.record, fix=REMAKE) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SagecacheError(
                f"is damaged: {type(error).__name__} {error}", file=path, fix=REMAKE
            ) from None
        if skeleton is not None and stats.skeleton != skeleton:
            differing = [
                key for key, value in skeleton.as_dict().items() if stats.skeleton.as_dict()[key] != value
            ]
            raise SagecacheError(
                f"was made for another skeleton: {', '.join(differing)} differ", file=path, fix=REMAKE
            )
        return stats


def compute_stats(
    keypoints: np.ndarray,
    bboxes: np.ndarray,
    skeleton: Skeleton,
    *,
    provenance: Mapping | None = None,
    min_count: int = MIN_COUNT,
) -> SkeletonStats:
    """Summarise N labeled bodies in one pass.

    keypoints (N, K, 3): x, y, v (COCO: 0 not labeled, 1 occluded, 2 visible; both labeled kinds are
    measured), pixels. bboxes (N, 4) xywh in the same pixels. provenance: JSON values that say where the
    labels come from, such as {'annotations_sha256': ...}. Raises SagecacheError for other shapes, non-finite
    values or no body at all.
    """
    keypoints, bboxes = np.asarray(keypoints, dtype=np.float64), np.asarray(bboxes, dtype=np.float64)
    count = skeleton.num_keypoints
    if keypoints.ndim != 3 or keypoints.shape[1:] != (count, 3) or bboxes.shape != (len(keypoints), 4):
        raise SagecacheError(
            f"keypoints {keypoints.shape} and boxes {bboxes.shape} are not (N, {count}, 3) and (N, 4)"
        )
    if not (np.isfinite(keypoints).all() and np.isfinite(bboxes).all()):
        raise SagecacheError("keypoints and boxes must be finite")
    if len(keypoints) == 0:
        raise SagecacheError("no labeled person to summarise", fix="Check the split: sagecache data check")

    seen = keypoints[..., 2] > 0
    lengths = limb_lengths(keypoints, skeleton.limb_edges)
    lengths = np.where(all_visible(seen, skeleton.limb_edges) & (lengths > 0), lengths, np.nan)
    sizes = {name: body_size(name, keypoints, seen, bboxes, skeleton) for name in NORMALISERS}
    left, right = skeleton.mirrored_limbs.T
    angles = joint_angles(keypoints, skeleton.angle_triplets)
    angles = np.where(all_visible(seen, skeleton.angle_triplets), angles, np.nan)
    limbs = {name: Summary.of(lengths / size[:, None], min_count) for name, size in sizes.items()}
    scale = sizes["sqrt_area"][:, None]
    typical = limbs["sqrt_area"]
    body = [
        relative_size(lengths / scale, np.where(typical.enough, typical.median, np.nan)),
        inversion(keypoints, seen, skeleton),
    ]
    return SkeletonStats(
        skeleton=skeleton,
        limbs=limbs,
        log_ratio=Summary.of(np.log(lengths[:, left]) - np.log(lengths[:, right]), min_count),
        angles=Summary.of(angles, min_count),
        offsets=Summary.of(joint_offsets(keypoints, seen, skeleton) / scale, min_count),
        body=Summary.of(np.stack(body, axis=1), min_count),
        labeled=seen.mean(axis=0),
        visible=(keypoints[..., 2] == 2).mean(axis=0),
        counts={
            "instances": len(keypoints),
            "complete": int(np.isfinite(lengths).all(axis=1).sum()),
            "min_count": min_count,
        },
        provenance=dict(provenance or {}),
    )


def _describe(values: np.ndarray) -> list[float]:
    """The fields of Summary after 'enough', in their order."""
    if len(values) == 0:
        return [np.nan] * len(_STATISTICS)
    median = np.median(values)
    spread = [np.median(np.abs(values - median)), values.mean(), values.std()]
    return [median, *spread, *np.quantile(values, _LEVELS)]


def _pair_names(skeleton: Skeleton) -> list[str]:
    return [f"{skeleton.limb_names[i]}/{skeleton.limb_names[j]}" for i, j in skeleton.mirrored_limbs]


def _triplet_names(skeleton: Skeleton) -> list[str]:
    return ["-".join(skeleton.names[k] for k in triplet) for triplet in skeleton.angle_triplets]


def _to_rows(summary: Summary, names) -> dict[str, dict]:
    keys = [f.name for f in fields(Summary)]
    return {name: {key: _plain(getattr(summary, key)[i]) for key in keys} for i, name in enumerate(names)}


def _plain(value) -> float | int | bool | None:
    value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


def _read(path: str | Path) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SagecacheError(
            "skeleton statistics are missing", file=path, fix="Make them: sagecache precompute stats"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SagecacheError(f"is not readable as JSON: {error}", file=path, fix=REMAKE) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SagecacheError(f"is not a file of format {FORMAT}", file=path, fix=REMAKE)
    if content.get("version") != VERSION:
        raise SagecacheError(
            f"has version {content.get('version')}, this program reads {VERSION}", file=path, fix=REMAKE
        )
    return content


def _from_dict(content: dict) -> SkeletonStats:
    written = content["skeleton"]
    skeleton = Skeleton(
        written["name"],
        tuple(written["names"]),
        np.array(written["edges"], dtype=np.int64),
        np.array(written["flip_indices"], dtype=np.int64),
        np.array(written["sigmas"], dtype=np.float64),
    )
    rates = [content["visibility"][name] for name in skeleton.names]
    return SkeletonStats(
        skeleton=skeleton,
        limbs={name: _to_summary(rows, skeleton.limb_names) for name, rows in content["limbs"].items()},
        log_ratio=_to_summary(content["log_ratio"], _pair_names(skeleton)),
        angles=_to_summary(content["angles"], _triplet_names(skeleton)),
        offsets=_to_summary(content["offsets"], skeleton.names),
        body=_to_summary(content["body"], BODY),
        labeled=np.array([rate["labeled"] for rate in rates], dtype=np.float64),
        visible=np.array([rate["visible"] for rate in rates], dtype=np.float64),
        counts=dict(content["counts"]),
        provenance=dict(content["provenance"]),
    )


def _to_summary(rows: Mapping, names) -> Summary:
    """Rows keyed by name -> arrays in the order of names, which must be exactly the file's."""
    if sorted(rows) != sorted(names):
        raise ValueError(f"rows {sorted(set(rows) ^ set(names))} do not match the skeleton")
    kinds = {"count": np.int64, "enough": bool}
    columns = {
        f.name: np.array([rows[name][f.name] for name in names], dtype=kinds.get(f.name, np.float64))
        for f in fields(Summary)
    }
    if not all(np.isfinite(columns[key][columns["count"] > 0]).all() for key in _STATISTICS):
        raise ValueError("a measured quantity has no value")
    return Summary(**columns)
