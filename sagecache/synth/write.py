"""Write a rendered split to disk: pictures, COCO keypoints, ground-truth geometry.

Layout of a split: ``images/{id:012d}.jpg``, ``annotations.json`` and
``geometry/{id:012d}_{depth,normal,instance}.png``. annotations.json is written last, by rename, so its
presence means that the split is complete; an interrupted split goes on where it stopped. Every picture
has its own random generator, so the bytes do not depend on the number of workers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from sagecache.children import die_with_parent, environment, thread_variables
from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import COCO17
from sagecache.store.lock import FolderLock
from sagecache.synth.body import Body
from sagecache.synth.looks import Look
from sagecache.synth.render import Rendering, render

PARTS = ".parts"  # records of finished pictures, until annotations.json holds them all
FAR_FACTOR = 4.0  # depth saturates at this many times the people's median depth, to keep 16 bits fine
JPEG_QUALITY = 95
RENDERER = 1  # count it up when the code makes other pictures of the same look and seed


@dataclass(frozen=True)
class _Job:
    """What decides the bytes of a split, and where it goes."""

    folder: Path
    look: Look
    seed: int
    start_id: int
    geometry: bool
    size: tuple[int, int]


def write_split(
    folder: Path,
    look: Look,
    count: int,
    seed: int,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    start_id: int = 1,
    geometry: bool = True,
    size: tuple[int, int] = (256, 256),
) -> Path:
    """Render count pictures of a look into folder; returns the path of annotations.json.

    workers: processes (default: one a core); progress(done, count) is called in this process. Image ids
    run from start_id. Pixel (x, y) centres are integers in all annotations. Call it from a module that
    is safe to import (``if __name__ == "__main__"``), as workers are spawned.
    Raises SagecacheError when the folder holds another split, or when another process renders there.
    """
    job = _Job(Path(folder), look, int(seed), int(start_id), bool(geometry), tuple(map(int, size)))
    target = job.folder / "annotations.json"
    settings = _settings(job, count)
    if not target.is_file() or (job.folder / PARTS).exists():
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(job.folder, shared=False)
        try:
            if not target.is_file():  # the last owner of the lock may have finished it
                _render_split(job, settings, target, workers or os.cpu_count() or 1, progress)
            shutil.rmtree(job.folder / PARTS, ignore_errors=True)
        finally:
            lock.release()
    _check_same(_rendered_settings(target), settings, target)
    return target


def _render_split(job: _Job, settings: dict, target: Path, workers: int, progress: Callable | None) -> None:
    count = settings["count"]
    _prepare(job, settings)
    missing = [index for index in range(count) if not _part_path(job, index).is_file()]
    _run(job, missing, count, workers, progress)
    parts = [json.loads(_part_path(job, index).read_text()) for index in range(count)]
    _write_atomically(target, json.dumps(_coco(parts, settings)).encode())


def read_geometry(folder: Path, image: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground truth of one image record of annotations.json, from the split's folder.

    Returns depth (H, W) float32, metres along the camera axis (saturated at depth_offset + 65535 *
    depth_scale); normals (H, W, 3) float32 unit, camera frame (x right, y down, z away), towards the
    camera; instances (H, W) int16, -1 where nobody is, else the person's place among the image's
    annotations. Raises SagecacheError when a file is missing.
    """
    stem = Path(folder) / "geometry" / f"{image['id']:012d}"
    maps = []
    for kind in ("depth", "normal", "instance"):
        path = stem.with_name(f"{stem.name}_{kind}.png")
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if values is None:
            raise SagecacheError("no ground truth", file=path, fix="Render the split with geometry=True")
        maps.append(values)
    depth = maps[0].astype(np.float32) * np.float32(image["depth_scale"]) + np.float32(image["depth_offset"])
    normals = maps[1][..., ::-1].astype(np.float32) - 128
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return depth, normals, maps[2].astype(np.int16) - 1


def image_rng(look: Look, seed: int, index: int) -> np.random.Generator:
    """The generator of picture number index (from 0) of a split."""
    return np.random.default_rng([seed, zlib.crc32(look.name.encode()), index])


def _settings(job: _Job, count: int) -> dict:
    """Everything that decides the split's content, as JSON values."""
    settings = {"look": asdict(job.look), "seed": job.seed, "count": count, "start_id": job.start_id}
    settings |= {"geometry": job.geometry, "size": list(job.size), "renderer": RENDERER}
    return json.loads(json.dumps(settings))


def _rendered_settings(path: Path) -> dict:
    """What an annotation file says it was rendered from. Raises SagecacheError where it says nothing."""
    try:
        return json.loads(path.read_text())["info"]["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise SagecacheError(
            "these annotations were not rendered", file=path, fix="Choose another folder, or drop 'render'"
        ) from error


def _check_same(found: dict, wanted: dict, path: Path) -> None:
    different = sorted(key for key in wanted if found.get(key) != wanted[key])
    if different:
        raise SagecacheError(
            f"another rendered split is here; it differs in {', '.join(different)}",
            file=path,
            fix="Choose another folder or delete this one",
        )


def _prepare(job: _Job, settings: dict) -> None:
    for name in ("images", PARTS, *(["geometry"] if job.geometry else [])):
        (job.folder / name).mkdir(parents=True, exist_ok=True)
        for left_over in (job.folder / name).glob(".*"):  # half-written files of a killed run
            left_over.unlink()
    marker = job.folder / PARTS / "settings.json"
    if marker.is_file():
        _check_same(json.loads(marker.read_text()), settings, marker)
    else:
        _write_atomically(marker, json.dumps(settings).encode())


def _part_path(job: _Job, index: int) -> Path:
    return job.folder / PARTS / f"{job.start_id + index:012d}.json"


def _run(job, missing, count, workers, progress) -> None:
    done = count - len(missing)
    if progress:
        progress(done, count)
    if not missing:
        return
    # spawn: a forked child would inherit threads of torch and embree; and even one worker is a child, so
    # that every picture is made under the same thread settings: one thread, as one process a core is faster
    context = multiprocessing.get_context("spawn")
    with (
        environment(thread_variables(1)),
        ProcessPoolExecutor(min(workers, len(missing)), context, _start_worker, (job,)) as pool,
    ):
        tasks = [pool.submit(_make, index) for index in missing]
        try:
            for task in as_completed(tasks):
                task.result()
                done += 1
                if progress:
                    progress(done, count)
        except BrokenProcessPool as error:
            raise SagecacheError(
                "a rendering process died",
                file=job.folder,
                fix="Run the same command again; call write_split under `if __name__ == '__main__'`",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_WORKER: dict = {}


def _start_worker(job: _Job) -> None:
    cv2.setNumThreads(1)
    die_with_parent()  # a pool's children wait for work for ever when their parent is killed
    _WORKER.update(body=Body.load(), job=job)


def _make(index: int) -> None:
    """Render one picture and write its files, the record last."""
    job: _Job = _WORKER["job"]
    rendering = render(_WORKER["body"], image_rng(job.look, job.seed, index), job.look, job.size)
    image_id = job.start_id + index
    stem = f"{image_id:012d}"
    width, height = job.size
    record = {"id": image_id, "file_name": f"{stem}.jpg", "width": width, "height": height, "license": 1}
    record |= {"look": job.look.name, "seed": [job.seed, index]}
    record |= {"kinds": [person.kind for person in rendering.people]}
    _write_image(
        job.folder / "images" / f"{stem}.jpg", rendering.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if job.geometry:
        record |= _write_geometry(job.folder / "geometry", stem, rendering)
    record["intrinsics"] = rendering.intrinsics.tolist()
    part = {"image": record, "annotations": [_annotation(person, image_id) for person in rendering.people]}
    _write_atomically(_part_path(job, index), json.dumps(part).encode())


def _write_geometry(folder: Path, stem: str, rendering: Rendering) -> dict:
    """Three PNGs; returns the image record's depth_scale and depth_offset."""
    depth = rendering.depth
    body = depth[rendering.instances >= 0]
    offset = float(depth.min())
    far = FAR_FACTOR * float(np.median(body)) if body.size else float(depth.max())
    scale = max(min(far, float(depth.max())) - offset, 1e-3) / 65535
    codes = np.clip(np.round((depth - offset) / scale), 0, 65535).astype(np.uint16)
    normals = np.round(rendering.normals * 127 + 128).astype(np.uint8)
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    _write_image(folder / f"{stem}_depth.png", codes, options)
    _write_image(folder / f"{stem}_normal.png", normals, options)
    _write_image(folder / f"{stem}_instance.png", (rendering.instances + 1).astype(np.uint8), options)
    return {"depth_scale": scale, "depth_offset": offset}


def _write_image(path: Path, pixels: np.ndarray, options: list[int]) -> None:
    if pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels[..., ::-1])  # files hold RGB, OpenCV takes BGR
    ok, data = cv2.imencode(path.suffix, pixels, options)
    if not ok:
        raise SagecacheError("OpenCV cannot encode this picture", file=path)
    _write_atomically(path, data.tobytes())


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def _annotation(person, image_id: int) -> dict:
    keypoints = [[round(float(x), 2), round(float(y), 2), int(v)] for x, y, v in person.keypoints]
    return {
        "image_id": image_id,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [round(value, 2) for value in person.bbox],
        "area": person.area,
        "keypoints": [value for triplet in keypoints for value in triplet],
        "num_keypoints": sum(v > 0 for _, _, v in keypoints),
        "keypoints_camera": [
            [round(float(value), 5) for value in joint] for joint in person.keypoints_camera
        ],
        "kind": person.kind,
    }


def _coco(parts: list[dict], settings: dict) -> dict:
    annotations = [annotation for part in parts for annotation in part["annotations"]]
    category = {"id": 1, "name": "person", "supercategory": "person"}
    category |= {"keypoints": list(COCO17.names), "skeleton": (COCO17.edges + 1).tolist()}
    return {
        "info": {
            "description": f"Rendered people, look '{settings['look']['name']}', seed {settings['seed']}",
            "settings": settings,
            "pixel_centres": "integers",
            "area": "visible pixels of the person",
            "bbox": "projected body including hidden parts, clipped to the frame",
        },
        "licenses": [
            {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
        ],
        "categories": [category],
        "images": [part["image"] for part in parts],
        # ids from 1: pycocotools takes id 0 for "no match"
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
    }
