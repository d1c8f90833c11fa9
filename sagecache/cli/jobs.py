"""From a project's pages to the plain values that precompute takes, and whether a store still fits them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from sagecache.precompute.jobs import DetectJob, GeoJob, StatsJob
    from sagecache.precompute.plan import CropRule
    from sagecache.project import Project, Recipe
    from sagecache.skeleton import Skeleton
    from sagecache.structures import Instance


logger = logging.getLogger(__name__)


def crop_rule(project: Project) -> CropRule:
    from sagecache.precompute.plan import CropRule

    return CropRule(padding=project.data.crop.padding, border=project.data.crop.border)


def geo_job(project: Project, split: str, boxes: Path | None = None) -> GeoJob:
    """boxes: a detection file of a trial, whose targets go into a store named after it."""
    from sagecache.precompute.jobs import GeoJob

    if boxes is None:
        require_fresh_boxes(project, split)
    root = project.geometry_store(split)
    instances = project.instances(split, detections=boxes)
    if not instances:
        raise _nobody(project, split, boxes)
    return GeoJob(
        root=root if boxes is None else root.with_name(f"{root.name}-of-{boxes.stem}"),
        instances=instances,
        crop=crop_rule(project),
        attributes=dict(split=split, command=f"sagecache precompute geo --split {split}"),
        codec=project.data.codec,
        shard_size=project.data.shard_size,
    )


def _nobody(project: Project, split: str, boxes: Path | None) -> SagecacheError:
    """Why a split has no instance: its detections found nobody, or its annotations label nobody."""
    from sagecache.data.coco import load_coco, load_detections
    from sagecache.skeleton.category import unknown_categories

    settings, where = project.split(split), f"split {split}"
    if boxes is None and settings.boxes == "annotations":
        file = project.path(settings.annotations)
        strangers = unknown_categories(load_coco(file))
        told = f"holds no person with keypoints{': ' if strangers else ''}{strangers}"
        fix = f"Run: {project.command(f'sagecache data check --split {split}')}"
        return SagecacheError(told, file=file, record=where, fix=fix)

    file = boxes or project.detections(split)
    found = load_detections(file)
    persons = [one["score"] for one in found if one["category_id"] == 1]
    told = f"holds no person with score >= min_score {settings.min_score:g}"
    fix = "See data.py's detector and its own threshold, and the split's images"
    if persons and max(persons) >= settings.min_score:
        told += " whose box has an area"
        fix = f"Run: {project.command(f'sagecache data check --split {split}')}"
    elif persons:
        told += f" ({len(persons)} below it, the best {max(persons):.2g})"
        fix = "Lower the split's min_score in data.py"
    elif found:
        kinds = ", ".join(map(str, sorted({one["category_id"] for one in found})))
        told = f"holds no box of category_id 1 (person): its {len(found)} are of category_id {kinds}"
        fix = "Give boxes of persons category_id 1"
    return SagecacheError(told, file=file, record=where, fix=fix)


def detect_job(project: Project, split: str) -> DetectJob:
    from sagecache.data.coco import image_path, load_coco
    from sagecache.precompute.jobs import DetectJob

    settings = project.split(split)
    records = load_coco(project.path(settings.annotations))["images"]
    root = project.path(settings.images)
    images = sorted((record["id"], image_path(root, record)) for record in records)
    return DetectJob(result=project.split_folder(split) / "detections.json", images=images)


def stats_job(project: Project) -> StatsJob:
    from sagecache.precompute.jobs import StatsJob

    instances = [one for name in project.data.stats_splits for one in project.instances(name, "annotations")]
    return StatsJob(project.stats_file, instances, project.skeleton)


def prior_instances(project: Project, recipe: Recipe) -> list[Instance]:
    """The labeled persons that the diffusion prior is fitted on."""
    return [one for split in recipe.data.labeled for one in project.instances(split, "annotations")]


def check_recipe(recipe: Recipe, skeleton: Skeleton | None = None) -> None:
    """Names and types of what a recipe's sections say, before anything is made for it; and whether the
    project's skeleton has what they need, where it is given.
    """
    if recipe.kind == "prior":
        from sagecache.priors.diffusion_fit import fit_config

        fit_config(recipe.prior, recipe.seed)
    else:
        from sagecache.mm.terms import check_semi

        check_semi(recipe, skeleton)


def require_fresh(project: Project, recipe: Recipe) -> None:
    """Refuse what was made of other labels or with other settings, naming what differs.

    Labels of another skeleton, statistics and a prior of other labels, boxes of another detector, stores of
    other settings.
    """
    from sagecache.data.coco import load_coco
    from sagecache.skeleton.category import require_skeleton

    for split in dict.fromkeys([*recipe.data.labeled, recipe.data.val, recipe.probe]):
        if split is not None:
            file = project.path(project.split(split).annotations)
            require_skeleton(load_coco(file), project.skeleton, file)
    for split in _splits_read_by_box(recipe):
        require_fresh_boxes(project, split)
    if not recipe.uses_unlabeled:
        return

    require_fresh_stats(project)
    if recipe.uses_prior:
        _require_fresh_prior(project)
    if not recipe.geometry_splits:
        return

    teacher = teacher_of(project, recipe.geometry_splits)
    for split in recipe.geometry_splits:
        require_fresh_store(project, split, teacher)


def _splits_read_by_box(recipe: Recipe) -> list[str]:
    """Splits of a training whose own box source counts; labeled ones only where their stores are read."""
    names = [recipe.data.val]
    if recipe.uses_unlabeled:
        names += [recipe.data.unlabeled, *recipe.geometry_splits]
    return [name for name in dict.fromkeys(names) if name is not None]


def require_fresh_boxes(project: Project, split: str, kind: str | None = None) -> None:
    """Refuse detections of another detector, naming what differs; other boxes are no work of the detector's.

    kind: 'detections' for a reader of these whatever the split's own boxes are.
    """
    if differences := stale_boxes(project, split, kind):
        raise _stale(
            project, "boxes", differences, project.detections(split), f"precompute detect --split {split}"
        )


def stale_boxes(project: Project, split: str, kind: str | None = None) -> str:
    """'' for detections of today's detector and image list, else the parts that differ, old -> new.

    kind as for ``require_fresh_boxes``. Reads no image: that their bytes are the same as then is for
    ``precompute detect`` to find out.
    """
    from sagecache.data.coco import load_coco
    from sagecache.precompute.parts import made_from
    from sagecache.precompute.plan import CODE_FORMAT
    from sagecache.teachers.registry import build_detector

    settings, result = project.split(split), project.detections(split)
    made_here = settings.boxes == "detect" or (settings.boxes == "annotations" and kind == "detections")
    if not made_here or not result.is_file():
        return ""
    known = made_from(result)
    images = load_coco(project.path(settings.annotations))["images"]
    of_images = known["images"] if isinstance(known.get("images"), dict) else {}
    expected = known | dict(
        detector=build_detector(project.data.detector).fingerprint(),
        images=of_images | dict(count=len(images)),
        code_format=CODE_FORMAT["detect"],
    )
    return _described(known, expected)


def require_fresh_steps(project: Project, splits: Sequence[str]) -> None:
    """Refuse what a step of ``precompute all`` would refuse, before the first of them computes anything.

    Boxes and stores of these splits, and statistics, each where it is there. Reads no image.
    """
    from sagecache.store.layout import read_manifest
    from sagecache.teachers.registry import build_teacher

    for split in splits:
        require_fresh_boxes(project, split)
    manifests = {split: read_manifest(project.geometry_store(split)) for split in splits}
    begun = {split: known["identity"]["fingerprint"] for split, known in manifests.items() if known}
    teacher = build_teacher(project.data.teacher) if begun else None
    for split, fingerprint in begun.items():
        _require_own_start(project, split, fingerprint, teacher)
    if project.stats_file.is_file():
        require_fresh_stats(project)


def _require_own_start(project: Project, split: str, fingerprint: Mapping, teacher: Any) -> None:
    """Refuse a store that ``precompute geo`` could not go on with; one that is as good as empty it moves."""
    from sagecache.store import is_others_empty_start

    root, step = project.geometry_store(split), f"precompute geo --split {split}"
    if is_imported(fingerprint):
        again = project.command(f"sagecache {step} --force")
        raise SagecacheError(
            "the targets were imported, and 'precompute' would compute them",
            file=root,
            record=f"split {split}",
            fix=f"Name the other splits with --split; or run: {again}, which sets these aside.",
        )
    expected = _geo_fingerprint(project, teacher)
    differences = _described(fingerprint, expected)
    if differences and not is_others_empty_start(root, expected):
        raise _stale(project, "targets", differences, root, step)


def require_fresh_store(project: Project, split: str, teacher: Any) -> None:
    """Refuse a split's store of other settings, naming what differs."""
    if differences := stale_parts(project, split, teacher):
        step = f"precompute geo --split {split}"
        if is_imported(project.targets(split, partial=True).fingerprint):
            step = f"cache import --split {split} --depth … --normal …"
        raise _stale(project, "targets", differences, project.geometry_store(split), step)


def _stale(project: Project, what: str, differences: str, file: Path, step: str) -> SagecacheError:
    again = project.command(f"sagecache {step} --force")
    return SagecacheError(
        f"the {what} were made with other settings: {differences}",
        file=file,
        fix=f"Run: {again}, or set data.py back.",
    )


def require_fresh_stats(project: Project) -> None:
    """Refuse statistics of other labels, naming what differs; the file is there and is left as it is."""
    from sagecache.precompute.runner import run_stats

    job = stats_job(project)
    try:
        run_stats(job)
    except SagecacheError as error:
        again = project.command("sagecache precompute stats --force")
        raise SagecacheError(
            error.message, file=error.file, record=error.record, fix=f"Run: {again}"
        ) from error


def _require_fresh_prior(project: Project) -> None:
    from sagecache.priors.diffusion import DiffusionPrior
    from sagecache.priors.diffusion_fit import fit_config, labels_sha256

    prior = DiffusionPrior.load(project.prior_file, project.skeleton)
    recipe = project.recipe("ddp-prior")[0]
    instances = prior_instances(project, recipe)
    if prior.provenance.get("keypoints_sha256") != labels_sha256(instances, project.skeleton):
        raise SagecacheError(
            "the diffusion prior was fitted on other labels than today's",
            file=project.prior_file,
            fix="Run: " + project.command("sagecache train ddp-prior"),
        )
    today = asdict(fit_config(recipe.prior, recipe.seed))
    if prior.provenance.get("fit") != today:
        logger.warning(
            "the diffusion prior was fitted with other settings than the page's: %s", project.prior_file
        )


def teacher_of(project: Project, splits: Sequence[str]) -> Any:
    """The project's teacher, or None where all stores were imported: nobody needs its files then."""
    from sagecache.teachers.registry import build_teacher

    stores = (project.targets(split, partial=True) for split in splits)
    if all(is_imported(store.fingerprint) for store in stores):
        return None
    return build_teacher(project.data.teacher)


def is_imported(fingerprint: Mapping) -> bool:
    """Whether a store's targets were computed elsewhere."""
    from sagecache.precompute.imported import IMPORTED

    return fingerprint["teacher"].get("type") == IMPORTED


def stale_parts(project: Project, split: str, teacher: Any) -> str:
    """'' for a store that fits the pages, else the parts of the fingerprint that differ, old -> new."""
    return differing_parts(project, project.targets(split, partial=True).fingerprint, teacher)


def differing_parts(project: Project, fingerprint: Mapping, teacher: Any) -> str:
    """As ``stale_parts``, of any store's fingerprint.

    Of imported targets only what is the project's own can differ: the crop rule, whether they are exact, the
    code. What they are, data.py's teacher does not say.
    """
    from sagecache.precompute.plan import settings_fingerprint

    if is_imported(fingerprint):
        return _described(
            fingerprint, {**fingerprint, **settings_fingerprint(crop_rule(project), project.data.codec)}
        )
    return _described(fingerprint, _geo_fingerprint(project, teacher))


def _geo_fingerprint(project: Project, teacher: Any) -> dict[str, object]:
    from sagecache.precompute.plan import geo_fingerprint

    return geo_fingerprint(teacher.spec, teacher.fingerprint(), crop_rule(project), project.data.codec)


def _described(known: Mapping, expected: Mapping) -> str:
    from sagecache.store.fingerprint import describe, diff

    differences = diff(known, expected)
    return describe(differences) if differences else ""
