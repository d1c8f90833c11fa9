"""Light: one soft lamp with shadows, ambient light with occlusion, a bounce from the floor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from sagecache.synth.body import dot, unit
from sagecache.synth.camera import Camera
from sagecache.synth.looks import Look
from sagecache.synth.trace import WALL, Hits, World

STEP = 2  # occlusion is traced at every second pixel and smoothed: it is soft anyway
PATTERN = 3  # rays of 3 x 3 neighbours complete each other; the smoothing averages over them
LAMP_RAYS, AMBIENT_RAYS = 3, 5


@dataclass(frozen=True)
class Light:
    """direction to the lamp (unit); its radius over its distance; shares of light; colours (linear RGB)."""

    direction: np.ndarray
    radius: float
    ambient: float
    shadow: float  # depth of shadows, 0..1
    lamp_colour: np.ndarray
    ambient_colour: np.ndarray


def sample_light(rng, look: Look, camera: Camera) -> Light:
    """A lamp or window well above the horizon; warm lamps come with cooler shadows."""
    back = -camera.camera_from_world[2]
    elevation = np.radians(rng.uniform(32, 80))
    aside = rng.uniform(-np.pi, np.pi) if look.lamp >= 180 else np.radians(rng.normal(0, look.lamp))
    azimuth = np.arctan2(back[1], back[0]) + aside
    flat = np.cos(elevation)
    direction = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], np.float32)
    warmth = rng.normal(0.04, 0.03)
    lamp = np.array([1 + warmth, 1.0, 1 - 1.3 * warmth], np.float32)
    return Light(
        direction=direction,
        radius=rng.uniform(0.06, 0.30),
        ambient=rng.uniform(*look.ambient),
        shadow=rng.uniform(0.75, 1.0),
        lamp_colour=lamp,
        ambient_colour=2 - lamp,
    )


@lru_cache(maxsize=1)
def _patterns():
    """Fixed ray patterns (PATTERN^2, rays, 2): points in the unit disc for the lamp and for the sky."""
    rng = np.random.default_rng(3)
    patterns = []
    for rays in (LAMP_RAYS, AMBIENT_RAYS):
        count = PATTERN * PATTERN * rays
        index = np.arange(count)
        radius, angle = np.sqrt((index + 0.5) / count), index * np.pi * (3 - np.sqrt(5))  # sunflower
        disc = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
        # neighbours in the sunflower go to different pixels, so that each pixel sees the whole disc
        disc = disc.reshape(rays, PATTERN * PATTERN, 2).transpose(1, 0, 2)
        patterns.append(disc[rng.permutation(PATTERN * PATTERN)].astype(np.float32))
    return patterns


def _across(direction):
    """Two unit vectors orthogonal to directions (..., 3) and to each other."""
    upright, level = np.float32([0, 0, 1]), np.float32([1, 0, 0])
    helper = np.where(np.abs(direction[..., 2:]) < 0.9, upright, level)
    first = unit(np.cross(direction, helper))
    return first, np.cross(direction, first)


def visibility(world: World, hits: Hits, size, light: Light, extent: float, centre, soft: np.ndarray):
    """Lamp and sky visibility, each (2, H, W) float32 in 0..1.

    hits: one ray for each pixel, in row order. soft (H*W,): which hits belong to people; the two classes
    are smoothed apart and stacked (others first), so that no light leaks across a silhouette.
    """
    width, height = size
    grid = np.arange(width * height).reshape(height, width)[::STEP, ::STEP]
    rows, columns = np.indices(grid.shape)
    chosen = grid.ravel()
    pattern = ((rows % PATTERN) * PATTERN + columns % PATTERN).ravel()
    points = hits.points[chosen] + 0.004 * extent * hits.normals[chosen]
    near = (np.abs(points[:, :2] - centre[:2]) < 1.5 * extent).all(1) & (hits.owner[chosen] != WALL)
    near = np.flatnonzero(near)
    lamp, sky = np.ones(len(chosen), np.float32), np.ones(len(chosen), np.float32)
    if len(near):
        discs = [disc[pattern[near]] for disc in _patterns()]
        lamp[near] = _lamp(world, points[near], light, discs[0])
        sky[near] = _sky(world, points[near], hits.normals[chosen][near], 0.30 * extent, discs[1])
    people = soft[chosen].reshape(grid.shape)
    return tuple(_smooth(value.reshape(grid.shape), people, size) for value in (lamp, sky))


def _lamp(world, points, light, disc):
    a, b = _across(light.direction)
    rays = light.direction + light.radius * (disc[..., :1] * a + disc[..., 1:] * b)  # (N, R, 3)
    origins = np.repeat(points, rays.shape[1], 0)
    return 1 - world.blocked(origins, rays.reshape(-1, 3)).reshape(rays.shape[:2]).mean(1)


def _sky(world, points, normals, reach, disc):
    """Cosine-weighted share of the hemisphere that is open within reach metres."""
    a, b = _across(normals)
    up = np.sqrt(np.maximum(1 - dot(disc, disc), 0.02))[..., None]
    rays = disc[..., :1] * a[:, None] + disc[..., 1:] * b[:, None] + up * normals[:, None]
    origins = np.repeat(points, rays.shape[1], 0)
    blocked = world.blocked(origins, rays.reshape(-1, 3), reach).reshape(rays.shape[:2]).astype(np.float32)
    with np.errstate(divide="ignore"):
        floor = (rays[..., 2] < 0) & (points[:, None, 2] < -rays[..., 2] * reach)
    return 1 - np.maximum(blocked, 0.55 * floor).mean(1)  # the floor takes light but gives some back


def _smooth(value, people, size):
    maps = []
    for mask in (~people, people):
        mask = mask.astype(np.float32)
        total, count = value * mask, mask
        for _ in range(2):  # two box filters: complete ray patterns, then a soft slope
            total, count = (cv2.blur(x, (PATTERN, PATTERN)) for x in (total, count))
        total, count = (cv2.resize(x, size, interpolation=cv2.INTER_LINEAR) for x in (total, count))
        maps.append(np.where(count > 1e-3, total / np.maximum(count, 1e-3), 1))
    return np.stack(maps)


def shade(light: Light, normals, albedo, lamp, sky, floor_colour, skin) -> np.ndarray:
    """Linear RGB (N, 3) of surfaces with normals (N, 3), linear albedo (N, 3), visibilities (N,).

    skin (N,) in 0..1: light bleeds past the terminator of skin, and reddens there.
    """
    facing = normals @ light.direction
    wrap = 0.25 * skin
    direct = np.clip((facing + wrap) / (1 + wrap), 0, 1) * (1 - light.shadow * (1 - lamp))
    up = 0.6 + 0.4 * normals[:, 2]
    bounce = (1 - up)[:, None] * (floor_colour * 0.7).astype(np.float32)
    open_sky = (sky * sky * 0.4 + sky * 0.6)[:, None]
    ambient = (up[:, None] * light.ambient_colour + bounce) * open_sky
    bleed = (skin * np.clip(0.35 - np.abs(facing - 0.1), 0, 1) * lamp)[:, None] * np.float32(
        [0.10, 0.0, -0.01]
    )
    strength = (1 - light.ambient) * 1.35
    return albedo * (light.ambient * ambient + strength * direct[:, None] * light.lamp_colour + bleed)
