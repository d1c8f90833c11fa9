"""``sagecache teachers check``: identify a weight file, size it, run it once and look at what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    import numpy as np

    from sagecache.models.identify import Identity
    from sagecache.project import Project

FACING = 0.9  # share of a person's normals that look at the camera, in axes that are right
SHOWN = 6  # names of a gap


def check(
    project: Project,
    path: Path,
    size: str | None = None,
    image: str | None = None,
    split: str | None = None,
    output: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """What `findings` tells, as JSON. Raises SagecacheError for a file that is cut, foreign or holds code."""
    from sagecache.models.identify import identify

    found = identify(path)
    summary = asdict(found) | dict(file=str(path), usable=found.role is not None and not found.gaps)
    width_height = _parsed(size)
    summary["memory"] = _memory(found, width_height)
    if found.role == "teacher" and summary["usable"]:
        settings = dict(found.settings) | dict(device=device)
        if width_height:
            settings |= dict(input_size=width_height, map_size=tuple(side // 4 for side in width_height))
        if settings["type"] != "torchscript":
            picture = Path(output or f"{path.name}.png")
            summary["says"] = _look(project, settings, image, split, picture) | dict(picture=str(picture))
    return summary


def findings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, told) in the order in which one asks."""
    rows = [("is", summary["what"])]
    if summary["gaps"] is not None:
        gaps = summary["gaps"]
        told = "; ".join(gaps[:SHOWN]) + (f"; {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else "")
        rows.append(("names", told or f"all {summary['tensors']} match"))
    rows += [("when loaded", one) for one in summary["done"]]
    if summary["parameters"]:
        rows.append(
            ("parameters", f"{summary['parameters'] / 1e6:,.1f} million in {summary['tensors']} tensors")
        )
    rows += [("memory", told) for told in summary["memory"]]
    if summary["licence"]:
        rows.append(("licence", summary["licence"]))
    if summary["settings"]:
        where = {"teacher": "teacher", "detector": "detector"}.get(summary["role"], "model.py:")
        rows.append((where, ", ".join(f"{key}={value!r}" for key, value in summary["settings"].items())))
    rows += [(key, str(value)) for key, value in summary.get("says", {}).items()]
    if summary["role"] is None:
        rows.append(("use", "none: sagecache knows no network of these names"))
    return rows


def _parsed(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    width, _, height = size.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise SagecacheError(f"--size is '{size}'", fix="Give width x height, for example 768x1024.")
    return int(width), int(height)


def _memory(found: Identity, size: tuple[int, int] | None) -> list[str]:
    """What weights take, and what a crop takes on its way through a network that is known here."""
    if not found.parameters:
        return []
    gib = found.parameters / 2**30
    told = [f"weights {4 * gib:.2f} GiB in float32, {2 * gib:.2f} in bfloat16"]
    network = _network(found, size)
    if network is not None:
        build, (width, height) = network
        from sagecache.models.footprint import footprint

        widest = footprint(build, (1, 3, height, width), train=False).widest
        told.append(f"a crop of {width}x{height} {widest / 2**30:.2f} GiB more in float32, without gradients")
    return told


def _network(found: Identity, size: tuple[int, int] | None):
    """(build, (width, height)) of a ViT with or without a dense head; None for another network."""
    from sagecache.models.identify import network_of

    path = next(iter((found.settings or {}).get("files", {}).values()), None)
    return None if path is None or found.settings["type"] != "sapiens" else network_of(Path(path), size)


def _look(
    project: Project, settings: dict[str, Any], image: str | None, split: str | None, picture: Path
) -> dict[str, str]:
    """Run a teacher on one crop, write what it says as a picture, and tell what can be told without truth."""
    import cv2

    from sagecache.teachers.registry import build_teacher
    from sagecache.visualization.draw import colour_depth, colour_normals, draw_mask
    from sagecache.visualization.sheet import Tile, grid

    output = next(iter(settings["files"]))
    teacher = build_teacher(settings | (dict(mask="network") if output == "mask" else {}))
    crop, mask = _crop(project, teacher.spec.input_size, image, split)
    maps = {name: value[0].float().cpu().numpy() for name, value in teacher(crop[None]).items()}
    size = teacher.spec.map_size
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    body = cv2.resize(mask.astype("uint8"), size, interpolation=cv2.INTER_NEAREST) > 0
    told, tiles = {"looked at": f"a crop of {crop.shape[1]}x{crop.shape[0]}"}, [Tile(small, "crop")]
    if output == "depth":
        seen, span = colour_depth(maps["depth"][0], body)
        tiles.append(Tile(seen, f"depth ({teacher.spec.depth_kind}), near is red"))
        told["depth"] = f"{teacher.spec.depth_kind}, {teacher.spec.unit}; from {span[0]:.3g} to {span[1]:.3g}"
    elif output == "normal":
        tiles.append(Tile(colour_normals(maps["normal"], body), "normals"))
        told["normals"] = _facing(maps["normal"], body, settings.get("normal_axes", "opengl"))
    else:
        tiles.append(Tile(draw_mask(small, maps["mask"][0] > 0.5), "mask"))
        told["mask"] = f"{100 * (maps['mask'][0] > 0.5).mean():.0f} % of the crop"
    cv2.imwrite(str(picture), grid(tiles, len(tiles))[..., ::-1])
    return told


def _facing(normal: np.ndarray, body: np.ndarray, axes: str) -> str:
    share = float((normal[2][body] < 0).mean())
    told = f"{100 * share:.0f} % look at the camera with normal_axes='{axes}'"
    return told if share > FACING else f"{told}: these axes are wrong, or it saw no person"


def _crop(
    project: Project, size: tuple[int, int], image: str | None, split: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """A teacher's crop (H, W, 3) of a person, RGB, and where in it the box is (H, W) bool."""
    import numpy as np

    from sagecache.data.coco import read_image
    from sagecache.data.views import warp_image
    from sagecache.geometry.affine import apply_affine, crop_affine

    if image is not None:
        pixels = read_image(Path(image))
        bbox, padding = (-0.5, -0.5, float(pixels.shape[1]), float(pixels.shape[0])), 1.0
    else:
        instance = _first_person(project, split)
        pixels, bbox, padding = read_image(instance.path), instance.bbox, project.data.crop.padding
    crop_from_image = crop_affine(bbox, size, padding)
    x, y, width, height = bbox
    left_top, right_bottom = apply_affine(crop_from_image, np.array([[x, y], [x + width, y + height]]))
    columns, rows = np.arange(size[0]), np.arange(size[1])[:, None]
    inside = (
        (columns >= left_top[0])
        & (columns <= right_bottom[0])
        & (rows >= left_top[1])
        & (rows <= right_bottom[1])
    )
    return warp_image(pixels, crop_from_image, size), inside


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
