"""A frozen network run once on one person: what it says as a picture, and what can be told without truth.

Knows no weight files: it takes teachers and detectors that are built.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    import numpy as np

    from sagecache.project import Project
    from sagecache.teachers.base import Detector, Teacher

FACING = 0.9  # share of a person's normals that look at the camera, in axes that are right
SHEET = (640, 640)  # pixels that a picture with boxes may take


@dataclass(frozen=True)
class Person:
    """pixels (H, W, 3) uint8 RGB of an image; bbox (x, y, w, h) of a person in it; padding of its crop."""

    pixels: np.ndarray
    bbox: tuple[float, float, float, float]
    padding: float

    def crop(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """A teacher's crop (H, W, 3) of the person, RGB, and where in it the box is (H, W) bool."""
        import numpy as np

        from sagecache.data.views import warp_image
        from sagecache.geometry.affine import apply_affine, crop_affine

        crop_from_image = crop_affine(self.bbox, size, self.padding)
        x, y, width, height = self.bbox
        corners = np.array([[x, y], [x + width, y + height]])
        left_top, right_bottom = apply_affine(crop_from_image, corners)
        columns, rows = np.arange(size[0]), np.arange(size[1])[:, None]
        across = (columns >= left_top[0]) & (columns <= right_bottom[0])
        down = (rows >= left_top[1]) & (rows <= right_bottom[1])
        return warp_image(self.pixels, crop_from_image, size), across & down


def person_of(project: Project, image: str | None, split: str | None) -> Person:
    """The whole of a picture, the first person of a split, or in the demo an infant rendered for it alone.

    Raises SagecacheError where there is none.
    """
    from sagecache.data.coco import read_image

    if image is not None:
        pixels = read_image(Path(image))
        return Person(pixels, (-0.5, -0.5, float(pixels.shape[1]), float(pixels.shape[0])), 1.0)
    if split is None and project.embedded:
        return _rendered_infant(project.data.crop.padding)
    instance = _first_person(project, split)
    return Person(read_image(instance.path), instance.bbox, project.data.crop.padding)


def look_at_maps(teacher: Teacher, person: Person, picture: Path, axes: str) -> tuple[dict[str, str], bool]:
    """Run a teacher on a person's crop and write its maps; (what it says, whether all of it is finite).

    axes: the normal_axes that the teacher was told, for the sentence about them.
    """
    import cv2
    import numpy as np

    from sagecache.visualization.draw import colour_depth, colour_normals, draw_mask
    from sagecache.visualization.sheet import Tile, grid

    crop, mask = person.crop(teacher.spec.input_size)
    maps = {name: value[0].float().cpu().numpy() for name, value in teacher(crop[None]).items()}
    size = teacher.spec.map_size
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    body = cv2.resize(mask.astype("uint8"), size, interpolation=cv2.INTER_NEAREST) > 0
    told, tiles = {"looked at": f"a crop of {crop.shape[1]}x{crop.shape[0]}"}, [Tile(small, "crop")]
    kind = teacher.spec.depth_kind
    if "depth" in maps:
        seen, span = colour_depth(maps["depth"][0], body)
        tiles.append(Tile(seen, f"depth ({kind}), near is red"))
        if span is not None:
            told["depth"] = f"{kind}, {teacher.spec.unit}; from {span[0]:.3g} to {span[1]:.3g}"
    if "normal" in maps:
        tiles.append(Tile(colour_normals(maps["normal"], body), "normals"))
        told["normals"] = _facing(maps["normal"], body, axes)
    if teacher.spec.mask_from == "network":
        tiles.append(Tile(draw_mask(small, maps["mask"][0] > 0.5), "mask"))
        told["mask"] = f"{100 * (maps['mask'][0] > 0.5).mean():.0f} % of the crop"
    write_sheet(picture, grid(tiles, len(tiles)))
    broken = sorted(name for name, value in maps.items() if not np.isfinite(value).all())
    if broken:
        told["broken"] = f"not every number of {' and '.join(broken)} is finite"
    return told, not broken


def look_at_boxes(
    detector: Detector, person: Person, picture: Path
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Run a detector on the whole image and draw what it finds; (what it says, boxes xywh and scores)."""
    from sagecache.visualization.draw import draw_box
    from sagecache.visualization.sheet import Text, Tile, fit, grid, write

    ((corners, scores),) = detector([person.pixels])
    found = [
        dict(bbox=[x0, y0, x1 - x0, y1 - y0], score=score)
        for (x0, y0, x1, y1), score in zip(corners.tolist(), scores.tolist(), strict=True)
    ]
    shown, shown_from_image = fit(person.pixels, SHEET)
    scale, (left, top) = shown_from_image[0, 0], shown_from_image[:2, 2]
    labels = []
    for one in found:
        x, y, width, height = (scale * value for value in one["bbox"])
        shown = draw_box(shown, (x + left, y + top, width, height))
        labels.append(Text(f"{one['score']:.2f}", max(x + left, 0) + 4, max(y + top, 0) + 4))
    told = "1 box" if len(found) == 1 else f"{len(found)} boxes"
    if found:
        told += f", scores {found[0]['score']:.2f} to {found[-1]['score']:.2f}"
    write_sheet(picture, grid([Tile(write(shown, labels), "persons", told)], 1))
    height, width = person.pixels.shape[:2]
    return {"looked at": f"an image of {width}x{height}", "persons": told}, found


def crop_memory(size: tuple[int, int], widest: int) -> str:
    """In words: a crop of size (width, height) on its way through a network; widest in bytes."""
    return f"a crop of {size[0]}x{size[1]} {widest / 2**30:.2f} GiB more, without gradients"


def write_sheet(picture: Path, sheet: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3). Raises SagecacheError where no such file can be."""
    import cv2

    try:
        written = cv2.imwrite(str(picture), sheet[..., ::-1])
    except cv2.error:  # a suffix that it knows no encoder for
        written = False
    if not written:
        raise SagecacheError(
            "the picture can't be written", file=picture, fix="Name a .png in a folder that exists: --output."
        )


def _facing(normal: np.ndarray, body: np.ndarray, axes: str) -> str:
    share = float((normal[2][body] < 0).mean())
    told = f"{100 * share:.0f} % look at the camera with normal_axes='{axes}'"
    return told if share > FACING else f"{told}: these axes are wrong, or it saw no person"


def _rendered_infant(padding: float) -> Person:
    import numpy as np

    if find_spec("embreex") is None:
        raise SagecacheError(
            "without embreex no infant is rendered to look at",
            fix="Give a picture: --image FILE, or pip install 'sagecache[demo]'.",
        )
    from sagecache.synth.body import Body
    from sagecache.synth.looks import LOOKS
    from sagecache.synth.render import render

    scene = render(Body.load(), np.random.default_rng(103), LOOKS["target"], (384, 384))
    return Person(scene.image, scene.people[0].bbox, padding)


def _first_person(project: Project, split: str | None):
    from sagecache.cli.actions import ensure

    if split is None:
        boxed = [name for name, one in project.data.splits.items() if one.boxes == "annotations"]
        if not boxed:
            raise SagecacheError(
                "no split has annotated boxes", fix="Give --split, or a picture: --image FILE."
            )
        split = "val" if "val" in boxed else boxed[0]
    ensure(project, project.split_requirements(split))
    instances = project.instances(split)
    if not instances:
        raise SagecacheError(f"split '{split}' has no person", fix="Give a picture: --image FILE.")
    return instances[0]
