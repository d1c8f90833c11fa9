"""What CMGC and the term 'geometry' may compare with: stores of the right targets, and the labeled bodies'
limb ratios in them.

CMGC's terms fall silent, without an error of their own, where depth has no gain or limbs no reference. So
everything that would make them so is looked for before training starts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sagecache.data.targets import dequantise
from sagecache.errors import SagecacheError
from sagecache.geometry.affine import transform_points
from sagecache.priors.cmgc import (
    HIGHEST_SPREAD,
    MIN_BODIES,
    MIN_LIMBS,
    LimbReference,
    limb_log_lengths,
    ratio_statistics,
)
from sagecache.project import Project
from sagecache.skeleton.definition import Skeleton

logger = logging.getLogger(__name__)

SILENCE = "or give the cmgc terms weight 0"
NEEDED = ("depth", "normal")
BATCH = 64  # bodies whose maps are decoded at a time


def check_store(project: Project, split: str) -> None:
    """Raise SagecacheError unless the split's store has depth and normals, and a depth that grows away."""
    root = project.geometry_store(split)
    reader = project.joined_targets(split)
    missing = [name for name in NEEDED if name not in reader.fields]
    if missing:
        raise SagecacheError(
            f"CMGC compares with depth and normals, and the teacher of this store gave no {missing[0]}",
            file=root,
            fix=f"Choose a teacher of both and run '{_geo(project, split, again=True)}', {SILENCE}.",
        )
    kind = reader.field_attributes("depth")["kind"]
    if kind == "disparity":
        raise SagecacheError(
            "this store's depth is a disparity, which falls away from the camera and is no affine depth: "
            "no gain fits its normals, and CMGC would be silent",
            file=root,
            fix="Choose a teacher of metric or affine depth, or one that gives normals too (they turn its "
            f"disparity into depth), and run '{_geo(project, split, again=True)}', {SILENCE}.",
        )


def check_fields(project: Project, split: str, names: Sequence[str]) -> None:
    """Raise SagecacheError unless the split's store has the maps that the term 'geometry' learns."""
    fields = project.joined_targets(split).fields
    missing = [name for name in names if name not in fields]
    if missing:
        raise SagecacheError(
            f"the term 'geometry' learns {', '.join(names)}, and this store has no {missing[0]}",
            file=project.geometry_store(split),
            fix=f"Set semi.terms.geometry.{missing[0]}=0, or choose a teacher of it and run "
            f"'{_geo(project, split, again=True)}'.",
        )


def limb_edges(skeleton: Skeleton, tubes: bool = False) -> torch.Tensor:
    """(E, 2): the skeleton's limbs; tubes: only those whose two ends lie on one side of the body.

    Arms and legs are near cylinders, and the edges of the trunk are not; a skeleton names its trunk's
    corners by torso_joints. Raises SagecacheError where there is none.
    """
    edges = skeleton.limb_edges
    if tubes and len(edges):
        trunk = set() if skeleton.torso_joints is None else set(skeleton.torso_joints.ravel().tolist())
        edges = edges[np.array([not {int(a), int(b)} <= trunk for a, b in edges])]
    if len(edges) == 0:
        what = "arm or leg" if tubes else "limb"
        raise SagecacheError(
            f"the skeleton '{skeleton.name}' has no {what}, and CMGC compares limbs",
            file="data.py",
            fix=f"Name a dataset_info with a skeleton_info, {SILENCE}.",
        )
    return torch.tensor(edges)


def labeled_reference(project: Project, splits: Sequence[str], edges: torch.Tensor) -> LimbReference:
    """Limb ratios of the labeled bodies in their own cached depth: the same teacher, the same function.

    edges (E, 2). Warns of limbs without a reference; raises SagecacheError where too few have one for the
    term to say anything.
    """
    tables = [table for split in splits for table in _limb_tables(project, split, edges)]
    log_length, weight = (torch.cat(parts) for parts in zip(*tables, strict=True))
    reference = ratio_statistics(log_length, weight)
    usable = reference.spread <= HIGHEST_SPREAD
    if usable.sum() < MIN_LIMBS:
        raise SagecacheError(
            f"{int(usable.sum())} of {len(edges)} limbs have a reference in {len(weight)} labeled bodies, "
            f"and cmgc_depth needs {MIN_LIMBS}: seen at both ends on {MIN_BODIES} bodies that agree",
            file=", ".join(splits),
            fix="Label more bodies, or give cmgc_depth weight 0.",
        )
    if not usable.all():
        names = project.skeleton.names
        lost = [f"{names[a]}-{names[b]}" for a, b in edges[~usable].tolist()]
        logger.warning("cmgc_depth leaves out limbs without a reference: %s", ", ".join(lost))
    return reference


def _limb_tables(
    project: Project, split: str, edges: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Log lengths and weights, (N, E) each, of BATCH bodies of a split at a time; hidden joints weigh 0."""
    if project.split(split).boxes != "annotations":
        raise SagecacheError(
            f"the labeled split '{split}' has detected boxes, whose targets are not the annotated persons'",
            file="data.py",
            fix=f"Set boxes='annotations' and run '{_geo(project, split)}', {SILENCE}.",
        )
    reader = project.joined_targets(split)
    kept = [one for one in project.instances(split) if one.keypoints is not None and one.key in reader]
    if not kept:
        raise SagecacheError(
            f"no labeled body of '{split}' has targets",
            file=project.geometry_store(split),
            fix=f"Run '{_geo(project, split)}', {SILENCE}.",
        )
    for first in range(0, len(kept), BATCH):
        batch = kept[first : first + BATCH]
        read = reader.read_many([one.key for one in batch])
        raw = {name: torch.from_numpy(value) for name, value in read.items()}
        maps = dequantise(raw)
        keypoints = torch.from_numpy(np.stack([one.keypoints for one in batch])).float()
        points = transform_points(raw["target_from_image"].float(), keypoints[..., :2])
        seen = (keypoints[..., 2] == 2).float()
        yield limb_log_lengths(points, seen, maps["depth"], maps["normal"], maps["mask"], edges)


def _geo(project: Project, split: str, again: bool = False) -> str:
    """again: a store of another teacher is there, which is set aside."""
    return project.command(f"sagecache precompute geo --split {split}{' --force' if again else ''}")
