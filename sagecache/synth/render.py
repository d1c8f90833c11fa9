"""A picture of a sampled scene with its exact geometry and COCO annotations.

Steps: people -> camera -> props -> rays -> colours -> light -> camera noise -> annotations.
Camera frame: x right, y down, z away, metres; normals unit, towards the camera; pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sagecache.synth import clothes
from sagecache.synth.annotate import Person, annotate
from sagecache.synth.body import Body, unit
from sagecache.synth.camera import Camera, place_camera, torso_direction
from sagecache.synth.light import sample_light, shade, visibility
from sagecache.synth.looks import Look, Photometry
from sagecache.synth.pose import LYING
from sagecache.synth.scene import Scene, sample_ground, sample_people, sample_props
from sagecache.synth.textures import mix, noise_tile, sample_tile, slope_tile, to_display, to_linear
from sagecache.synth.trace import FLOOR, WALL, Hits, Plane, World

PROPS = 100  # owners of props start here, people count from 0
SUBPIXELS = np.array([[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]])


@dataclass(frozen=True)
class Rendering:
    """image (H, W, 3) uint8 RGB; depth (H, W) float32 camera z, metres; normals (H, W, 3) float32, camera
    frame; instances (H, W) int16, index into people, -1 elsewhere; intrinsics (3, 3)."""

    image: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    instances: np.ndarray
    intrinsics: np.ndarray
    people: list[Person]


def render(body: Body, rng: np.random.Generator, look: Look, size: tuple[int, int] = (256, 256)) -> Rendering:
    """Draw and render one scene of the look; size (width, height). The rng decides everything."""
    actors = sample_people(body, rng, look)
    everyone = np.concatenate([actor.vertices for actor in actors])
    low, high = everyone.min(0), everyone.max(0)
    extent = float(np.linalg.norm(high - low))
    lying = actors[0].kind in LYING
    camera = place_camera(look, rng, everyone, torso_direction(actors[0].keypoints), lying, size)
    props = sample_props(rng, look, actors, camera, extent)
    scene = Scene(actors, props, sample_ground(rng, look, extent), low, high)
    world = build_world(body, scene, camera)
    box = mesh_box(world, camera)
    hits = world.cast(camera, pixel_grid(size), box)
    image = _picture(body, rng, look, scene, world, camera, hits, box)
    image = develop(image, rng, look.photometry)
    width, height = size
    normals = (hits.normals @ camera.camera_from_world.T.astype(np.float32)).reshape(height, width, 3)
    owner = hits.owner.reshape(height, width)
    instances = np.where((owner >= 0) & (owner < PROPS), owner, -1).astype(np.int16)
    people, instances = annotate(body, world, camera, actors, instances)
    depth = hits.depth.reshape(height, width)
    return Rendering(image, depth, normals, instances, camera.intrinsics, people)


def pixel_grid(size: tuple[int, int]) -> np.ndarray:
    """Pixel centres (W*H, 2) as (x, y), row by row."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return np.stack([x.ravel(), y.ravel()], 1).astype(np.float64)


def build_world(body: Body, scene: Scene, camera: Camera) -> World:
    """Triangles of people (owner 0, 1, ...) and props (PROPS, PROPS + 1, ...), floor and wall."""
    parts = [(actor.vertices, actor.normals, body.faces, i) for i, actor in enumerate(scene.actors)]
    parts += [
        (prop.mesh.vertices, prop.mesh.normals, prop.mesh.faces, PROPS + i)
        for i, prop in enumerate(scene.props)
    ]
    firsts = np.cumsum([0] + [len(part[0]) for part in parts])
    planes = [Plane(np.array([0, 0, 1.0]), 0.0)]
    forward = camera.camera_from_world[2]
    level = unit(forward * [1, 1, 0])
    if scene.ground.wall_distance is not None and np.linalg.norm(level) > 0.5:
        middle = (scene.low + scene.high) / 2 + level * scene.extent * scene.ground.wall_distance
        planes.append(Plane(-level, float(-level @ middle)))
    return World(
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] + first for part, first in zip(parts, firsts, strict=False)]),
        np.concatenate([np.full(len(part[2]), part[3]) for part in parts]),
        planes,
    )


def mesh_box(world: World, camera: Camera):
    """Pixel box (x0, y0, x1, y1) of all triangles in front of the camera."""
    points = camera.to_camera(world.vertices)
    pixels = camera.project(points[points[:, 2] > 0.02])
    return (*np.floor(pixels.min(0)) - 1, *np.ceil(pixels.max(0)) + 1)


def _picture(body, rng, look, scene, world, camera, hits, box):
    """Linear RGB (H, W, 3): one sample a pixel, four where the picture has an edge."""
    width, height = camera.size
    edges = _edges(hits, camera.size, scene.extent)
    sub = (hits.pixels[edges][:, None] + SUBPIXELS).reshape(-1, 2)
    extra = world.cast(camera, sub, box)
    light = sample_light(rng, look, camera)
    people = (hits.owner >= 0) & (hits.owner < PROPS)
    centre = (scene.low + scene.high) / 2
    lamp, sky = visibility(world, hits, camera.size, light, scene.extent, centre, people)

    def colour(rays: Hits, pixel: np.ndarray) -> np.ndarray:
        albedo, normals, skin = _surface(body, scene, world, rays, camera)
        layer = ((rays.owner >= 0) & (rays.owner < PROPS)).astype(int)
        lamp_here, sky_here = (x.reshape(2, -1)[layer, pixel] for x in (lamp, sky))
        floor = to_linear(scene.ground.colour)
        return shade(light, normals, to_linear(albedo), lamp_here, sky_here, floor, skin)

    image = colour(hits, np.arange(width * height))
    if len(edges):
        samples = colour(extra, np.repeat(edges, len(SUBPIXELS)))
        image[edges] = samples.reshape(-1, len(SUBPIXELS), 3).mean(1)
    return image.reshape(height, width, 3).astype(np.float32)


def _edges(hits: Hits, size, extent):
    """Pixels (flat indices) next to another surface: another owner or a step in depth."""
    width, height = size
    owner, depth = hits.owner.reshape(height, width), hits.depth.reshape(height, width)
    edge = np.zeros((height, width), bool)
    for axis in (0, 1):
        a, b = [slice(None)] * 2, [slice(None)] * 2
        a[axis], b[axis] = slice(1, None), slice(None, -1)
        a, b = tuple(a), tuple(b)
        step = (owner[a] != owner[b]) | ((np.abs(depth[a] - depth[b]) > 0.02 * extent) & (owner[a] >= 0))
        edge[a] |= step
        edge[b] |= step
    return np.flatnonzero(edge)


def _surface(body, scene, world, hits, camera):
    """Display albedo (N, 3), shading normals (N, 3), share of bare skin (N,) of hits."""
    count = len(hits.depth)
    albedo, skin = np.zeros((count, 3), np.float32), np.zeros(count, np.float32)
    normals = hits.normals.copy()
    focal = camera.intrinsics[0, 0]
    _paint_ground(scene, hits, focal, albedo, normals)
    first = 0
    for index, actor in enumerate(scene.actors):
        which = np.flatnonzero(hits.owner == index)
        if len(which):
            fields = world.interpolate(hits, which, actor.fields, first)
            pixel = float(np.median(hits.depth[which])) / focal / actor.trunk
            albedo[which], cloth = clothes.albedo(actor.dress, fields, pixel)
            skin[which] = 1 - cloth
            _wrinkle(normals, which, fields[:, :3] * 1.1 + actor.dress.folds[0], 0.16 * cloth)
        first += len(actor.vertices)
    for index, prop in enumerate(scene.props):
        which = np.flatnonzero(hits.owner == PROPS + index)
        if len(which):
            uv = world.interpolate(hits, which, prop.mesh.uv.astype(np.float32), first)
            pixel = float(np.median(hits.depth[which])) / focal / np.ptp(prop.mesh.vertices, axis=0).max()
            second = prop.pattern.cover(uv[:, 0], uv[:, 1], pixel)[:, None]
            albedo[which] = mix(prop.colour, prop.pattern.colour, second)
            if prop.cloth:
                _wrinkle(normals, which, hits.points[which] / scene.extent * 2.0, np.full(len(which), 0.12))
        first += len(prop.mesh.vertices)
    return albedo, normals, skin


def _wrinkle(normals, which, coordinates, strength):
    """Tilt shading normals by folds of cloth; coordinates (N, 3) are in tiles."""
    tile = slope_tile(3, 3, 11)
    u = coordinates[:, 0] + 0.6 * coordinates[:, 1]
    slope = sample_tile(tile, u, coordinates[:, 2] + 0.5 * coordinates[:, 1])
    tilt = np.stack([slope[:, 0], 0.6 * slope[:, 0] - 0.3 * slope[:, 1], slope[:, 1]], 1)
    normals[which] = unit(normals[which] + strength[:, None].astype(np.float32) * tilt)


def _paint_ground(scene, hits, focal, albedo, normals):
    ground = scene.ground
    wall = np.flatnonzero(hits.owner == WALL)
    if len(wall):
        albedo[wall] = ground.wall_colour
    floor = np.flatnonzero(hits.owner == FLOOR)
    if not len(floor):
        return
    uv = hits.points[floor, :2] / np.float32(ground.scale) + ground.phase
    pixel = float(np.median(hits.depth[floor])) / focal / ground.scale
    second = ground.pattern.cover(uv[:, 0], uv[:, 1], pixel)[:, None]
    colour = mix(ground.colour, ground.pattern.colour, second)
    weave = sample_tile(noise_tile(24, 3, 5), uv[:, 0] * 1.9, uv[:, 1] * 1.9)
    broad = sample_tile(noise_tile(2, 3, 6), uv[:, 0] * 0.37, uv[:, 1] * 0.37)
    albedo[floor] = np.clip(colour * (1 + 0.03 * weave + 0.035 * broad)[:, None], 0, 1)
    if ground.wrinkles:
        slope = sample_tile(slope_tile(2, 3, 7), uv[:, 0] * 0.45, uv[:, 1] * 0.45) * np.float32(
            ground.wrinkles
        )
        normals[floor] = unit(np.concatenate([-slope, np.ones((len(floor), 1), np.float32)], 1))


def develop(linear: np.ndarray, rng: np.random.Generator, photometry: Photometry) -> np.ndarray:
    """Linear light (H, W, 3) -> uint8 RGB through contrast, exposure, tint, blur, night mode and noise."""
    image = to_display(linear).astype(np.float32)
    image = image * (1 + rng.normal(0, 1, 3) * photometry.tint).astype(np.float32)
    image = (image - 0.5) * rng.uniform(*photometry.contrast) + 0.5
    image = image * rng.uniform(*photometry.exposure)
    blur = rng.uniform(*photometry.blur)
    if blur > 0.05:
        image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), blur)
    if rng.random() < photometry.night:  # infrared: almost no colour
        image = 0.12 * image + 0.88 * image.mean(2, keepdims=True)
    noise = rng.uniform(*photometry.noise)
    if noise > 0:
        image = image + noise * rng.standard_normal((*image.shape[:2], 1), np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
