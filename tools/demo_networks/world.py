"""Rendered scenes as fixed arrays, made once by worker processes and read by all three trainings.

A world is a folder of shards, each written whole or not at all, so that an interrupted rendering goes
on where it stopped. Every image has its own random generator: the arrays do not depend on the workers.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from sagecache.synth.body import Body
from sagecache.synth.looks import LOOKS
from sagecache.synth.render import Rendering, render

SHARD = 100  # images
SIDE = 256  # pixels
NEAR, SPAN = 0.2, 2.3  # depth codes span [NEAR, NEAR + SPAN] times the people's median depth


@dataclass(frozen=True)
class World:
    """images (N, 256, 256, 3) uint8 RGB; at half resolution, index i at image pixel 2 i: depth codes
    (N, 128, 128) uint16, normals int8 (·, 3) times 127, instances int8 (-1 none); focal (N,) pixels.

    persons (P, 2): image and instance; bboxes (P, 4) xywh and keypoints (P, 17, 3) in image pixels;
    areas (P,) visible pixels.
    """

    images: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    instances: np.ndarray
    focal: np.ndarray
    persons: np.ndarray
    bboxes: np.ndarray
    keypoints: np.ndarray
    areas: np.ndarray

    @staticmethod
    def metric_depth(codes: np.ndarray) -> np.ndarray:
        """Depth codes -> float32 in units of the people's median depth."""
        return codes.astype(np.float32) * np.float32(SPAN / 65535) + np.float32(NEAR)

    def keep(self, which: np.ndarray) -> World:
        """The same images with fewer persons; which (P,) bool."""
        people = (self.persons, self.bboxes, self.keypoints, self.areas)
        scene = (self.images, self.depth, self.normals, self.instances, self.focal)
        return World(*scene, *(field[which] for field in people))

    def readable(self, pixels: int = 1000) -> World:
        """Without shreds of hidden people: at least `pixels` visible, and a tenth of the box."""
        return self.keep((self.areas > pixels) & (self.areas > 0.1 * self.bboxes[:, 2] * self.bboxes[:, 3]))


def render_world(folder: Path, look: str, seed: int, count: int, workers: int) -> World:
    """Render what is missing of `count` images and load them all; prints progress."""
    folder = folder / f"{look}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    shards = range((count + SHARD - 1) // SHARD)
    missing = [shard for shard in shards if not _shard_path(folder, shard).exists()]
    if missing:
        make = partial(_render_shard, folder, look, seed)
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(make, missing), len(shards) - len(missing) + 1):
                if done % 5 == 0 or done == len(shards):
                    print(f"{look}: {done * SHARD} of {len(shards) * SHARD} images", flush=True)
    return load_world(folder, len(shards))


def load_world(folder: Path, shards: int) -> World:
    parts = [np.load(_shard_path(folder, shard)) for shard in range(shards)]
    names = [one.name for one in fields(World)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
    offsets = np.repeat(np.arange(shards) * SHARD, [len(part["persons"]) for part in parts])
    arrays["persons"][:, 0] += offsets
    return World(**arrays)


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:04d}.npz"


@lru_cache(maxsize=1)
def _body() -> Body:
    cv2.setNumThreads(1)
    return Body.load()


def _render_shard(folder: Path, look: str, seed: int, shard: int) -> None:
    scenes, people = [], []
    for index in range(SHARD):
        rng = np.random.default_rng([seed, shard * SHARD + index])
        rendering = render(_body(), rng, LOOKS[look], (SIDE, SIDE))
        scenes.append(_pack(rendering))
        people += [(index, number, person) for number, person in enumerate(rendering.people)]
    arrays = {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}
    arrays["persons"] = np.array([person[:2] for person in people], np.int64).reshape(-1, 2)
    arrays["bboxes"] = np.array([p.bbox for *_, p in people], np.float32).reshape(-1, 4)
    arrays["keypoints"] = np.array([p.keypoints for *_, p in people], np.float32).reshape(-1, 17, 3)
    arrays["areas"] = np.array([p.area for *_, p in people], np.int64)
    path = _shard_path(folder, shard)
    part = path.with_suffix(".part.npz")
    np.savez(part, **arrays)
    os.replace(part, path)


def _pack(rendering: Rendering) -> dict[str, np.ndarray]:
    body = rendering.instances >= 0
    unit = float(np.median(rendering.depth[body])) if body.any() else 1.0
    depth = np.clip((rendering.depth[::2, ::2] / unit - NEAR) / SPAN, 0, 1)
    return dict(
        images=rendering.image,
        depth=np.round(depth * 65535).astype(np.uint16),
        normals=np.round(rendering.normals[::2, ::2] * 127).astype(np.int8),
        instances=rendering.instances[::2, ::2].astype(np.int8),
        focal=np.float32(rendering.intrinsics[0, 0]),
    )
