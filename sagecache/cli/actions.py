"""What commands do, callable from code: render, detect, cache, count, train.

Each first makes sure of what it needs, and making that may be another of them: training stage 1 in the demo
trains stage 0. Hence one file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sagecache.cli.output import note, progress
from sagecache.errors import SagecacheError, counted, nearest, recipe_is

if TYPE_CHECKING:
    from sagecache.precompute.jobs import RunOptions, StepReport
    from sagecache.project import Project, Recipe, Requirement
    from sagecache.teachers.base import TeacherSpec


def ensure(project: Project, requirements: Sequence[Requirement]) -> None:
    """Make what is missing (demo), or raise SagecacheError with the exact commands (any other project).

    Under torchrun nothing is made either: one process would work while the others time out.
    """
    together = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if together or not project.embedded:
        missing = [need for need in requirements if not need.present()]
        if missing:
            raise SagecacheError(
                "missing: " + ", ".join(f"{need.kind} of {need.what}" for need in missing),
                file=project.folder,
                fix="Run: " + " && ".join(dict.fromkeys(need.command for need in missing)),
            )
        return
    for need in requirements:
        if not need.present():
            note(f"{need.kind} '{need.what}' is not there yet: {need.command}")
            make(project, need)


def make(project: Project, need: Requirement) -> None:
    makers = {
        "split": lambda: synth(project, need.what),
        "boxes": lambda: detect(project, need.what),
        "geo": lambda: geo(project, need.what),
        "stats": lambda: stats(project),
        "recipe": lambda: train(project, need.what, resume=can_go_on(project, need.what)),
    }
    makers[need.kind]()


def synth(project: Project, name: str, workers: int | None = None) -> None:
    """Render one split, or check that what is there is what the page asks for; same for any workers."""
    from sagecache.synth.looks import LOOKS
    from sagecache.synth.write import write_split

    split = project.split(name)
    if split.render is None:
        raise SagecacheError(
            f"split '{name}' is your own data and its annotations are missing",
            file=project.path(split.annotations),
            fix="Correct the path in data.py.",
        )
    folder, render = project.path(split.annotations).parent, split.render
    if render.look not in LOOKS:
        raise SagecacheError(
            f"unknown look '{render.look}'", record=f"split {name}", fix=nearest(render.look, LOOKS)
        )
    there = project.path(split.annotations).is_file()
    with progress(f"render {name}") as report:
        write_split(
            folder,
            LOOKS[render.look],
            render.count,
            render.seed,
            workers=workers or os.cpu_count() or 1,
            progress=report,
            size=render.size,
            geometry=render.geometry,
        )
    if there:
        note(f"{name}: already at {folder}")


def detect(project: Project, split: str, options: RunOptions | None = None) -> StepReport:
    """Run the project's detector over a split; resumes."""
    from sagecache.cli.jobs import detect_job
    from sagecache.precompute.jobs import RunOptions
    from sagecache.precompute.runner import run_detect
    from sagecache.teachers.registry import build_detector

    ensure(project, project.split_requirements(split)[:1])
    with progress(f"detect {split}") as report:
        result = run_detect(
            detect_job(project, split), build_detector(project.data.detector), options or RunOptions(), report
        )
    _say(result)
    return result


def geo(
    project: Project, split: str, options: RunOptions | None = None, boxes: Path | None = None
) -> StepReport:
    """Run the project's geometry teacher over a split; resumes. boxes: a trial's, see ``geo_job``."""
    from sagecache.cli.jobs import geo_job
    from sagecache.precompute.jobs import RunOptions
    from sagecache.precompute.runner import run_geo
    from sagecache.teachers.registry import build_teacher

    ensure(project, project.split_requirements(split)[: 1 if boxes else None])
    with progress(f"geo {split}") as report:
        result = run_geo(
            geo_job(project, split, boxes),
            build_teacher(project.data.teacher),
            options or RunOptions(),
            report,
        )
    _say(result)
    return result


def import_maps(
    project: Project,
    split: str,
    folders: Mapping[str, Path],
    *,
    map_size: tuple[int, int] | None = None,
    depth_kind: str = "affine",
    unit: str | None = None,
    towards: bool = False,
    normal_axes: str = "opengl",
    workers: int | None = None,
    **options,
) -> StepReport:
    """Fill a split's target store from maps of whole images; see ``ImportedMaps`` for folders and axes.

    map_size: (width, height) of the targets, None for that of data.py's teacher. options: limit, force,
    strict, as ``RunOptions``. Resumes; tests the checksums of what is there.
    """
    from sagecache.cli.jobs import geo_job
    from sagecache.precompute.imported import ImportedMaps
    from sagecache.precompute.jobs import RunOptions
    from sagecache.precompute.runner import run_geo

    ensure(project, project.split_requirements(split))
    job = geo_job(project, split)
    job = replace(job, attributes={**job.attributes, "command": f"sagecache cache import --split {split}"})
    images = project.path(project.split(split).images), [one.path for one in job.instances]
    unit = unit or ("m" if depth_kind == "metric" else "relative")
    spec = _imported_spec(project, folders, map_size, depth_kind, unit)
    maps = ImportedMaps(folders, images, spec, normal_axes, towards)
    own = {} if workers is None else {"workers": workers}
    with progress(f"import {split}") as report:
        result = run_geo(job, maps, RunOptions(verify=True, **own, **options), report)
    result = replace(result, step="import")
    _say(result)
    return result


def _imported_spec(
    project: Project,
    folders: Mapping[str, Path],
    map_size: tuple[int, int] | None,
    depth_kind: str,
    unit: str,
) -> TeacherSpec:
    """Targets as data.py's teacher would cut them, or of maps that are their own crops."""
    from sagecache.teachers.base import TeacherSpec
    from sagecache.teachers.registry import build_teacher

    sizes = map_size, map_size
    if map_size is None:
        try:
            like = build_teacher(project.data.teacher).spec
        except SagecacheError as error:
            message = f"the size of the targets is that of data.py's teacher, and {error.message}"
            raise SagecacheError(message, file=error.file, fix="Give --map-size W H.") from error
        sizes = like.input_size, like.map_size
    return TeacherSpec(
        "imported",
        *sizes,
        outputs=tuple(name for name in ("depth", "normal", "mask") if name in folders or name == "mask"),
        depth_kind=depth_kind,
        unit=unit,
        mask_from="network" if "mask" in folders else "everything",
    )


def stats(project: Project, options: RunOptions | None = None) -> StepReport:
    """Write skeleton_stats.json of data.py's stats_splits, or check that it is of today's labels."""
    from sagecache.cli.jobs import stats_job
    from sagecache.precompute.jobs import RunOptions
    from sagecache.precompute.runner import run_stats

    ensure(project, [project.split_requirements(name)[0] for name in project.data.stats_splits])
    result = run_stats(stats_job(project), options or RunOptions())
    if result.computed:
        _say(result)
    return result


def train(project: Project, name: str, overrides: dict | None = None, **options) -> Path:
    """Make sure of what the recipe needs, train it, say where the result lies. Returns the result's path."""
    from sagecache.cli.jobs import check_recipe

    overrides = dict(overrides or {})
    if options.get("seed") is not None:
        overrides["seed"] = options["seed"]
    recipe, _ = project.recipe(name, overrides)
    with recipe_is(project.recipe_page(name)):
        check_recipe(recipe, project.skeleton)
    ensure(project, project.requirements(recipe))
    if recipe.kind == "prior":
        result = _fit_prior(project, recipe, **options)
    else:
        from sagecache.cli.jobs import require_fresh

        require_fresh(project, recipe)
        from sagecache.mm import run

        if int(os.environ.get("RANK", 0)) == 0:
            note(f"{name}: {recipe.summary}")
        with progress(f"train {name}") as report:
            result = run.train(project, name, run.TrainOptions(overrides=overrides, **options), report)
    if int(os.environ.get("RANK", 0)) == 0:
        note(f"{name}: {result}")
    return result


def can_go_on(project: Project, name: str) -> bool:
    """Whether a run of this recipe was cut off; one of another recipe (a former page) is left alone."""
    from sagecache.project.runs import changed_since_start, finished_run

    recipe, model = project.recipe(name)
    if recipe.kind == "prior" or finished_run(project.work_dir(name)):
        return False
    return not changed_since_start(project.work_dir(name), recipe, model)


def _fit_prior(project: Project, recipe: Recipe, **options) -> Path:
    """A fit of seconds, made anew each time. Raises SagecacheError for options of long trainings."""
    from sagecache.cli.jobs import prior_instances
    from sagecache.priors.diffusion_fit import fit_from_instances

    meant = [f"--{key.replace('_', '-')}" for key, value in options.items() if value and key != "seed"]
    if meant:
        raise SagecacheError(
            f"fitting the prior knows no {', '.join(meant)}",
            fix="Its length is prior.steps; its place is the project's cache.",
        )
    with progress("train ddp-prior") as report:
        return fit_from_instances(
            prior_instances(project, recipe),
            project.skeleton,
            project.prior_file,
            recipe.prior,
            recipe.seed,
            report,
        )


def _say(report: StepReport) -> None:
    size, speed = f"{report.bytes / 1e6:.1f} MB", f"{report.rate:.0f}/s" if report.computed else "all there"
    total = str(report.total)
    if report.persons is not None:
        total = f"{counted(report.total, 'image')}, {counted(report.persons, 'person')}"
    note(f"{report.step}: {total} in {report.path}, {size}, {report.computed} computed ({speed})")
    if report.replaced:
        note(f"the former result is kept at {report.replaced}")
