"""What a body is: joint names, edges, mirror pairs, OKS sigmas, and what follows from them.

Everything is read from the schema of an mmpose ``dataset_info`` (or from `COCO17`); limbs and angles are
derived by rules on names and edges, so that a user's own skeleton needs no table of ours. Knows no image,
no annotation file and no torch. The arrays are read-only: ``torch.tensor(skeleton.edges)`` copies them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sagecache.errors import SagecacheError, nearest

# Words that mark a joint of the head. The face moves as one piece and an ear-shoulder edge is no bone, so
# edges that touch such a joint are drawn but not measured.
HEAD_WORDS = frozenset(
    "head forehead face nose eye eyes eyebrow brow ear ears mouth lip lips chin jaw cheek pupil".split()
)


@dataclass(frozen=True, eq=False)
class Skeleton:
    """K joints and E edges.

    names (K,): unique. edges (E, 2) int64: joint indices. flip_indices (K,) int64: the joint that takes this
    one's place in a mirrored image (itself on the midline). sigmas (K,) float64: OKS constants, in units of
    the square root of the person's area. Raises SagecacheError where these contradict each other.
    """

    name: str
    names: tuple[str, ...]
    edges: np.ndarray
    flip_indices: np.ndarray
    sigmas: np.ndarray

    def __post_init__(self) -> None:
        arrays = {
            "edges": np.array(self.edges, dtype=np.int64).reshape(-1, 2),
            "flip_indices": np.array(self.flip_indices, dtype=np.int64),
            "sigmas": np.array(self.sigmas, dtype=np.float64),
        }
        object.__setattr__(self, "names", tuple(self.names))
        for key, value in arrays.items():
            value.setflags(write=False)
            object.__setattr__(self, key, value)
        problem = self._contradiction()
        if problem:
            raise SagecacheError(problem, record=f"skeleton '{self.name}'")

    def _contradiction(self) -> str | None:
        count = len(self.names)
        if len(set(self.names)) != count or count == 0:
            return "joint names must be unique, and there must be some"
        if self.flip_indices.shape != (count,) or sorted(self.flip_indices) != list(range(count)):
            return "flip_indices must be a permutation of the joints"
        if not np.array_equal(self.flip_indices[self.flip_indices], np.arange(count)):
            return "flip_indices must undo themselves: the mirror of a joint's mirror is the joint"
        if self.sigmas.shape != (count,) or not (self.sigmas > 0).all():
            return f"sigmas must be {count} positive numbers"
        if self.edges.size and not (0 <= self.edges.min() and self.edges.max() < count):
            return f"edges must name joints 0 to {count - 1}"
        if (self.edges[:, 0] == self.edges[:, 1]).any():
            return "an edge joins two different joints"
        if len({frozenset(edge) for edge in self.edges.tolist()}) != len(self.edges):
            return "an edge is listed twice"
        return None

    @classmethod
    def from_dataset_info(cls, info: Mapping) -> Skeleton:
        """Read mmpose's schema: dataset_name, keypoint_info {id: {name, swap, …}}, skeleton_info
        {i: {link: (name, name)}}, joint_weights, sigmas. Raises SagecacheError naming the bad entry.
        """
        label = (
            f"dataset_info '{info.get('dataset_name', '?')}'" if isinstance(info, Mapping) else "dataset_info"
        )
        _require_keys(info, label)
        names, swaps = _read_keypoints(info["keypoint_info"], label)
        index = {name: k for k, name in enumerate(names)}

        def joint(name: str, where: str) -> int:
            if name not in index:
                raise SagecacheError(
                    f"unknown joint '{name}'", record=f"{label}, {where}", fix=nearest(str(name), names)
                )
            return index[name]

        flip = [joint(swap or name, f"swap of '{name}'") for name, swap in zip(names, swaps, strict=True)]
        edges = []
        for i, entry in info["skeleton_info"].items():
            where = f"skeleton_info[{i}]"
            link = entry.get("link") if isinstance(entry, Mapping) else None
            if not isinstance(link, (list, tuple)) or len(link) != 2:
                raise SagecacheError("needs link=(joint, joint)", record=f"{label}, {where}")
            edges.append([joint(end, where) for end in link])
        for key in ("joint_weights", "sigmas"):
            if len(info[key]) != len(names):
                raise SagecacheError(
                    f"{key} has {len(info[key])} entries for {len(names)} joints",
                    record=label,
                    fix="Give one for each joint (sigmas: .025 for an eye to .107 for a hip in COCO)",
                )
        return cls(str(info["dataset_name"]), tuple(names), np.array(edges), np.array(flip), info["sigmas"])

    @property
    def num_keypoints(self) -> int:
        return len(self.names)

    @cached_property
    def is_head(self) -> np.ndarray:
        """(K,) bool: the name holds a word of HEAD_WORDS ('left_ear', 'R_Eye', 'face-3'; not 'forearm')."""
        return _frozen([bool(HEAD_WORDS & set(_words(name))) for name in self.names], bool)

    @cached_property
    def limb_edges(self) -> np.ndarray:
        """(L, 2) int64: the edges that touch no joint of the head, in their order. For COCO-17 the arms,
        the legs, the shoulder and hip lines and the sides of the torso: 12 of 19.
        """
        return _frozen(self.edges[~self.is_head[self.edges].any(axis=1)])

    @cached_property
    def limb_names(self) -> tuple[str, ...]:
        return tuple(f"{self.names[a]}-{self.names[b]}" for a, b in self.limb_edges)

    @cached_property
    def mirrored_limbs(self) -> np.ndarray:
        """(P, 2) int64: rows of limb_edges that mirror each other, the left one first where names tell."""
        row = {frozenset(edge): i for i, edge in enumerate(self.limb_edges.tolist())}
        twins = [row.get(frozenset(edge)) for edge in self.flip_indices[self.limb_edges].tolist()]
        pairs = [(i, j) for i, j in enumerate(twins) if j is not None and i < j]
        return _frozen([(j, i) if self._is_right(self.limb_edges[i]) else (i, j) for i, j in pairs]).reshape(
            -1, 2
        )

    @cached_property
    def mirrored_joints(self) -> np.ndarray:
        """(P, 2) int64: joints that change places in a mirror, the left one first where names tell."""
        pairs = [(k, j) for k, j in enumerate(self.flip_indices.tolist()) if k < j]
        return _frozen([(j, k) if self._is_right([k]) else (k, j) for k, j in pairs]).reshape(-1, 2)

    @cached_property
    def angle_triplets(self) -> np.ndarray:
        """(T, 3) int64 [a, vertex, b]: each joint with exactly two limbs besides the line to its own mirror
        (shoulder line, hip line). For COCO-17 elbows, knees, shoulders (elbow, shoulder, hip) and hips.
        Mirrored triplets list their ends in the same order.
        """
        triplets = []
        for vertex in range(self.num_keypoints):
            ends = self.limb_edges[(self.limb_edges == vertex).any(axis=1)].ravel()
            ends = [k for k in ends.tolist() if k not in (vertex, self.flip_indices[vertex])]
            if len(ends) == 2:
                a, b = sorted(ends, key=lambda k: min(k, self.flip_indices[k]))
                triplets.append((a, vertex, b))
        return _frozen(triplets).reshape(-1, 3)

    @cached_property
    def laplacian(self) -> np.ndarray:
        """(K, K) float64: 1 for the joint, -1/n for each of its n neighbours along the edges, 0 elsewhere.

        Times the positions it gives each joint's differential coordinate, its offset from the mean of its
        neighbours (the random-walk Laplacian, I - D^-1 A). The row of a joint without edges is 0.
        """
        adjacent = np.zeros((self.num_keypoints, self.num_keypoints))
        adjacent[self.edges[:, 0], self.edges[:, 1]] = adjacent[self.edges[:, 1], self.edges[:, 0]] = 1
        degree = adjacent.sum(axis=1)
        return _frozen(np.diag(degree > 0) - adjacent / np.maximum(degree, 1)[:, None], np.float64)

    @cached_property
    def torso_joints(self) -> np.ndarray | None:
        """(2, 2) int64: the two shoulders and the two hips, by name; None for a body without them."""
        pairs = []
        for word in ("shoulder", "hip"):
            found = [pair for pair in self.mirrored_joints.tolist() if word in _words(self.names[pair[0]])]
            if len(found) != 1:
                return None
            pairs += found
        return _frozen(pairs)

    def as_dict(self) -> dict:
        """Plain values for JSON and fingerprints."""
        return {
            "name": self.name,
            "names": list(self.names),
            "edges": self.edges.tolist(),
            "flip_indices": self.flip_indices.tolist(),
            "sigmas": self.sigmas.tolist(),
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skeleton) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.names))

    def _is_right(self, joints) -> bool:
        words = {word for k in joints for word in _words(self.names[k])}
        return bool(words & {"right", "r"})


def _words(name: str) -> list[str]:
    """'left_ear' -> left, ear; 'LeftEar' -> left, ear; 'face-12' -> face."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _frozen(values, dtype: type = np.int64) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array


def _require_keys(info: Mapping, label: str) -> None:
    needed = ("dataset_name", "keypoint_info", "skeleton_info", "joint_weights", "sigmas")
    if not isinstance(info, Mapping):
        raise SagecacheError(f"must be a dict, not {type(info).__name__}", record=label)
    missing = [key for key in needed if key not in info]
    if missing:
        raise SagecacheError(
            f"lacks {', '.join(missing)}", record=label, fix="See mmpose's configs/_base_/datasets/coco.py"
        )
    for key in ("keypoint_info", "skeleton_info"):
        if not isinstance(info[key], Mapping):
            raise SagecacheError(f"{key} must be a dict of dicts", record=label)


def _read_keypoints(entries: Mapping, label: str) -> tuple[list[str], list[str]]:
    """Names and swap names in the order of the keys, which must be 0 to K-1 (strings after JSON). As in
    mmpose the key counts, not the entry's own ``id``, which some of its files have wrong.
    """
    try:
        by_id = {int(key): entry for key, entry in entries.items()}
    except (TypeError, ValueError):
        raise SagecacheError("keypoint_info must be keyed by joint number", record=label) from None
    if sorted(by_id) != list(range(len(entries))):
        raise SagecacheError(
            f"keypoint_info must be numbered 0 to {len(entries) - 1}, found {sorted(by_id)}", record=label
        )
    for k, entry in by_id.items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise SagecacheError("needs a name", record=f"{label}, keypoint_info[{k}]")
    ordered = [by_id[k] for k in range(len(by_id))]
    names = [entry["name"] for entry in ordered]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SagecacheError(f"joint names must be unique, found twice: {', '.join(twice)}", record=label)
    return names, [entry.get("swap") or "" for entry in ordered]


COCO17 = Skeleton(
    name="coco",
    names=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    edges=np.array(
        [
            *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12)),  # legs, hips
            *((5, 11), (6, 12), (5, 6)),  # sides, shoulders
            *((5, 7), (6, 8), (7, 9), (8, 10)),  # arms
            *((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),  # head
        ]
    ),
    flip_indices=np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]),
    sigmas=np.array(
        [0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072]
        + [0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089]
    ),
)
