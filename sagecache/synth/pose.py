"""Poses within anatomical ranges: lying, sitting, crawling and standing people.

Limbs are authored as directions in the torso frame (x = left, -y = front, z = up) and solved by
``two_bone``: elbows and knees are hinges that only bend the anatomical way. All angles in degrees
here, radians in the helpers of ``body``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagecache.synth.body import Body, rotation, unit

KINDS = ("supine", "side", "prone", "sit", "crawl", "stand")
LYING = ("supine", "side", "prone")


@dataclass(frozen=True)
class Pose:
    """kind; turns {bone: rotation in rest axes relative to the parent}; root rotation, rest -> world."""

    kind: str
    turns: dict[int, np.ndarray]
    root: np.ndarray


@dataclass(frozen=True)
class LegRange:
    """Uniform ranges of one leg, degrees; inward and forward give the side to which the shin bends."""

    flexion: tuple[float, float]
    abduction: tuple[float, float]
    knee: tuple[float, float]
    inward: tuple[float, float]
    back: float


# Hip flexion of infants on their back is large and the shins fall inwards (frog legs); prone hips stay
# within a few degrees of straight; crawling thighs stand under the body.
LEGS = {
    "supine": LegRange((25, 105), (12, 50), (25, 115), (0.1, 0.9), 0.5),
    "side": LegRange((20, 100), (-3, 25), (20, 110), (0.0, 0.3), 0.5),
    "prone": LegRange((-8, 12), (10, 45), (0, 70), (0.0, 0.6), 0.6),
    "sit": LegRange((72, 98), (15, 48), (8, 90), (0.3, 1.2), 0.0),
    "crawl": LegRange((75, 105), (5, 22), (75, 100), (0.0, 0.0), 0.1),
    "stand": LegRange((-12, 35), (2, 18), (0, 45), (0.0, 0.0), 1.0),
}
# How often arms are held like goal posts (beside the head), in front of the chest, or down.
ARM_MODES = {
    "supine": (0.4, 0.4, 0.2),
    "side": (0.0, 0.8, 0.2),
    "prone": (0.6, 0.3, 0.1),
    "sit": (0.05, 0.6, 0.35),
    "crawl": (0.0, 1.0, 0.0),
    "stand": (0.12, 0.28, 0.6),
}
SPINE_BEND = {"sit": (0, 25), "crawl": (-5, 10), "stand": (-8, 15)}  # forward, degrees; others -3..10
SPINE = (("spine05", 0.2), ("spine04", 0.2), ("spine03", 0.25), ("spine02", 0.2), ("spine01", 0.15))
NECK = (("neck01", 0.2), ("neck02", 0.25), ("neck03", 0.25), ("head", 0.3))
MIRROR = np.array([-1.0, 1.0, 1.0])


def sample_pose(body: Body, heads: np.ndarray, rng: np.random.Generator, kind: str) -> Pose:
    """One pose of the kind for a body with these bone heads (J, 3)."""
    turns: dict[int, np.ndarray] = {}
    _turn_trunk(body, turns, rng, kind)
    symmetric = rng.random() < 0.4  # lying infants often hold both sides alike
    arm, leg = _arm(rng, kind), _leg(rng, kind)
    for side, mirror in ((".L", np.ones(3)), (".R", MIRROR)):
        if side == ".R":
            arm = _jitter(arm, rng, 0.1) if symmetric else _arm(rng, kind)
            leg = _jitter(leg, rng, 0.08) if symmetric else _leg(rng, kind)
        _set_arm(body, heads, turns, side, [unit(part) * mirror for part in arm])
        _set_hand(body, heads, turns, rng, side, relaxed=kind != "stand")
        _set_leg(body, heads, turns, side, [unit(part) * mirror for part in leg])
        ankle = rng.uniform(-15, 40) if kind != "stand" else rng.uniform(-10, 20)
        turns[body.bone["foot" + side]] = rotation([1, 0, 0], np.radians(ankle))
    heading = rotation([0, 0, 1], rng.uniform(0, 2 * np.pi))
    return Pose(kind, turns, heading @ _root(rng, kind))


def two_bone(rest, directions, bend, parent=None):
    """Turn a two-segment limb to two directions about a hinge.

    rest (2, 3): unit directions of the upper and lower segment at rest; directions (2, 3): wanted ones,
    torso frame; bend (3,): the rest direction in which the joint flexes. parent (3, 3): rotation of
    the bone above. Returns (upper, twist, lower) rotations in rest axes: the first two share the
    limb's twist, so the skin of shoulder and hip does not collapse.
    """
    parent = np.eye(3) if parent is None else parent
    (upper0, lower0), (upper, lower) = rest, directions
    hinge0 = np.cross(upper0, bend)
    hinge = np.cross(upper, lower)
    if np.linalg.norm(hinge) < 0.05:  # straight limb: any hinge fits, keep the resting one
        hinge = np.cross(upper, bend)
    turn = _frame(upper, hinge) @ _frame(upper0, hinge0).T
    axis0 = unit(hinge0 - upper0 * (hinge0 @ upper0))
    flexion = np.arccos(np.clip(upper @ lower, -1, 1))
    flexion -= np.arctan2(np.cross(upper0, lower0) @ axis0, upper0 @ lower0)
    swing = _swing(upper0, upper)
    twist = swing.T @ turn  # about upper0
    angle = np.arctan2(unit(upper0) @ _axis_of(twist), (np.trace(twist) - 1) / 2)
    half = rotation(upper0, angle / 2)
    return parent.T @ swing @ half, half.T @ twist, rotation(axis0, flexion)


def _frame(first, second):
    """Right-handed orthonormal frame (columns): first, the part of second orthogonal to it, their cross."""
    first = unit(first)
    second = unit(second - first * (second @ first))
    return np.stack([first, second, np.cross(first, second)], 1)


def _swing(source, target):
    """The shortest rotation that takes direction source to target."""
    axis = np.cross(source, target)
    sine = np.linalg.norm(axis)
    return rotation(axis, np.arctan2(sine, source @ target)) if sine > 1e-6 else np.eye(3)


def _axis_of(turn):
    """sin(angle) * axis of a rotation matrix."""
    return np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2


def _toward(start, goal, degrees):
    """The direction reached from unit start by turning degrees towards goal."""
    goal = unit(goal - start * (goal @ start))
    angle = np.radians(degrees)
    return np.cos(angle) * start + np.sin(angle) * goal


def _jitter(parts, rng, sd):
    return [part + rng.normal(0, sd, 3) for part in parts]


def _turn_trunk(body, turns, rng, kind):
    uniform = rng.uniform
    lateral, twist = uniform(-12, 12), uniform(-10, 10)
    forward = uniform(*SPINE_BEND.get(kind, (-3, 10)))
    for name, share in SPINE:
        turns[body.bone[name]] = _euler(twist * share, forward * share, lateral * share)
    yaw = uniform(-65, 65) if kind in ("supine", "side") else uniform(-35, 35)
    pitch, roll = uniform(-10, 20), uniform(-12, 12)
    if kind == "prone":  # the face rests on a cheek, or the head is lifted
        cheek = rng.random() < 0.5
        yaw = rng.choice([-1, 1]) * uniform(45, 75) if cheek else uniform(-30, 30)
        pitch = uniform(-5, 5) if cheek else uniform(-45, -20)
    elif kind == "crawl":
        pitch = uniform(-45, -10)
    for name, share in NECK:
        turns[body.bone[name]] = _euler(yaw * share, pitch * share, roll * share)


def _euler(yaw, pitch, roll):
    """Turn about up, then left, then back; degrees."""
    return (
        rotation([0, 0, 1], np.radians(yaw))
        @ rotation([1, 0, 0], np.radians(pitch))
        @ rotation([0, 1, 0], np.radians(roll))
    )


def _arm(rng, kind):
    """Directions (upper arm, forearm) of a left arm."""
    uniform = rng.uniform
    mode = rng.choice(["goal", "front", "down"], p=ARM_MODES[kind])
    if kind == "crawl":
        upper, bend, elbow = (uniform(0.1, 0.35), -1, uniform(-0.1, 0.3)), (-0.1, -0.3, 1.0), uniform(3, 25)
    elif mode == "goal":
        upper = (1, uniform(-0.25, 0.05), uniform(-0.3, 0.5))
        bend, elbow = (uniform(-0.3, 0.2), uniform(-0.4, 0.05), 1.0), uniform(35, 120)
    elif mode == "front":
        upper = (uniform(0.25, 0.8), -uniform(0.5, 1), uniform(-0.7, 0.1))
        bend, elbow = (-uniform(0.2, 1), -0.4, uniform(-0.2, 0.9)), uniform(25, 115)
    else:
        upper = (uniform(0.2, 0.6), uniform(-0.3, 0.1), -1)
        bend, elbow = (-uniform(0, 0.6), -1, 0.2), uniform(8, 80)
    upper, bend = np.array(upper, float), np.array(bend, float)
    if kind == "prone" and mode != "down":  # the mattress is in front of the chest
        upper[1], bend[1] = uniform(-0.25, 0), uniform(-0.3, 0)
    upper = unit(upper)
    return [upper, _toward(upper, bend, elbow)]


def _leg(rng, kind):
    """Directions (thigh, shin) of a left leg."""
    uniform, limits = rng.uniform, LEGS[kind]
    flexion, abduction = np.radians(uniform(*limits.flexion)), np.radians(uniform(*limits.abduction))
    knee = uniform(*limits.knee)
    if kind == "stand" and rng.random() < 0.15:  # a foot on a step
        flexion, knee = np.radians(uniform(50, 95)), uniform(50, 100)
    thigh = np.array(
        [np.sin(abduction), -np.sin(flexion) * np.cos(abduction), -np.cos(flexion) * np.cos(abduction)]
    )
    bend = np.array([-uniform(*limits.inward), limits.back, 0.0 if kind == "prone" else -1.0])
    if kind == "sit":  # shins lie on the floor
        bend[1:] = uniform(-0.1, 0.35), -0.25
    return [thigh, _toward(thigh, bend, knee)]


def _segments(body, heads, side, names):
    points = [heads[body.bone[name + side]] for name in names]
    return [unit(points[1] - points[0]), unit(points[2] - points[1])]


def _set_arm(body, heads, turns, side, directions):
    """Collar bone (it lifts by about a fifth of the arm's elevation), upper arm and forearm."""
    lift = np.clip(np.degrees(np.arcsin(np.clip(directions[0][2], -1, 1))) + 20, 0, 90) * 0.22
    collar = rotation([0, -1 if side == ".L" else 1, 0], np.radians(lift))
    turns[body.bone["clavicle" + side]] = collar
    rest = _segments(body, heads, side, ("upperarm01", "lowerarm01", "wrist"))
    parts = two_bone(rest, directions, np.array([0, -1.0, 0.15]), collar)
    for name, turn in zip(("upperarm01", "upperarm02", "lowerarm01"), parts, strict=True):
        turns[body.bone[name + side]] = turn


def _set_leg(body, heads, turns, side, directions):
    rest = _segments(body, heads, side, ("upperleg01", "lowerleg01", "foot"))
    parts = two_bone(rest, directions, np.array([0, 1.0, 0]))
    for name, turn in zip(("upperleg01", "upperleg02", "lowerleg01"), parts, strict=True):
        turns[body.bone[name + side]] = turn


def _set_hand(body, heads, turns, rng, side, relaxed):
    """A small turn of the wrist, and fingers that curl towards the palm about the knuckle line."""
    turns[body.bone["wrist" + side]] = rotation(rng.normal(size=3), np.radians(rng.uniform(0, 25)))
    knuckles = unit(heads[body.bone["finger5-1" + side]] - heads[body.bone["finger2-1" + side]])
    along = unit(heads[body.bone["finger3-1" + side]] - heads[body.bone["wrist" + side]])
    palm_sign = 1 if np.cross(knuckles, along)[2] < 0 else -1  # palms face down at rest
    curl = rotation(knuckles, palm_sign * np.radians(rng.uniform(15, 65) if relaxed else rng.uniform(5, 35)))
    for finger in (2, 3, 4, 5):
        for joint in (1, 2, 3):
            turns[body.bone[f"finger{finger}-{joint}{side}"]] = curl


def _root(rng, kind):
    """How the trunk lies or stands before it is turned about the vertical."""
    uniform = rng.uniform
    on_back = rotation([1, 0, 0], -np.pi / 2)  # front (-y) -> world up
    if kind == "supine":
        return on_back @ rotation([0, 0, 1], np.radians(uniform(-20, 20)))
    if kind == "side":
        return on_back @ rotation([0, 0, 1], rng.choice([-1, 1]) * np.radians(uniform(55, 100)))
    if kind == "prone":
        return rotation([1, 0, 0], np.pi / 2) @ rotation([0, 0, 1], np.radians(uniform(-12, 12)))
    tilt = {"crawl": (72, 92), "sit": (-12, 18), "stand": (-5, 5)}[kind]
    return rotation([1, 0, 0], np.radians(uniform(*tilt)))
