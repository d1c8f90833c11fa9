"""From a project's pages to the plain values that precompute takes, and whether a store still fits them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from sagecache.precompute.plan import CropRule
    from sagecache.precompute.runner import DetectJob, GeoJob, StatsJob
    from sagecache.project import Project, Recipe


def crop_rule(project: Project) -> CropRule:
    from sagecache.precompute.plan import CropRule

    return CropRule(padding=project.data.crop.padding, border=project.data.crop.border)


def box_source(project: Project, split: str) -> dict[str, Any]:
    """What a store's fingerprint says of its boxes: content and thresholds, never a path."""
    from sagecache.store.fingerprint import file_sha256

    settings = project.split(split)
    if settings.boxes == "annotations":
        return dict(kind="annotations", sha256=file_sha256(project.path(settings.annotations)))
    return dict(
        kind="detections",
        sha256=file_sha256(project.detections(split)),
        min_score=settings.min_score,
        max_per_image=settings.max_per_image,
    )


def geo_job(project: Project, split: str) -> GeoJob:
    from sagecache.precompute.runner import GeoJob

    return GeoJob(
        root=project.geometry_store(split),
        instances=project.instances(split),
        crop=crop_rule(project),
        box_source=box_source(project, split),
        attributes=dict(split=split, command=f"sagecache precompute geo --split {split}"),
        shard_size=project.data.shard_size,
    )


def detect_job(project: Project, split: str) -> DetectJob:
    from sagecache.data.coco import image_path, load_coco
    from sagecache.precompute.runner import DetectJob

    settings = project.split(split)
    records = load_coco(project.path(settings.annotations))["images"]
    root = project.path(settings.images)
    images = sorted((record["id"], image_path(root, record)) for record in records)
    return DetectJob(result=project.cache_root / split / "detections.json", images=images)


def stats_job(project: Project) -> StatsJob:
    from sagecache.precompute.runner import StatsJob

    return StatsJob(project.stats_file, project.instances("labeled", "annotations"), project.skeleton)


def require_fresh(project: Project, recipe: Recipe) -> None:
    """Refuse statistics of other labels and stores of other settings than today's, naming what differs."""
    if not recipe.uses_unlabeled:
        return
    from sagecache.precompute.runner import run_stats
    from sagecache.teachers.registry import build_teacher

    run_stats(stats_job(project))
    if not recipe.uses_geometry:
        return

    teacher = build_teacher(project.data.teacher)
    for split in [*recipe.data.labeled, recipe.data.unlabeled]:
        differences = stale_parts(project, split, teacher)
        if differences:
            again = project.command(f"sagecache precompute geo --split {split} --force")
            raise SagecacheError(
                f"the store was made with other settings: {differences}",
                file=project.geometry_store(split),
                fix=f"Run: {again}, or set data.py back.",
            )


def stale_parts(project: Project, split: str, teacher: Any) -> str:
    """'' for a store that fits the pages, else the parts of the fingerprint that differ, old -> new."""
    from sagecache.precompute.plan import geo_fingerprint
    from sagecache.store import StoreReader
    from sagecache.store.fingerprint import describe, diff

    expected = geo_fingerprint(
        teacher.spec, teacher.fingerprint(), crop_rule(project), box_source(project, split)
    )
    differences = diff(StoreReader(project.geometry_store(split), partial=True).fingerprint, expected)
    return describe(differences) if differences else ""
