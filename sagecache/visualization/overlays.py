"""Pictures with a pseudo-label on them, for a page: the picture as a JPEG, limbs and joints as shapes above
it, which stay sharp at any size and can be pointed at. What became of a joint has a shape and a colour.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sagecache.skeleton import Skeleton

QUALITY = 88


@dataclass(frozen=True)
class FateStyle:
    """How a joint's fate is shown. shape: an SVG path of radius 1; learned joints are filled shapes, dropped
    ones are open. name is the mark's id and its class.
    """

    name: str
    words: str
    meaning: str
    learned: bool
    shape: str


_CIRCLE = "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0-1 0Z"
_SQUARE = "M-.9-.9H.9V.9H-.9Z"
_DIAMOND = "M0-1.25L1.25 0L0 1.25L-1.25 0Z"
_UP = "M0-1.2L1.15.9H-1.15Z"
_DOWN = "M0 1.2L1.15-.9H-1.15Z"
_CROSS = "M-1-1L1 1M1-1L-1 1"
_PLUS = "M-1.2 0H1.2M0-1.2V1.2"
_BAR = "M-1.2 0H1.2"

FATES = {
    style.name: style
    for style in (
        FateStyle("kept", "kept", "above its threshold", True, _CIRCLE),
        FateStyle("corrected", "corrected", "exchanged with its mirror partner", True, _SQUARE),
        FateStyle("rescued", "rescued", "below its threshold, kept by a floor", True, _DIAMOND),
        FateStyle("by_prior", "by the prior", "learned from where the prior puts it", True, _UP),
        FateStyle("low_confidence", "low confidence", "below its threshold", False, _CIRCLE),
        FateStyle("disagree", "views disagree", "the views put it in different places", False, _DOWN),
        FateStyle("swapped", "swapped", "looks like the other side's joint", False, _CROSS),
        FateStyle("instance", "person silenced", "dropped with its whole person", False, _SQUARE),
        FateStyle("refused", "refused by the gate", "its person failed the hybrid gate", False, _PLUS),
        FateStyle("out_of_view", "out of view", "outside the view", False, _BAR),
    )
}
_OTHER = FateStyle("other", "other", "a reason that this page has no sign for", False, _DIAMOND)


def fate_style(name: str) -> FateStyle:
    """The style of a fate; one that is not known keeps its own name in words."""
    if name in FATES:
        return FATES[name]
    return FateStyle(_OTHER.name, name.replace("_", " "), _OTHER.meaning, False, _OTHER.shape)


def all_styles() -> list[FateStyle]:
    return [*FATES.values(), _OTHER]


@dataclass(frozen=True, eq=False)
class View:
    """A picture (H, W, 3) uint8 RGB and joints (K, 2) in its pixels; marked (K,) bool: those to show.

    truth (K, 2): the annotated joints, NaN where there is none; None where they are not shown.
    """

    title: str
    image: np.ndarray
    joints: np.ndarray
    marked: np.ndarray
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class Mark:
    x: float
    y: float
    style: FateStyle
    title: str


@dataclass(frozen=True)
class Overlay:
    """A View as the page writes it. unit: of a mark, in the picture's pixels. limbs: x1, y1, x2, y2 and the
    person's own side. truth: x, y of crosses.
    """

    title: str
    label: str
    uri: str
    width: int
    height: int
    unit: float
    limbs: list[tuple[float, float, float, float, str]]
    marks: list[Mark]
    truth: list[tuple[float, float]]


def overlay(view: View, skeleton: Skeleton, fates: Sequence[str], texts: Sequence[str]) -> Overlay:
    """texts (K): what is told of each joint under the pointer."""
    height, width = view.image.shape[:2]
    joints = np.round(np.asarray(view.joints, dtype=float), 1)
    inside = (
        np.isfinite(joints).all(1) & (joints >= -0.5).all(1) & (joints < [width - 0.5, height - 0.5]).all(1)
    )
    # limbs may leave the picture, so their ends need not be inside; far away ones would be no limbs
    near = np.isfinite(joints).all(1) & (np.abs(joints) < 4 * max(width, height)).all(1)
    drawn = view.marked & near
    sides = joint_sides(skeleton)
    limbs = [
        (*joints[a].tolist(), *joints[b].tolist(), sides[a] if sides[a] == sides[b] else "middle")
        for a, b in skeleton.edges.tolist()
        if drawn[a] and drawn[b]
    ]
    marks = [
        Mark(*joints[k].tolist(), fate_style(fates[k]), f"{joint_words(skeleton.names[k])}: {texts[k]}")
        for k in np.flatnonzero(view.marked & inside)
    ]
    shown = int((view.marked & inside).sum())
    truth = [] if view.truth is None else np.round(view.truth[np.isfinite(view.truth).all(1)], 1).tolist()
    return Overlay(
        view.title,
        f"{view.title} with {shown} of {len(joints)} joints",
        data_uri(view.image),
        width,
        height,
        round(width / 52, 2),
        limbs,
        marks,
        [tuple(point) for point in truth],
    )


def data_uri(image: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a JPEG that stands in the page itself."""
    done, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    )
    if not done:
        raise ValueError(f"no JPEG can be made of a picture {image.shape}")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def joint_sides(skeleton: Skeleton) -> list[str]:
    """'left', 'right' or 'middle' for each joint: the person's own sides."""
    sides = ["middle"] * skeleton.num_keypoints
    for left, right in skeleton.mirrored_joints.tolist():
        sides[left], sides[right] = "left", "right"
    return sides


def joint_words(name: str) -> str:
    return name.replace("_", " ")
