"""Write a project folder for a user's own COCO-format data: pages to read and edit, nothing hidden."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sagecache.data.coco import labeled_keypoints, load_coco, load_detections
from sagecache.data.picture_files import list_pictures
from sagecache.errors import SagecacheError
from sagecache.project.project import embedded_project, read_page, read_skeleton
from sagecache.skeleton.category import require_skeleton
from sagecache.skeleton.definition import COCO17, Skeleton

PAGES = ("demo", "nk_sapiens", "sage_pose")  # folders of configs/
NOT_COPIED = {"data", "model", "oracle"}  # the first two have ways of their own; oracle needs labels of all
NETWORKS = ("crop", "teacher", "detector")  # of those folders' data.py, as they stand there


@dataclass(frozen=True)
class UserData:
    """What a user has.

    images: folder of the labeled images, and of those of val and test unless val_images and test_images say
    otherwise. labeled, val, test: COCO keypoint JSONs; val is the labeled one where not given.
    unlabeled_images: folder; its images get ids from their names where all stems are numbers (COCO's {:012d}
    rule), else 1, 2, … in order of name, unless unlabeled_annotations, a COCO JSON, lists them.
    detections: COCO detection JSON for the unlabeled images; without it boxes come from ``precompute
    detect``. dataset_info: mmpose page of another skeleton than COCO-17.
    """

    images: Path
    labeled: Path
    val: Path | None = None
    test: Path | None = None
    val_images: Path | None = None
    test_images: Path | None = None
    unlabeled_images: Path | None = None
    unlabeled_annotations: Path | None = None
    detections: Path | None = None
    dataset_info: Path | None = None


def write_project(folder: Path, data: UserData, pages: str = "demo", force: bool = False) -> list[Path]:
    """Write data.py, model.py, the recipes and, for unlabeled images, a COCO image list. Returns the files.

    pages: whose student, recipes, teacher and detector, one of PAGES. Without unlabeled images stage0 is the
    only recipe; with them later: once more, with force.
    Raises SagecacheError when the folder already holds a project (unless force), an input is unusable, or
    something is said of images without naming them; then nothing is written.
    """
    folder = folder.expanduser().resolve()
    if (folder / "data.py").exists() and not force:
        raise SagecacheError(
            "there is a project here already", file=folder, fix="Use --force to write its pages anew."
        )
    skeleton = COCO17 if data.dataset_info is None else read_skeleton(data.dataset_info)
    _require_usable(data, skeleton)
    folder.mkdir(parents=True, exist_ok=True)
    written, splits = [], _labeled_splits(folder, data)
    if data.unlabeled_images is not None:
        listing = data.unlabeled_annotations
        if listing is None:
            listing = folder / "unlabeled_images.json"
            pictures = list_pictures(data.unlabeled_images, numbered=data.detections is not None)
            listing.write_text(json.dumps(pictures, indent=1))
            written.append(listing)
        boxes = _relative(folder, data.detections) if data.detections else "detect"
        splits["unlabeled"] = _split(folder, data.unlabeled_images, listing, boxes)
    info = "coco"
    if data.dataset_info is not None:  # a copy: the original may lie in an environment that goes
        info = "_dataset_info.py"
        copied = folder / info
        if not (copied.exists() and copied.samefile(data.dataset_info)):
            shutil.copyfile(data.dataset_info, copied)
        written.append(copied)
    template = embedded_project().parent / pages
    page = folder / "data.py"
    page.write_text(_data_page(splits, info, data, template / "data.py"))
    model = Path(shutil.copyfile(template / "model.py", folder / "model.py"))
    _replace(model, f"out_channels={COCO17.num_keypoints}", f"out_channels={skeleton.num_keypoints}")
    recipes = {path.stem for path in template.glob("*.py")} - NOT_COPIED
    if data.unlabeled_images is None:
        recipes = {"stage0"}
    copied = [Path(shutil.copyfile(template / f"{one}.py", folder / f"{one}.py")) for one in sorted(recipes)]
    if skeleton.torso_joints is None:
        _drop_torso(copied)
    return [*written, page, model, *copied]


def _require_usable(data: UserData, skeleton: Skeleton) -> None:
    if data.unlabeled_images is None and (data.detections or data.unlabeled_annotations):
        raise SagecacheError(
            "boxes or a list of unlabeled images, but not the images",
            file=data.detections or data.unlabeled_annotations,
            fix="Give their folder: --unlabeled-images.",
        )
    pairs = {"val": (data.val, data.val_images), "test": (data.test, data.test_images)}
    for name, (labels, images) in pairs.items():
        if images is not None and labels is None:
            raise SagecacheError(
                "a folder of images without their annotations",
                file=images,
                fix=f"Give --{name} with --{name}-images.",
            )
    if data.dataset_info is not None and re.search(r"^_base_\s*=", data.dataset_info.read_text(), re.M):
        raise SagecacheError(
            "a page with _base_ can't be copied into a project",
            file=data.dataset_info,
            fix="Write the whole dataset_info into one page.",
        )
    for path in (data.labeled, data.val, data.test):
        if path is not None:
            require_skeleton(load_coco(path), skeleton, path)
    if data.detections is not None:
        load_detections(data.detections)


def _labeled_splits(folder: Path, data: UserData) -> dict[str, dict[str, str]]:
    splits = {
        "labeled": _split(folder, data.images, data.labeled),
        "val": _split(folder, data.val_images or data.images, data.val or data.labeled),
    }
    if data.test is not None:
        splits["test"] = _split(folder, data.test_images or data.images, data.test)
    return splits


def _drop_torso(pages: Iterable[Path]) -> None:
    """The pages tell head from feet, for which a body needs a torso by name."""
    for page in pages:
        page.write_text(page.read_text().replace(", inverted=True", ""))


def _replace(page: Path, pattern: str, text: str) -> None:
    content, count = re.subn(pattern, text, page.read_text())
    if count != 1:
        raise ValueError(f"{page.name} has {count} places like '{pattern}'")
    page.write_text(content)


def _split(folder: Path, images: Path, annotations: Path, boxes: str = "annotations") -> dict[str, str]:
    return dict(images=_relative(folder, images), annotations=_relative(folder, annotations), boxes=boxes)


def _relative(folder: Path, path: Path) -> str:
    """Relative to the project where the data lie beside or below it, so that both can move together."""
    path = path.expanduser().resolve()
    if not path.exists():
        raise SagecacheError("no such file or folder", file=path)
    relative = os.path.relpath(path, folder)
    return str(path) if relative.count("..") > 3 else relative


def _data_page(splits: dict[str, dict[str, str]], dataset_info: str, data: UserData, template: Path) -> str:
    """template: the data.py whose networks and rule of evaluation are taken."""
    lines = ['"""Where the data of this project lie. Paths start at this folder."""', ""]
    lines += [
        'cache_root = "cache"',
        'work_root = "work_dirs"',
        f"dataset_info = {_quoted(dataset_info)}",
        "",
    ]
    if data.val is None:
        lines.append("# val is the labeled split: give --val for an honest figure.")
    lines.append("splits = dict(")
    for name, split in splits.items():
        options = ", ".join(f"{key}={_quoted(value)}" for key, value in split.items())
        lines.append(f"    {name}=dict({options}),")
    lines += [")", "", "# Frozen networks, and where their weights lie: docs/real-data.md names others."]
    lines += _assignments(template, NETWORKS)
    rule = read_page(template)["evaluation"]
    stated = all(_states_areas(path) for path in (data.val or data.labeled, data.test) if path is not None)
    rule["area"] = "annotation" if stated else "bbox53"
    lines += [
        "",
        "# area: 'annotation' as in COCO's AP, 'bbox53' (.53 w h) where the files state none",
        f"evaluation = dict({', '.join(f'{key}={json.dumps(value)}' for key, value in rule.items())})",
        "",
    ]
    return "\n".join(lines)


def _assignments(page: Path, names: Iterable[str]) -> list[str]:
    """The lines of a page that give these names their values."""
    text = page.read_text()
    found = {
        node.targets[0].id: ast.get_source_segment(text, node)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return [found[name] for name in names]


def _states_areas(annotations: Path) -> bool:
    """Whether every labeled person of a file has an area of its own."""
    persons = [one for one in load_coco(annotations)["annotations"] if labeled_keypoints(one)]
    return all((one.get("area") or 0) > 0 for one in persons)


def _quoted(text: str) -> str:
    """A Python string literal in double quotes, whatever the path holds."""
    return json.dumps(text, ensure_ascii=False)
