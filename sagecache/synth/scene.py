"""One scene: dressed people on a floor or in bed, props around them, and what each triangle belongs to.

Draws everything about the world but the camera and the light; ``render`` turns it into pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagecache.synth import clothes, meshes
from sagecache.synth.body import Body, rotation
from sagecache.synth.camera import Camera
from sagecache.synth.looks import Look
from sagecache.synth.pose import LYING, sample_pose
from sagecache.synth.textures import WOOD, Print, pick, sample_print


@dataclass(frozen=True)
class Actor:
    """A posed person: vertices, outward normals (V, 3) and keypoints (17, 3), world, metres."""

    kind: str
    vertices: np.ndarray
    normals: np.ndarray
    keypoints: np.ndarray
    fields: np.ndarray
    dress: clothes.Dress
    trunk: float  # metres per unit of the fields


@dataclass(frozen=True)
class Prop:
    mesh: meshes.Mesh
    colour: np.ndarray
    pattern: Print
    cloth: bool


@dataclass(frozen=True)
class Ground:
    """The plane z = 0, in units of `scale` metres, and (in rooms) a wall behind the people."""

    colour: np.ndarray
    pattern: Print
    scale: float
    wrinkles: float  # slope of the bedding, 0 for hard floors
    phase: np.ndarray
    wall_colour: np.ndarray
    wall_distance: float | None  # in body extents; None: no wall


@dataclass(frozen=True)
class Scene:
    actors: list[Actor]
    props: list[Prop]
    ground: Ground
    low: np.ndarray  # bounds of all people
    high: np.ndarray

    @property
    def extent(self) -> float:
        return float(np.linalg.norm(self.high - self.low))


def sample_people(body: Body, rng, look: Look) -> list[Actor]:
    """One to a few people, side by side without standing in each other."""
    actors: list[Actor] = []
    placed: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(rng.choice(len(look.people), p=look.people) + 1):
        group = str(rng.choice(list(look.group), p=list(look.group.values())))
        kind = str(rng.choice(list(look.kinds), p=list(look.kinds.values())))
        shape = body.sample_shape(rng, group)
        pose = sample_pose(body, shape.heads, rng, kind)
        vertices = body.posed(shape, pose.turns, pose.root)
        fields = clothes.body_fields(body, shape)
        vertices = vertices - _resting_point(vertices, clothes.trunk(fields), group, kind).astype(np.float32)
        dress = clothes.sample_dress(body, shape, fields, rng, look.palette)
        offset = _free_place(rng, vertices, placed)
        if offset is None:
            continue
        vertices[:, :2] += offset
        placed.append((vertices[:, :2].min(0), vertices[:, :2].max(0)))
        trunk = shape.heads[body.bone["neck01"]][2] - shape.heads[body.bone["spine05"]][2]
        normals = body.vertex_normals(vertices)
        actors.append(Actor(kind, vertices, normals, body.keypoints(vertices), fields, dress, float(trunk)))
    return actors


def _resting_point(vertices, trunk, group, kind):
    """The point that goes to the origin: middle of the body, height of its support.

    About 1 % of the vertices touch, and an infant sinks 12 mm into the mattress; plain min z would let it
    hover on one heel. The trunk of a lying body stays within 5 % of the body's extent of the support,
    rather than being held up by an arm below it.
    """
    soft = kind != "stand" or group == "infant"
    floor = np.partition(vertices[:, 2], 150)[150] if soft else vertices[:, 2].min()
    if kind in LYING:
        extent = np.linalg.norm(np.ptp(vertices, axis=0))
        floor = max(floor, vertices[trunk, 2].min() - 0.05 * extent)
    sink = 0.012 if group == "infant" else 0.0
    return np.array([*vertices[:, :2].mean(0), floor + sink])


def _free_place(rng, vertices, placed):
    """An offset (2,) at which the body's box overlaps others by less than 12 %; None after 12 tries."""
    spread = 0.75 * np.ptp(vertices[:, :2], axis=0).max()
    low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
    for _ in range(12):
        offset = rng.normal(0, spread, 2).astype(np.float32) if placed else np.zeros(2, np.float32)
        a, b = low + offset, high + offset
        overlaps = [np.prod(np.clip(np.minimum(b, d) - np.maximum(a, c), 0, None)) for c, d in placed]
        if all(overlap < 0.12 * np.prod(b - a) for overlap in overlaps):
            return offset
    return None


def sample_ground(rng, look: Look, extent: float) -> Ground:
    """Bedding for beds, floor and wall for rooms."""
    bed = look.floor == "sheet" or (look.floor == "any" and rng.random() < 0.5)
    colour = pick(rng, look.palette)
    if bed:
        kinds = ["plain", "plain", "dots", "stars", "gingham", "stripes", "checks"]
        pattern = sample_print(rng, colour, look.palette, kinds, (6.0, 16.0))
        wrinkles = rng.uniform(0.08, 0.22)
    else:
        if rng.random() < 0.45:
            colour = np.clip(0.6 * WOOD[rng.integers(len(WOOD))] + 0.36 + rng.normal(0, 0.02, 3), 0, 1)
        else:
            colour = 0.4 * colour + 0.6 * np.clip(rng.normal(0.78, 0.1) + rng.normal(0, 0.02, 3), 0, 1)
        kinds = ["plain", "plain", "plain", "checks", "stripes"]
        pattern = sample_print(rng, colour, look.palette, kinds, (2.0, 6.0))
        soft = np.clip(colour * rng.uniform(0.82, 1.08), 0, 1)
        pattern = Print(pattern.kind, soft, pattern.repeats, pattern.angle, pattern.phase)
        wrinkles = 0.0
    wall = np.clip(0.3 * pick(rng, look.palette) + 0.7 * rng.uniform(0.8, 0.98), 0, 1)
    distance = None if look.floor == "sheet" and rng.random() < 0.7 else rng.uniform(0.8, 2.5)
    return Ground(colour, pattern, extent, wrinkles, rng.random(2).astype(np.float32), wall, distance)


def sample_props(rng, look: Look, actors: list[Actor], camera: Camera, extent: float) -> list[Prop]:
    """Blanket, toys and crib rails as the look wants them."""
    props: list[Prop] = []

    def dressed(mesh, kinds, repeats, cloth=False):
        colour = pick(rng, look.palette)
        props.append(Prop(mesh, colour, sample_print(rng, colour, look.palette, kinds, repeats), cloth))

    lying = [actor for actor in actors if actor.kind in LYING]
    if lying and rng.random() < look.blanket:
        actor = lying[rng.integers(len(lying))]
        joints = [11, 12, 13, 14, 15, 16] if rng.random() < 0.75 else [5, 6, 7, 8]
        span = np.linalg.norm(np.ptp(actor.vertices, axis=0))
        length = span * rng.uniform(*look.blanket_size)
        sides = (length, length * rng.uniform(0.8, 0.95))
        points = np.concatenate([other.vertices for other in lying])
        mesh = meshes.blanket(rng, points, actor.keypoints[joints].mean(0)[:2], sides)
        dressed(mesh, ["plain", "dots", "stars", "gingham", "stripes"], (5, 10), cloth=True)
    for _ in range(rng.choice(len(look.toys), p=look.toys)):
        actor = actors[rng.integers(len(actors))]
        centre = actor.keypoints[rng.integers(5, 17)] + rng.normal(0, 0.1 * extent, 3)
        side = extent * rng.uniform(0.05, 0.14)
        centre[2] = max(centre[2], side * 0.5)
        if rng.random() < 0.5:
            dressed(meshes.ball(centre, side / 2), ["plain", "stripes", "dots"], (2, 4))
        else:
            turn = rotation(rng.normal(size=3), rng.uniform(0, 3))
            dressed(meshes.box(centre, side * rng.uniform(0.5, 1.4, 3), turn), ["plain", "dots"], (2, 4))
    if rng.random() < look.rails:
        props.extend(_rails(rng, camera, (actors[0].vertices.min(0) + actors[0].vertices.max(0)) / 2, extent))
    return props


def _rails(rng, camera, centre, extent):
    """Five parallel bars between the camera and the bed."""
    forward = camera.camera_from_world[2]
    axes = camera.camera_from_world.T @ rotation([0, 0, 1], rng.uniform(0, 3))
    colour = WOOD[rng.integers(len(WOOD))]
    plain = Print("plain", colour, 1.0, 0.0, np.zeros(2))
    middle = centre - forward * extent * 0.45
    sides = np.array([0.014, 3.0, 0.014]) * extent
    bars = [meshes.box(middle + axes[:, 0] * place * extent * 0.22, sides, axes) for place in range(-2, 3)]
    return [Prop(bar, colour, plain, False) for bar in bars]
