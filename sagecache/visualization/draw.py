"""Marks on a picture and maps as colours: skeletons, boxes, heatmaps, depth, normals, masks.

Everything takes and returns RGB uint8 (H, W, 3), leaves its input as it was, and uses the pixel convention
of `geometry.affine` (centres at integers). Lines are as thick as the picture is large: fit it first
(`sheet.fit`), then draw. ``python -m sagecache.visualization.draw [FILE]`` writes a sample sheet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from sagecache.skeleton import COCO17, Skeleton
from sagecache.visualization.sample import figure
from sagecache.visualization.sheet import Colour, Tile, fit, grid

# The person's own left and right. Orange and blue stay apart for colour-blind readers and on skin.
LEFT: Colour = (255, 150, 50)
RIGHT: Colour = (60, 170, 255)
MIDDLE: Colour = (215, 240, 120)
BOX: Colour = (255, 235, 90)
OUTLINE: Colour = (15, 15, 20)
NOTHING: Colour = (38, 41, 48)

_SHIFT = 4  # cv2 draws at 1/16 px
_INVISIBLE = 0.02  # an opacity not worth drawing
_FAR = 1e6  # beyond this, fixed-point coordinates would overflow


# --- skeletons and boxes -------------------------------------------------------------------------


def joint_colours(skeleton: Skeleton) -> np.ndarray:
    """(K, 3) uint8: LEFT, RIGHT or, on the midline, MIDDLE."""
    colours = np.tile(np.array(MIDDLE, dtype=np.uint8), (skeleton.num_keypoints, 1))
    pairs = skeleton.mirrored_joints
    colours[pairs[:, 0]], colours[pairs[:, 1]] = LEFT, RIGHT
    return colours


def draw_skeleton(
    image: np.ndarray, keypoints: np.ndarray, skeleton: Skeleton, confidence: np.ndarray | None = None
) -> np.ndarray:
    """Limbs and joints in the colours of their side; an edge between the sides is MIDDLE.

    keypoints (K, 2), or (K, 3) with COCO's v: 0 is left out, 1 (occluded) is a ring, 2 a disc.
    confidence (K,) in [0, 1] fades joints, and limbs by the lesser end. Joints that are not finite are
    left out.
    """
    points = keypoints[:, :2].astype(float)
    visibility = keypoints[:, 2] if keypoints.shape[1] > 2 else np.full(len(points), 2)
    opacity = np.ones(len(points)) if confidence is None else np.clip(confidence, 0, 1).astype(float)
    there = (visibility > 0) & np.isfinite(points).all(1) & (np.abs(points) < _FAR).all(1)
    opacity = np.where(there & np.isfinite(opacity), opacity, 0)
    colours = joint_colours(skeleton)
    width = max(1, round(min(image.shape[:2]) / 110))
    picture = image.copy()
    for a, b in skeleton.edges.tolist():
        least = opacity[[a, b]].min()
        if least > _INVISIBLE:
            colour = colours[a] if (colours[a] == colours[b]).all() else MIDDLE
            picture = _blend(picture, partial(_limb, points[[a, b]], colour, width), least)
    for k in np.flatnonzero(opacity > _INVISIBLE):
        hollow = visibility[k] == 1
        picture = _blend(picture, partial(_joint, points[k], colours[k], width + 1, hollow), opacity[k])
    return picture


def draw_box(image: np.ndarray, bbox: tuple[float, float, float, float], colour: Colour = BOX) -> np.ndarray:
    """The outline of bbox (x, y, w, h), given in pixels of image, over a dark rim."""
    x, y, w, h = np.clip(bbox, -_FAR, _FAR)
    corners = [_fixed(corner) for corner in ((x, y), (x + w, y), (x + w, y + h), (x, y + h))]
    width = max(2, round(min(image.shape[:2]) / 160))  # one antialiased pixel would be half a line
    picture = image.copy()
    for tint, thickness in ((OUTLINE, width + 2), (colour, width)):
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            _line(picture, start, end, tint, thickness)
    return picture


def _limb(ends: np.ndarray, colour, width: int, picture: np.ndarray) -> None:
    for tint, thickness in ((OUTLINE, width + 2), (colour, width)):
        _line(picture, _fixed(ends[0]), _fixed(ends[1]), tint, thickness)


def _joint(centre: np.ndarray, colour, radius: int, hollow: bool, picture: np.ndarray) -> None:
    radius += 2 * hollow  # a ring as thick as the disc it replaces, or it would read as a smaller disc
    for tint, size in ((OUTLINE, radius + 1), (colour, radius), *([(OUTLINE, radius - 2)] if hollow else [])):
        tint = tuple(map(int, tint))
        cv2.circle(picture, _fixed(centre), max(size, 1) << _SHIFT, tint, -1, cv2.LINE_AA, _SHIFT)


def _blend(picture: np.ndarray, mark: Callable[[np.ndarray], None], opacity: float) -> np.ndarray:
    """picture with a mark on it, mixed in by opacity; an opaque mark is drawn in place."""
    if opacity == 1:
        mark(picture)
        return picture
    drawn = picture.copy()
    mark(drawn)
    return cv2.addWeighted(drawn, opacity, picture, 1 - opacity, 0)


def _fixed(point) -> tuple[int, int]:
    return round(float(point[0]) * 2**_SHIFT), round(float(point[1]) * 2**_SHIFT)


def _line(picture: np.ndarray, start, end, colour, width: int) -> None:
    cv2.line(picture, start, end, tuple(map(int, colour)), width, cv2.LINE_AA, _SHIFT)


# --- maps ----------------------------------------------------------------------------------------


def colour_depth(depth: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Depth (H, W) where mask (H, W) bool, in turbo: near is red, far is blue; NOTHING elsewhere.

    The colours span the 2nd to the 98th percentile on the mask, so that an outlier at a depth edge does not
    flatten the body. Returns the picture and that range, or None where nothing can be shown.
    """
    valid = mask & np.isfinite(depth)
    picture = np.full((*depth.shape, 3), NOTHING, dtype=np.uint8)
    if not valid.any():
        return picture, None
    near, far = np.percentile(depth[valid], [2, 98])
    level = np.clip((far - np.where(valid, depth, far)) / max(far - near, 1e-12), 0, 1)
    picture[valid] = _turbo(level)[valid]
    return picture, (float(near), float(far))


def colour_normals(normal: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Unit normals (3, H, W), camera x right, y down, z away, where mask (H, W) bool; NOTHING elsewhere.

    The usual palette: red to the right, green up, blue towards the camera, each from -1 to 1.
    """
    axes = np.array([1.0, -1.0, -1.0])  # y up, z towards the camera
    colours = np.moveaxis(np.nan_to_num(normal), 0, -1) * axes * 127.5 + 127.5
    picture = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
    picture[~mask] = NOTHING
    return picture


def draw_mask(image: np.ndarray, mask: np.ndarray, colour: Colour = MIDDLE) -> np.ndarray:
    """image with all but the mask (H, W) bool darkened, and the mask's contour."""
    picture = np.where(mask[..., None], image, image // 3)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = max(2, round(min(image.shape[:2]) / 220))
    return cv2.drawContours(np.ascontiguousarray(picture), contours, -1, colour, width, cv2.LINE_AA)


def draw_heatmaps(image: np.ndarray, heatmaps: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Joint heatmaps (K, h, w) >= 0 over a darkened image, in the colours of their side.

    Each joint's map counts relative to its own peak. The maps cover the image (UDP: corner pixel centres
    coincide).
    """
    height, width = image.shape[:2]
    peaks = heatmaps.max(axis=(1, 2), keepdims=True)
    relative = np.where(peaks > 0, heatmaps / np.maximum(peaks, 1e-12), 0).astype(np.float32)
    glow = np.zeros((height, width, 3), dtype=np.float32)
    rows = np.linspace(0, heatmaps.shape[1] - 1, height, dtype=np.float32)
    columns = np.linspace(0, heatmaps.shape[2] - 1, width, dtype=np.float32)
    grid_x, grid_y = np.meshgrid(columns, rows)
    for values, colour in zip(relative, joint_colours(skeleton), strict=True):
        large = cv2.remap(values, grid_x, grid_y, cv2.INTER_LINEAR)
        glow = np.maximum(glow, large[..., None] * colour.astype(np.float32))
    return np.clip(image * 0.45 + glow, 0, 255).astype(np.uint8)


def depth_scale(width: int, height: int = 12) -> np.ndarray:
    """The colours of colour_depth from near (left) to far (right), (height, width, 3)."""
    return np.repeat(_turbo(np.linspace(1, 0, width)[None]), height, axis=0)


def _turbo(level: np.ndarray) -> np.ndarray:
    """level (H, W) in [0, 1] -> RGB; the ends of turbo are almost black, so they are left out."""
    codes = np.rint(20 + 215 * level).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(codes, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)


def sample_sheet() -> np.ndarray:
    """All marks and colours on one sheet, drawn on a made-up infant."""
    infant, size = figure(), (288, 384)
    image, shown_from_image = fit(infant.image, size)
    scale = shown_from_image[0, 0]
    points = infant.keypoints.copy()
    points[:, :2] = points[:, :2] * scale + shown_from_image[:2, 2]
    box = tuple(value * scale for value in infant.bbox)
    mask = fit(infant.mask.astype(np.uint8) * 255, size)[0] > 127
    rows, columns = np.mgrid[:32, :24]
    distance = (columns - infant.keypoints[:, None, None, 0] / 4) ** 2
    distance = distance + (rows - infant.keypoints[:, None, None, 1] / 4) ** 2
    depth, span = colour_depth(infant.depth, infant.mask)
    confidence = np.linspace(0.1, 1, 17)
    tiles = [
        Tile(draw_box(image, box), "draw_box"),
        Tile(
            draw_skeleton(image, points, COCO17), "draw_skeleton", "orange: left, blue: right, ring: occluded"
        ),
        Tile(draw_skeleton(image, points, COCO17, confidence), "with confidence", "from .1 to 1"),
        Tile(draw_heatmaps(image, np.exp(-distance / 3), COCO17), "draw_heatmaps"),
        Tile(fit(depth, size)[0], "colour_depth", f"near {span[0]:.1f} (red) to far {span[1]:.1f} (blue)"),
        Tile(fit(colour_normals(infant.normal, infant.mask), size)[0], "colour_normals"),
        Tile(draw_mask(image, mask), "draw_mask"),
        Tile(depth_scale(size[0], 40), "depth_scale", "near to far"),
    ]
    return grid(tiles, columns=4)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "draw_sample.png")
    cv2.imwrite(str(target), cv2.cvtColor(sample_sheet(), cv2.COLOR_RGB2BGR))
    print(target)
