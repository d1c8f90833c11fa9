"""From the joints of one skeleton to those of another: tables by number, and joints found by their names.

A joint without a source is not guessed from its neighbours: it gets visibility 0. Knows arrays and names, and
no file format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sagecache.errors import SagecacheError, nearest
from sagecache.skeleton.definition import COCO17, Skeleton

LEFT_OUT = "none"  # what a joint is mapped to that the skeleton does not have and nobody wants


@dataclass(frozen=True, eq=False)
class JointMap:
    """Which of S source joints each of the K target joints is taken from.

    index (K,) int64: source joint, -1 where there is none. Raises SagecacheError for an index outside the
    source, or a source joint that is taken twice.
    """

    source_count: int
    target: Skeleton
    index: np.ndarray

    def __post_init__(self) -> None:
        index = np.array(self.index, dtype=np.int64)
        index.setflags(write=False)
        object.__setattr__(self, "index", index)
        taken = index[index >= 0]
        if index.shape != (self.target.num_keypoints,) or (index < -1).any():
            raise SagecacheError(f"a joint map needs {self.target.num_keypoints} source joints, -1 for none")
        if taken.size and taken.max() >= self.source_count:
            raise SagecacheError(f"joint {taken.max()} is not one of {self.source_count} source joints")
        if len(set(taken.tolist())) != taken.size:
            raise SagecacheError("a source joint is taken for two joints")

    @property
    def common(self) -> tuple[str, ...]:
        """Names of the target joints that have a source."""
        return tuple(name for name, i in zip(self.target.names, self.index, strict=True) if i >= 0)

    def __call__(self, keypoints: np.ndarray) -> np.ndarray:
        """keypoints (..., S, 3) x, y, v in any frame -> (..., K, 3) float64; 0, 0, 0 without a source."""
        if keypoints.shape[-2:] != (self.source_count, 3):
            raise ValueError(f"keypoints {keypoints.shape}, expected (..., {self.source_count}, 3)")
        converted = np.zeros((*keypoints.shape[:-2], len(self.index), 3))
        there = self.index >= 0
        converted[..., there, :] = keypoints[..., self.index[there], :]
        return converted


# MINI-RGBD and SMIL (Hesse et al., MICCAI 2018) in the order of their joint ids. They follow SMPL, whose
# names mislead: leftShoulder is the collar bone, leftUpperArm the shoulder; leftThigh is the hip, leftFoot
# the ankle, leftHand the wrist.
SMIL25 = (
    *("global", "leftThigh", "rightThigh", "spine", "leftCalf", "rightCalf", "spine1"),
    *("leftFoot", "rightFoot", "spine2", "leftToes", "rightToes", "neck"),
    *("leftShoulder", "rightShoulder", "head", "leftUpperArm", "rightUpperArm"),
    *("leftForeArm", "rightForeArm", "leftHand", "rightHand", "leftFingers", "rightFingers", "noseVertex"),
)

# 13 joints are common. SMIL has neither eyes nor ears.
_SMIL_NAMES = {
    "nose": "noseVertex",
    "left_shoulder": "leftUpperArm",
    "right_shoulder": "rightUpperArm",
    "left_elbow": "leftForeArm",
    "right_elbow": "rightForeArm",
    "left_wrist": "leftHand",
    "right_wrist": "rightHand",
    "left_hip": "leftThigh",
    "right_hip": "rightThigh",
    "left_knee": "leftCalf",
    "right_knee": "rightCalf",
    "left_ankle": "leftFoot",
    "right_ankle": "rightFoot",
}
COCO17_FROM_SMIL25 = JointMap(
    len(SMIL25),
    COCO17,
    np.array([SMIL25.index(_SMIL_NAMES[name]) if name in _SMIL_NAMES else -1 for name in COCO17.names]),
)

# COCO-WholeBody (Jin et al., ECCV 2020): 17 of the body, 6 of the feet, 68 of the face, 21 of each hand.
COCO17_FROM_WHOLEBODY133 = JointMap(133, COCO17, np.arange(17))


def find_joint(name: str, skeleton: Skeleton) -> int | None:
    """The joint that a name means, None for a stranger.

    Case, spaces, hyphens and underscores do not count, and the side may stand before or behind, in full or by
    its first letter: 'left_wrist', 'Left Wrist', 'wrist-left', 'LWrist' are one. 'left' never finds 'right'.
    """
    return _forms(skeleton).get(_plain(name))


def map_by_name(
    names: Sequence[str], skeleton: Skeleton, renamed: Mapping[str, str] | None = None
) -> JointMap:
    """The map from joints with these names. renamed: {their name: ours, or 'none' to leave it out}.

    Raises SagecacheError for names that are unknown, two of one joint, and renamed names that do not occur.
    """
    found = joints_by_name(names, skeleton, renamed)
    strangers = sorted(set(renamed or {}) - set(names))
    if strangers:
        raise SagecacheError(f"no joint is named '{strangers[0]}'", fix=nearest(strangers[0], names))
    index = np.full(skeleton.num_keypoints, -1)
    for i, name in enumerate(names):
        joint = found[name]
        if joint is None:
            continue
        if index[joint] >= 0:
            raise SagecacheError(
                f"'{names[index[joint]]}' and '{name}' are both {skeleton.names[joint]}",
                fix=f"Leave one out: --map '{name}={LEFT_OUT}'",
            )
        index[joint] = i
    return JointMap(len(names), skeleton, index)


def joints_by_name(
    names: Sequence[str], skeleton: Skeleton, renamed: Mapping[str, str] | None = None
) -> dict[str, int | None]:
    """{their name: our joint, None where it is left out}, for each of names. Raises as `map_by_name` does for
    unknown names, all of them in one error.
    """
    renamed = renamed or {}
    found: dict[str, int | None] = {}
    unknown = []
    for name in dict.fromkeys(names):
        ours = renamed.get(name, name)
        if name in renamed and ours == LEFT_OUT:
            found[name] = None
        elif (joint := find_joint(ours, skeleton)) is not None:
            found[name] = joint
        elif name in renamed:
            raise SagecacheError(
                f"'{name}' is mapped to '{ours}', which is no joint", fix=nearest(ours, skeleton.names)
            )
        else:
            unknown.append(name)
    if unknown:
        listed = ", ".join(f"'{name}'" for name in unknown)
        raise SagecacheError(
            f"unknown joints: {listed}",
            fix=f"Say what they are: --map '{unknown[0]}={skeleton.names[0]}', or --map '{unknown[0]}="
            f"{LEFT_OUT}' to leave it out. Known: {', '.join(skeleton.names)}",
        )
    return found


def _forms(skeleton: Skeleton) -> dict[str, int]:
    """{plain name: joint}. A form that two joints would share means neither of them."""
    forms: dict[str, int | None] = {}
    for joint, name in enumerate(skeleton.names):
        own = {_plain(name)}
        side, rest = _side(name)
        if side:
            own |= {side + rest, rest + side, side[0] + rest, rest + side[0]}
        for form in own:
            forms[form] = None if form in forms else joint
    for joint, name in enumerate(skeleton.names):
        forms[_plain(name)] = joint  # a name in full always means its joint
    return {form: joint for form, joint in forms.items() if form and joint is not None}


def _side(name: str) -> tuple[str, str]:
    """('left', 'wrist') of 'left_wrist'; ('', 'nose') of 'nose'."""
    side = next((side for side in ("left", "right") if name.lower().startswith(side)), "")
    return side, _plain(name)[len(side) :]


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())
