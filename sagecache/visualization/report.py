"""Sheets for people: all that is known of one instance, one person as a tile, many pictures as a montage.

Takes values, decodes nothing but a store's row, runs no network and reads no file.
``python -m sagecache.visualization.report [FILE]`` writes the panel of a made-up infant.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from sagecache.data.views import warp_image
from sagecache.geometry.affine import Size, apply_affine, crop_affine, resize_affine
from sagecache.skeleton import COCO17, Skeleton
from sagecache.store.codec import decode_depth, decode_normal, encode_depth, encode_normal
from sagecache.structures import Instance
from sagecache.visualization.draw import (
    NOTHING,
    colour_depth,
    colour_normals,
    depth_scale,
    draw_box,
    draw_mask,
    draw_skeleton,
    joint_colours,
)
from sagecache.visualization.sample import figure
from sagecache.visualization.sheet import (
    BACKGROUND,
    INK,
    MUTED,
    Text,
    Tile,
    fit,
    grid,
    shortened,
    stack,
    text_width,
    write,
)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a checkpoint says of one instance, and what the gate made of it.

    student, ema_teacher (K, 3): x, y in image pixels and confidence in [0, 1]. keep (K,) bool: joints that
    would be learned from; None without a gate. plausibility: KPS in [0, 1]. teacher_a: the gate takes the EMA
    teacher's pose as it is (A) rather than corrected by the prior (B). corrected (K, 2): pose B, where there
    is a prior.
    """

    student: np.ndarray
    ema_teacher: np.ndarray
    keep: np.ndarray | None = None
    plausibility: float = math.nan
    teacher_a: bool = False
    corrected: np.ndarray | None = None

    @property
    def gate(self) -> str:
        """Whom the gate believes, in words."""
        if self.keep is None:
            return "none: the recipe learns from labels alone"
        other = "nobody: refused" if self.corrected is None else "B, corrected by the prior"
        return "A, the EMA teacher" if self.teacher_a else other

    @property
    def kept(self) -> str:
        return "" if self.keep is None else f"{int(self.keep.sum())} of {len(self.keep)}"


def inspect_panel(
    image: np.ndarray,
    instance: Instance,
    skeleton: Skeleton,
    targets: Mapping[str, np.ndarray] | None = None,
    predictions: Predictions | None = None,
    depth_kind: str = "affine",
    unit: str | None = None,
    height: int = 360,
) -> np.ndarray:
    """All that is known of one instance on one sheet.

    image (H, W, 3) uint8 RGB, the whole picture. targets: a row as StoreReader.read gives it, with any of
    depth, normal, mask. depth_kind and unit: of the stored depth ('disparity' grows towards the camera).
    height: of a tile, pixels. First row: the image with box and annotated joints, the target crop and its
    targets; second row, with predictions: student, EMA teacher, pose B, and the confidences by joint.
    """
    size, shown_from_image = _crop_frame(instance, targets, height)
    crop = warp_image(image, shown_from_image, size, border=NOTHING)
    annotated = crop
    if instance.keypoints is not None:
        annotated = draw_skeleton(crop, _moved(instance.keypoints, shown_from_image), skeleton)
    tiles = [
        _image_tile(image, instance, skeleton, height),
        Tile(annotated, "target crop", _labels(instance)),
    ]
    if targets is not None:
        tiles += _target_tiles(crop, targets, depth_kind, unit)
    rows = [grid(tiles, len(tiles))]
    if predictions is not None:
        tiles = _prediction_tiles(crop, predictions, skeleton, shown_from_image)
        rows.append(grid(tiles, len(tiles)))
    return stack(rows)


def person_tile(
    image: np.ndarray,
    bbox: tuple[float, float, float, float],
    size: Size,
    skeleton: Skeleton,
    keypoints: np.ndarray,
    confidence: np.ndarray | None = None,
    padding: float = 1.25,
) -> np.ndarray:
    """One person cut out at size (width, height), with a skeleton on it.

    keypoints (K, 2), or (K, 3) with v, in image pixels; confidence and padding as in draw_skeleton and
    crop_affine.
    """
    shown_from_image = crop_affine(bbox, size, padding)
    crop = warp_image(image, shown_from_image, size, border=NOTHING)
    return draw_skeleton(crop, _moved(keypoints, shown_from_image), skeleton, confidence)


def montage(
    images: Sequence[np.ndarray], columns: int, labels: Sequence[str] = (), cell: Size | None = None
) -> np.ndarray:
    """Pictures in reading order with their labels above; cell (width, height): fit each into that space."""
    labels = [*labels, *[""] * (len(images) - len(labels))]
    shown = [fit(image, cell)[0] if cell else image for image in images]
    return grid([Tile(*pair) for pair in zip(shown, labels, strict=True)], columns)


# --- first row -----------------------------------------------------------------------------------


def _crop_frame(
    instance: Instance, targets: Mapping[str, np.ndarray] | None, height: int
) -> tuple[Size, np.ndarray]:
    """Size and shown_from_image of the crop's tiles: the targets' own frame, enlarged; else a padded box."""
    maps = [targets[name] for name in ("mask", "depth", "normal") if name in targets] if targets else []
    if not maps:
        size = (round(height * 0.75), height)
        return size, crop_affine(instance.bbox, size, padding=1.25 * 1.5)
    map_height, map_width = maps[0].shape[-2:]
    size = (max(2, round(height * map_width / map_height)), height)
    return size, resize_affine((map_width, map_height), size) @ targets["target_from_image"]


def _image_tile(image: np.ndarray, instance: Instance, skeleton: Skeleton, height: int) -> Tile:
    shown, shown_from_image = fit(image, (2 * height, height))
    corner = apply_affine(shown_from_image, np.array([instance.bbox[:2]], dtype=float))[0]
    extent = np.diag(shown_from_image)[:2] * instance.bbox[2:]
    if instance.keypoints is not None:
        shown = draw_skeleton(shown, _moved(instance.keypoints, shown_from_image), skeleton)
    shown = draw_box(shown, (*corner, *extent))
    pixels = f"{image.shape[1]} x {image.shape[0]} px, box {instance.bbox[2]:.0f} x {instance.bbox[3]:.0f}"
    return Tile(shown, f"image {instance.image_id}, instance {instance.instance}", pixels)


def _labels(instance: Instance) -> str:
    if instance.keypoints is None:
        return "no annotation"
    visibility = instance.keypoints[:, 2]
    return f"{(visibility == 2).sum()} visible, {(visibility == 1).sum()} occluded"


def _target_tiles(
    crop: np.ndarray, targets: Mapping[str, np.ndarray], depth_kind: str, unit: str | None
) -> list[Tile]:
    """Depth, normals and mask as far as the store has them, at the size of the crop."""
    size = (crop.shape[1], crop.shape[0])
    valid = targets["mask"] if "mask" in targets else None
    tiles = []
    if "depth" in targets:
        depth = decode_depth(targets["depth"], targets.get("depth_range"))
        valid = np.isfinite(depth) if valid is None else valid
        tiles.append(_depth_tile(depth, valid, size, depth_kind, unit))
    if "normal" in targets:
        normal = decode_normal(targets["normal"])
        shown = np.ones(normal.shape[1:], bool) if valid is None else valid
        picture = _enlarged(colour_normals(normal, shown), size)
        tiles.append(Tile(picture, "normals", "red right, green up, blue to the camera"))
    if "mask" in targets:
        mask = _enlarged(targets["mask"].astype(np.uint8) * 255, size) > 127
        share = targets["mask"].mean()
        tiles.append(Tile(draw_mask(crop, mask), "mask", f"{100 * share:.0f} % of the crop"))
    return tiles


def _depth_tile(depth: np.ndarray, mask: np.ndarray, size: Size, kind: str, unit: str | None) -> Tile:
    """kind 'disparity' grows towards the camera: shown with the same colours for near and far."""
    sign = -1 if kind == "disparity" else 1
    picture, span = colour_depth(sign * depth, mask)
    picture = _enlarged(picture, size)
    if span is None:
        return Tile(picture, f"depth ({kind})", "nothing on the mask")
    bar = depth_scale(size[0] // 3, 10)
    picture[-bar.shape[0] - 8 : -8, 8 : 8 + bar.shape[1]] = bar
    near, far = (f"{sign * value:.3g}" for value in span)
    return Tile(picture, f"depth ({kind})", f"near {near}, far {far}{f' {unit}' if unit else ''}")


def _enlarged(picture: np.ndarray, size: Size) -> np.ndarray:
    return cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)


# --- second row ----------------------------------------------------------------------------------


def _prediction_tiles(
    crop: np.ndarray, predictions: Predictions, skeleton: Skeleton, shown_from_image: np.ndarray
) -> list[Tile]:
    tiles = []
    for title, pose in (("student", predictions.student), ("EMA teacher", predictions.ema_teacher)):
        drawn = draw_skeleton(crop, _moved(pose[:, :2], shown_from_image), skeleton, pose[:, 2])
        tiles.append(Tile(drawn, title, f"mean confidence {np.mean(pose[:, 2]):.2f}"))
    if predictions.corrected is not None:
        used = np.where(predictions.keep & (not predictions.teacher_a), 1.0, 0.3)  # faint where nobody learns
        drawn = draw_skeleton(crop, _moved(predictions.corrected, shown_from_image), skeleton, used)
        distance = np.linalg.norm(predictions.corrected - predictions.ema_teacher[:, :2], axis=1).mean()
        tiles.append(Tile(drawn, "pose B", f"moved by {distance:.1f} px on average"))
    chart = _confidence_chart(predictions, skeleton, crop.shape[0])
    title, kept = f"gate: {predictions.gate}", ""
    if predictions.keep is not None:
        title, kept = f"KPS {predictions.plausibility:.2f}, {title}", f"{predictions.kept} joints kept; "
    tiles.append(Tile(chart, title, f"{kept}thin: student"))
    return tiles


def _confidence_chart(
    predictions: Predictions, skeleton: Skeleton, height: int, width: int = 380
) -> np.ndarray:
    """A bar for each joint: thick the EMA teacher in the colour of its side, thin the student.

    Joints that are not kept stay dark. Grows beyond height when the joints need it.
    """
    count = skeleton.num_keypoints
    row = max(9, min(24, height // count))
    font = max(7, min(13, row - 5))
    chart = np.full((max(height, row * count), width, 3), BACKGROUND, dtype=np.uint8)
    label_width = 120
    full = width - label_width - 44
    colours, texts = joint_colours(skeleton), []
    for k, name in enumerate(skeleton.names):
        top, kept = k * row, predictions.keep is None or bool(predictions.keep[k])
        label = shortened(name.replace("_", " "), label_width - 8, font)
        left = label_width - 8 - text_width(label, font)
        teacher, student = (
            float(np.clip(np.nan_to_num(pose[k, 2]), 0, 1))
            for pose in (predictions.ema_teacher, predictions.student)
        )
        thick, thin = max(2, row * 4 // 10), max(1, row // 8)
        bar = chart[top + row // 6 :, label_width:]
        bar[: thick + thin + 1, :full] = NOTHING
        bar[:thick, : round(full * teacher)] = colours[k] if kept else colours[k] // 3
        bar[thick + 1 : thick + 1 + thin, : round(full * student)] = INK if kept else MUTED
        ink = INK if kept else MUTED
        texts += [Text(label, left, top, font, ink), Text(f"{teacher:.2f}", width - 38, top, font, ink)]
    return write(chart, texts)


def _moved(keypoints: np.ndarray, shown_from_image: np.ndarray) -> np.ndarray:
    """keypoints (K, 2 or 3) with x, y moved and v kept."""
    points = apply_affine(shown_from_image, keypoints[:, :2].astype(float))
    return np.c_[points, keypoints[:, 2:]]


# --- sample --------------------------------------------------------------------------------------


def sample_panel() -> np.ndarray:
    """The panel of a made-up infant: exact targets, a student and a teacher that err a little."""
    infant = figure()
    codes, depth_range = encode_depth(infant.depth, infant.mask)
    targets = {
        "depth": codes,
        "depth_range": np.array(depth_range, np.float32),
        "normal": encode_normal(infant.normal, infant.mask),
        "mask": infant.mask,
        "target_from_image": np.eye(3),
    }
    rng = np.random.default_rng(4)
    truth = infant.keypoints[:, :2]
    student, teacher = (
        np.c_[truth + rng.normal(0, spread, truth.shape), rng.uniform(low, 1, 17)]
        for spread, low in ((3.5, 0.1), (1.5, 0.4))
    )
    predictions = Predictions(student, teacher, teacher[:, 2] > 0.55, 0.81, True, truth)
    instance = Instance(12, 0, Path("infant.png"), infant.bbox, keypoints=infant.keypoints)
    return inspect_panel(infant.image, instance, COCO17, targets, predictions)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "report_sample.png")
    cv2.imwrite(str(target), cv2.cvtColor(sample_panel(), cv2.COLOR_RGB2BGR))
    print(target)
