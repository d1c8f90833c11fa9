"""Targets that were computed elsewhere: folders of ``.npy`` maps of whole images, cut into target crops.

Takes the place of the teacher in ``runner.run_geo``: the plan, the store and what is said of failures are the
same as for a network's. What the demo scripts of facebookresearch/sapiens write is read as it is: one file an
image, ``<its name without ending>.npy``, depth (H, W), normals (H, W, 3), mask (H, W) bool or class numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sagecache.errors import SagecacheError, nearest
from sagecache.precompute.pipeline import ordered_map
from sagecache.precompute.plan import GeoPlan, hash_images
from sagecache.precompute.resample import cut_maps
from sagecache.precompute.steps import FailedItem, GeoShard, encode_maps
from sagecache.store.codec import EncodedRow, failed_row
from sagecache.store.fingerprint import digest
from sagecache.store.spec import NO_BODY, OK, STATUS_TEXT, UNREADABLE
from sagecache.teachers.base import NORMAL_AXES, TeacherSpec

IMPORTED = "imported"  # the fingerprint's teacher.type
_NO_MAP = "not a .npy file of numbers, or cut off"
_ORIENTATION = 0x0112  # the EXIF tag
# EXIF orientation -> what makes raw pixels of turned ones: transpose, then mirror x, then mirror y.
_RAW_FROM_TURNED = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class ImportedMaps:
    """Maps of images in folders: a spec and a fingerprint as a teacher has, and the maps of an image.

    folders: of 'depth', 'normal', 'mask', at least one of the first two; images: (folder of the images, those
    that are wanted); an image's map lies at the same place below each folder, or directly in it. Without a
    mask every pixel counts whose values are finite. spec: of the targets. normal_axes: a key of NORMAL_AXES.
    towards: depth grows towards the camera, and is negated. An image with an EXIF orientation is taken as
    OpenCV reads it, turned, unless the shape of its maps says that it was not.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        images: tuple[Path, Sequence[Path]],
        spec: TeacherSpec,
        normal_axes: str = "opengl",
        towards: bool = False,
    ) -> None:
        if not {"depth", "normal"} & set(folders):
            raise SagecacheError("there is nothing to import", fix="Name a folder of depth, or of normals.")
        if normal_axes not in NORMAL_AXES:
            raise SagecacheError(
                f"unknown normal axes '{normal_axes}'", fix=nearest(normal_axes, NORMAL_AXES)
            )
        for folder in folders.values():
            if not folder.is_dir():
                raise SagecacheError("there is no such folder", file=folder)
        self.spec, self._axes, self._towards = spec, normal_axes, towards
        self._folders = dict(folders)
        self._root, paths = images
        self._images = list(dict.fromkeys(paths))

    @cached_property
    def files(self) -> dict[Path, dict[str, Path]]:
        """Image -> 'depth', 'normal', 'mask' -> its file, there or not.

        Raises SagecacheError where two images would share a file.
        """
        files, owners = {}, {}
        for image in self._images:
            files[image] = {name: self._file(folder, image) for name, folder in self._folders.items()}
            for path in files[image].values():
                other = owners.setdefault(path, image)
                if other != image:
                    raise SagecacheError(
                        f"the maps of two images have one name: {other} and {image}",
                        file=path,
                        fix="Keep the folders of the images below the folders of the maps.",
                    )
        return files

    def fingerprint(self) -> dict[str, object]:
        """Names and hashes of all files, and how their values are turned into ours."""
        named = [
            (name, path.relative_to(self._folders[name]).as_posix(), path)
            for of_image in self.files.values()
            for name, path in of_image.items()
        ]
        hashes = hash_images([path for *_, path in named])
        content = sorted([name, place, hashes[path].tobytes().hex()] for name, place, path in named)
        return {
            "type": IMPORTED,
            "files": {"count": len(named), "sha256": digest(content)},
            "normal_axes": self._axes if "normal" in self._folders else "none",
            "towards": self._towards,
            "resampling": "linear, averaged where it shrinks, over valid pixels",
        }

    def read(self, image: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Maps of an image in the project's frame: 'depth' (1, H, W), 'normal' (3, H, W) float32, and where
        they are valid (H, W). Raises SagecacheError, naming the file, for what can't be read."""
        (width, height), orientation = _header(image)
        files, turned = self.files[image], orientation in _RAW_FROM_TURNED
        shape = (width, height) if orientation >= 5 else (height, width)
        maps = {}
        for name, path in files.items():
            found = _load(path, channels=3 if name == "normal" else 1)
            if turned and found.shape[1:] == (height, width) != shape:
                turned, shape = False, (height, width)  # made on the raw pixels
            if found.shape[1:] != shape:
                raise SagecacheError(
                    f"the map is {found.shape[2]}x{found.shape[1]}, its image is {shape[1]}x{shape[0]}",
                    file=path,
                )
            if not np.isfinite(found).all(axis=0).any():
                raise SagecacheError("no value of the map is finite", file=path)
            maps[name] = found
        valid = maps.pop("mask")[0] > 0.5 if "mask" in maps else np.ones(shape, bool)
        if "normal" in maps:
            maps["normal"] = maps["normal"] * np.reshape(NORMAL_AXES[self._axes], (3, 1, 1)).astype(
                np.float32
            )
            valid = valid & (np.abs(maps["normal"]).sum(axis=0) > 1e-6)  # False for NaN as well
        if "depth" in maps and self._towards:
            maps["depth"] = -maps["depth"]
        for values in maps.values():
            valid = valid & np.isfinite(values).all(axis=0)
        return _as_raw(maps, valid, orientation) if turned else (maps, valid)

    def reason(self, image: Path, status: int) -> tuple[str, Path]:
        """Why an instance of this image has no targets, and the file; a store keeps no more than its status.

        Reads the maps of an image once more where it was they that could not be used.
        """
        if status == UNREADABLE:
            try:
                self.read(image)
            except SagecacheError as error:
                return error.message, Path(error.file or image)
            return "the image or its map could not be read", image
        if status == NO_BODY and "mask" in self._folders:
            return STATUS_TEXT[NO_BODY], self.files[image]["mask"]
        if status == NO_BODY:
            return "no value of its maps is finite in the box", next(iter(self.files[image].values()))
        return STATUS_TEXT[status], image

    def _file(self, folder: Path, image: Path) -> Path:
        """Below the folder as the image lies below its own, or directly in it, as Sapiens' scripts do."""
        inside = image.relative_to(self._root) if image.is_relative_to(self._root) else Path(image.name)
        path = (folder / inside).with_suffix(".npy")
        return path if path.is_file() else folder / path.name


@dataclass(frozen=True)
class ImportWork:
    """The shards of one store, as ``steps.GeoWork``; an image's maps are read once for all its instances."""

    plan: GeoPlan
    maps: ImportedMaps
    rows: Mapping[int, Sequence[int]]
    batch_size: int  # unused: nothing is gained by batches
    workers: int = 2

    def count(self, number: int) -> int:
        return len(self.rows[number])

    def __call__(
        self, numbers: Sequence[int], advance: Callable[[int], None] = lambda count: None
    ) -> Iterator[tuple[int, GeoShard]]:
        """Shards in the order of numbers; images are read and cut by ``workers`` threads."""
        made = ordered_map(self._make, self._images(numbers), self.workers, 2 * self.workers)
        for number, of_shard in itertools.groupby(made, key=lambda made: made[0]):
            rows, failed = [], []
            for _, encoded, without in of_shard:
                rows += encoded
                failed += without
                advance(len(encoded))
            yield number, GeoShard(rows, failed, 0.0)

    def _images(self, numbers: Sequence[int]) -> Iterator[tuple[int, Path, list[int]]]:
        for number in numbers:
            for path, rows in itertools.groupby(self.rows[number], lambda row: self.plan.instances[row].path):
                yield number, path, list(rows)

    def _make(self, item: tuple[int, Path, list[int]]) -> tuple[int, list[EncodedRow], list[FailedItem]]:
        number, path, rows = item
        size = self.plan.spec.map_size
        try:
            maps, valid = self.maps.read(path)
        except SagecacheError as error:
            lost = failed_row(self.plan.fields, size, UNREADABLE)
            return number, [lost] * len(rows), [self._failed(row, error.message, error.file) for row in rows]
        encoded = []
        for row in rows:
            cut = cut_maps(maps, valid, self.plan.store.target_from_image[row], size)
            encoded.append(encode_maps(self.plan, row, cut))
        failed = [
            self._failed(row, *self.maps.reason(path, one.status))
            for row, one in zip(rows, encoded, strict=True)
            if one.status != OK
        ]
        return number, encoded, failed

    def _failed(self, row: int, reason: str, file: Path) -> FailedItem:
        one = self.plan.instances[row]
        return FailedItem(one.image_id, one.instance, reason, file)


def _header(path: Path) -> tuple[tuple[int, int], int]:
    """(width, height) of the pixels as stored, and the EXIF orientation, 1 where there is none."""
    try:
        with Image.open(path) as image:
            return image.size, image.getexif().get(_ORIENTATION, 1) or 1
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise SagecacheError(f"{STATUS_TEXT[UNREADABLE]}: {error}", file=path) from error


def _load(path: Path, channels: int) -> np.ndarray:
    """A map as float32 (channels, H, W), whether its channels stand first or last or, being one, nowhere."""
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise SagecacheError("the image's map is missing", file=path) from error
    except OSError as error:
        raise SagecacheError(f"the map can't be read: {error.strerror or error}", file=path) from error
    except (ValueError, EOFError) as error:  # numpy would advise allow_pickle
        raise SagecacheError(_NO_MAP, file=path) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise SagecacheError(_NO_MAP, file=path)
    if channels == 1 and found.ndim == 2:
        found = found[None]
    elif found.ndim == 3 and found.shape[2] == channels:
        found = found.transpose(2, 0, 1)
    if found.ndim != 3 or found.shape[0] != channels:
        expected = "(H, W)" if channels == 1 else f"(H, W, {channels})"
        raise SagecacheError(f"the map has shape {found.shape}, not {expected}", file=path)
    return found.astype(np.float32)


def _as_raw(
    maps: Mapping[str, np.ndarray], valid: np.ndarray, orientation: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Maps of a picture that was turned by its EXIF orientation -> those of its pixels as stored."""
    transpose, mirror_x, mirror_y = _RAW_FROM_TURNED[orientation]

    def turn(values: np.ndarray) -> np.ndarray:
        values = values.swapaxes(-1, -2) if transpose else values
        return values[..., :: -1 if mirror_y else 1, :: -1 if mirror_x else 1]

    turned = {name: turn(values) for name, values in maps.items()}
    if "normal" in turned:
        x, y, z = turned["normal"]
        x, y = (y, x) if transpose else (x, y)
        turned["normal"] = np.stack([-x if mirror_x else x, -y if mirror_y else y, z])
    return turned, turn(valid)
