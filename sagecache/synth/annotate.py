"""COCO annotations of a rendered scene: boxes, areas, keypoints and which of them are seen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sagecache.synth.body import Body
from sagecache.synth.camera import Camera
from sagecache.synth.trace import World

# Parts of the body, by the bone that dominates a vertex (the first matching prefix counts).
PARTS = (
    ("eye", 0), ("neck", 0), ("head", 0), ("spine", 1), ("clavicle", 1), ("shoulder", 2), ("upperarm", 2),
    ("lowerarm", 3), ("wrist", 4), ("finger", 4), ("metac", 4), ("upperleg", 5), ("lowerleg", 6), ("foot", 7),
    ("toe", 7), ("pelvis", 8), ("root", 8),
)  # fmt: skip
# Joints are centres inside the limb, so a depth test cannot say whether they are seen: a joint is seen
# when the first surface before it is one of the parts that meet there.
TOUCHING = {5: (1, 2), 7: (2, 3), 9: (3, 4), 11: (8, 5, 1), 13: (5, 6), 15: (6, 7)}
MIN_PIXELS = 40  # people hidden to less than this are left out


@dataclass(frozen=True)
class Person:
    """One annotated person of a picture.

    bbox xywh: box of the projected body, not shrunk by blankets, clipped to the frame; area: visible
    pixels; keypoints (17, 3): x, y, COCO v (0 outside the frame, 1 hidden, 2 seen); keypoints_camera
    (17, 3): metres, camera frame. Pixel centres at integers.
    """

    bbox: tuple[float, float, float, float]
    area: int
    keypoints: np.ndarray
    kind: str
    keypoints_camera: np.ndarray


@lru_cache(maxsize=4)
def vertex_parts(body: Body):
    """Part number and side (0 middle, 1 left, 2 right) of each vertex."""
    part = [next(number for prefix, number in PARTS if name.startswith(prefix)) for name in body.labels]
    side = [1 if name.endswith(".L") else 2 if name.endswith(".R") else 0 for name in body.labels]
    strongest = body.weights.argmax(1)
    return np.array(part)[strongest], np.array(side)[strongest]


def annotate(body: Body, world: World, camera: Camera, actors, instances: np.ndarray):
    """People (list) and the instance map renumbered to match it."""
    people, renumbered = [], np.full_like(instances, -1)
    for index, actor in enumerate(actors):
        mask = instances == index
        area = int(mask.sum())
        if area < MIN_PIXELS:
            continue
        renumbered[mask] = len(people)
        joints = camera.to_camera(actor.keypoints.astype(np.float64))
        pixels = camera.project(joints)
        inside = ((pixels > -0.5) & (pixels < np.array(camera.size) - 0.5)).all(1) & (joints[:, 2] > 0)
        seen = _seen(body, world, camera, actor, index, joints)
        visible = np.where(inside, np.where(seen, 2, 1), 0)
        keypoints = np.concatenate([pixels, visible[:, None]], 1)
        keypoints[visible == 0] = 0
        bbox = _bbox(camera, actor.vertices)
        people.append(Person(bbox, area, keypoints, actor.kind, joints))
    return people, renumbered


def _bbox(camera, vertices):
    points = camera.to_camera(vertices)
    pixels = camera.project(points[points[:, 2] > 0.02])
    limit = np.array(camera.size) - 0.5  # the frame reaches half a pixel beyond the outer centres
    low, high = np.clip(pixels.min(0), -0.5, limit), np.clip(pixels.max(0), -0.5, limit)
    return (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))


def _seen(body, world, camera, actor, index, joints):
    """Whether each joint is seen (17,) bool."""
    fraction, face = world.first_hits(camera.centre, actor.keypoints)
    parts, sides = vertex_parts(body)
    ears = np.linalg.norm(actor.keypoints[3] - actor.keypoints[4])
    buried = actor.keypoints[:, 2] < -0.03 * np.linalg.norm(np.ptp(actor.vertices, axis=0))
    seen = fraction > 1  # nothing before the joint
    for joint in range(17):
        if face[joint] < 0 or seen[joint]:
            continue
        if joint < 5:  # face points lie on the skin: the first hit must be about there
            seen[joint] = (1 - fraction[joint]) * joints[joint, 2] < 0.22 * ears
        elif world.owners[face[joint]] == index:
            vertex = body.faces[face[joint] - index * len(body.faces)][0]
            left = joint % 2 == 1
            allowed = TOUCHING[joint if left else joint - 1]
            seen[joint] = parts[vertex] in allowed and sides[vertex] in (0, 1 if left else 2)
    return seen & ~buried  # pressed deep into the mattress
