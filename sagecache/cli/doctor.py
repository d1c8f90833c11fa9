"""``sagecache doctor``: what this machine and project offer, and what training still lacks.

``diagnose`` looks and never raises: whatever is broken becomes a finding that says how to mend it.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sagecache import __version__
from sagecache.cli.context import json_option, open_project
from sagecache.cli.jobs import check_recipe, require_fresh_stats
from sagecache.cli.output import emit_json, emit_table
from sagecache.errors import SagecacheError

if TYPE_CHECKING:
    from packaging.markers import Marker
    from packaging.requirements import Requirement

    from sagecache.project import Project, Recipe
    from sagecache.project import Requirement as Need

OK, NOTE, ERROR = "ok", "note", "error"
GIB = 2**30
TIGHT, FULL = 5 * GIB, GIB // 4  # free bytes: a note below, training could not even write a checkpoint
SAME_FOLDER = {"opencv-python": ("opencv-python", "opencv-python-headless", "opencv-contrib-python")}
EXTRAS = (
    "demo",
    "huggingface",
    "onnx",
    "tensorboard",
)  # those that a command may want; the others are for building sagecache


@dataclass(frozen=True)
class Finding:
    """One line of the report. state: 'ok', 'note' (works, or is made when needed), 'error' (no training)."""

    section: str
    name: str
    value: str
    state: str = OK
    fix: str = ""


def _refuse_nan(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """No number is below or above nan, so that a range of click's lets it pass."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no size.", context, option)
    return value


@click.command("doctor", short_help="Is this machine ready to train?")
@click.option(
    "--project", "folder", type=click.Path(file_okay=False), help="Folder of the project to look at."
)
@click.option("--recipe", help="Also plan this recipe's memory on a GPU: weights, moments, activations.")
@click.option(
    "--gpu",
    type=click.FloatRange(0, 1e6, min_open=True),
    callback=_refuse_nan,
    help="GiB of the GPU to plan for. Default: the one that is here, else 24.",
)
@json_option
@click.pass_context
def doctor_command(
    context: click.Context, folder: str | None, recipe: str | None, gpu: float | None, as_json: bool
) -> None:
    """Versions, shims, devices, disk, and what the project lacks; exit 1 where training could not work."""
    if gpu is not None and recipe is None:
        raise click.UsageError("--gpu goes with --recipe.")
    findings = diagnose(folder)
    if recipe is not None:
        findings += plan_memory(open_project(folder), recipe, gpu)
    healthy = all(finding.state != ERROR for finding in findings)
    if as_json:
        emit_json(dict(ok=healthy, findings=[asdict(finding) for finding in findings]))
    else:
        _print(findings)
    context.exit(0 if healthy else 1)


def diagnose(folder: str | None = None) -> list[Finding]:
    """Everything worth knowing before a training, in the order in which it can be mended."""
    findings = [_check_itself(), *check_packages(_declared()), *_check_shims(), *_check_devices()]
    try:
        project = open_project(folder)
    except SagecacheError as error:
        place = str(error.file or folder or "embedded")
        return [*findings, Finding("project", place, error.message, ERROR, error.fix or "")]
    except ImportError as error:
        return [
            *findings,
            Finding("project", folder or "embedded", str(error), ERROR, "Install what is missing."),
        ]
    roots = {"cache": project.cache_root, "work": project.work_root}
    findings += [check_disk(name, root) for name, root in roots.items()]
    return [*findings, *check_project(project)]


# -- packages ------------------------------------------------------------------------------------------


def _check_itself() -> Finding:
    if _version("sagecache") is None:
        fix = "pip install --no-deps --no-build-isolation -e ."
        return Finding(
            "packages", "sagecache", f"{__version__}, not installed: its needs are unchecked", NOTE, fix
        )
    return Finding("packages", "sagecache", __version__)


def _declared() -> list[str]:
    """Requirements of the installed sagecache, as its metadata says, and mmpose's pins."""
    try:
        from sagecache.mm.compat import MMPOSE_PINS as pins
    except ImportError:  # without torch; that is found below
        pins = ()
    try:
        return [*(metadata.requires("sagecache") or []), *pins]
    except metadata.PackageNotFoundError:
        return list(pins)


def check_packages(requirements: Iterable[str]) -> list[Finding]:
    """Compare PEP 508 requirements with what is installed; those of EXTRAS may be missing."""
    from packaging.requirements import Requirement

    version, old = ".".join(map(str, sys.version_info[:3])), sys.version_info < (3, 11)
    findings = {
        "python": Finding("packages", "python", version, *((ERROR, "Use Python 3.11.") if old else ()))
    }
    for requirement in map(Requirement, requirements):
        wanted, extra = _wanted(requirement.marker)
        if wanted and requirement.name not in findings:
            findings[requirement.name] = _check_package(requirement, extra)
    return list(findings.values())


def _wanted(marker: Marker | None) -> tuple[bool, str | None]:
    """Whether a requirement concerns this machine, and the extra that brings it (None: always)."""
    if marker is None or marker.evaluate({"extra": ""}):
        return True, None
    extra = next((name for name in EXTRAS if marker.evaluate({"extra": name})), None)
    return extra is not None, extra


def _check_package(requirement: Requirement, extra: str | None) -> Finding:
    name = requirement.name
    no_deps = "--no-deps " if name in ("mmpose", "xtcocotools") else ""  # pip can't resolve what they ask for
    install = f'pip install {no_deps}"{name}{requirement.specifier}"'
    for distribution in SAME_FOLDER.get(name, (name,)):
        version = _version(distribution)
        if version is None:
            continue
        if requirement.specifier.contains(version, prereleases=True):
            return Finding("packages", distribution, version)
        return Finding("packages", distribution, f"{version}, needs {requirement.specifier}", ERROR, install)
    if extra:
        return Finding("packages", name, f"not installed (extra '{extra}')", NOTE, install)
    return Finding("packages", name, "not installed", ERROR, install)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _check_shims() -> Iterator[Finding]:
    """mmpose is imported for this: the question is whether it can be."""
    try:
        from sagecache.mm.compat import shim_status

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shims = shim_status()
    except SagecacheError as error:
        yield Finding("shims", "mmpose", error.message, ERROR, error.fix or "")
        return
    except ImportError as error:
        yield Finding("shims", "mmpose", str(error), ERROR, "Install what is missing.")
        return
    for shim in shims:
        value = f"in use until {shim.until}: {shim.reason}" if shim.active else f"not needed: {shim.until}"
        yield Finding("shims", shim.name, value)


# -- machine -------------------------------------------------------------------------------------------


def _check_devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    try:
        import torch
    except ImportError as error:
        yield Finding("devices", "torch", str(error), ERROR, "pip install torch==2.13.0")
        return
    yield Finding(
        "devices", "cpu", f"{cores} cores, {torch.get_num_threads()} torch threads, {memory:.0f} GiB"
    )
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        value = f"{device.name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        yield Finding("devices", f"cuda:{index}", value)
    if not torch.cuda.device_count():
        yield Finding("devices", "cuda", "none; training runs on the CPU")


def check_disk(name: str, root: Path) -> Finding:
    """Free space where ``root`` is or will be made, and whether it can be written."""
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    value = f"{root} ({free / GIB:.1f} GiB free)"
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("disk", name, f"{value}, not writable", ERROR, f"Change {name}_root in data.py.")
    if free < TIGHT:
        fix = f"Free some, or change {name}_root in data.py."
        return Finding("disk", name, value, ERROR if free < FULL else NOTE, fix)
    return Finding("disk", name, value)


def plan_memory(project: Project, name: str, gpu: float | None) -> list[Finding]:
    """What one pass of a recipe takes on a GPU of so many GiB, by arithmetic. Raises SagecacheError."""
    import torch

    from sagecache.mm.plan import advice, memory_plan

    if gpu is None:
        gpu = torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else 24.0
    recipe, model = project.recipe(name)
    plan = memory_plan(recipe, model)
    section = f"memory of {name}"
    rows = [
        Finding(
            section, "parameters", f"{plan.parameters / 1e6:,.1f} million, {plan.trained / 1e6:,.1f} trained"
        )
    ]
    parts = {
        "student, gradients": plan.student,
        "optimiser": plan.optimiser,
        "EMA teachers": plan.teachers,
        "activations kept": plan.activations,
        "teachers' pass": plan.teacher_pass,
    }
    rows += [Finding(section, part, f"{size / GIB:.1f} GiB") for part, size in parts.items()]
    rows.append(Finding(section, "operations of a pass", f"{plan.flops / 1e12:,.3g} TFLOP"))
    told = advice(plan, recipe, model, gpu * GIB)
    fits = plan.total <= gpu * GIB
    return [*rows, Finding(section, "in all", f"{plan.total / GIB:.1f} GiB: {told}", OK if fits else NOTE)]


# -- project -------------------------------------------------------------------------------------------


def check_project(project: Project) -> Iterator[Finding]:
    """What the recipes need. Missing files of the user are errors; what a command makes is a note."""
    kind = "the embedded demo, which makes what it lacks" if project.embedded else "your project"
    yield Finding("project", str(project.folder), kind)
    seen: set[tuple[str, str]] = set()
    to_make: set[str] = set()
    for name in project.recipe_names():
        try:
            recipe, _ = project.recipe(name)
            check_recipe(recipe, project.skeleton)
            needs = project.requirements(recipe)
        except SagecacheError as error:
            yield Finding("project", name, str(error), ERROR, error.fix or "")
            continue
        except ImportError as error:  # told above, with its mend; the recipe itself may be sound
            yield Finding("project", name, f"can't be checked: {error}", ERROR, "Install what is missing.")
            continue
        yield from _check_start(project, recipe, name)
        to_make |= {need.kind for need in needs if not need.present()}
        for need in needs:
            if (need.kind, need.what) in seen:
                continue
            seen.add((need.kind, need.what))
            yield _check_need(project, need, name)
    yield from _check_networks(project, to_make)


def _check_start(project: Project, recipe: Recipe, name: str) -> Iterator[Finding]:
    """A checkpoint or a Hugging Face folder that load_from names."""
    start = recipe.load_from
    if start in (None, "demo") or start in project.recipe_names():
        return
    place = project.path(start)
    from sagecache.models.weight_files import holds_weights

    if not place.is_file() and not holds_weights(place):
        told = "is a folder without weights" if place.is_dir() else "is not there"
        yield Finding(
            "project", f"load_from of {name}", f"{place} {told}", ERROR, f"Correct it in {name}'s page."
        )


def _check_networks(project: Project, to_make: set[str]) -> Iterator[Finding]:
    """Weights and devices of the teacher and the detector, where they still have something to make."""
    for role, kind, config in (
        ("teacher", "geo", project.data.teacher),
        ("detector", "boxes", project.data.detector),
    ):
        files = [*(config.get("files") or {}).values(), *([config["path"]] if config.get("path") else [])]
        for file in files if kind in to_make else ():
            if not project.path(file).exists():
                told = f"{project.path(file)} is not there"
                yield Finding("project", role, told, ERROR, "Correct its path in data.py.")
        if kind in to_make and "device" in config:
            from sagecache.teachers.base import usable_device

            try:
                usable_device(str(config["device"]))
            except SagecacheError as error:
                yield Finding("project", role, error.message, ERROR, error.fix or "")


def _check_need(project: Project, need: Need, recipe: str) -> Finding:
    label = f"{need.kind} {need.what}"
    if need.present():
        told, fix = _mended_by(project, need)
        return Finding("project", label, told, ERROR, fix) if told else Finding("project", label, "there")
    if need.kind == "split" and project.split(need.what).render is None:
        return Finding("project", label, f"missing, for {recipe}", ERROR, need.command)
    if need.kind == "boxes" and project.split(need.what).boxes != "detect":
        told = f"missing, for {recipe}: {project.detections(need.what)}"
        return Finding("project", label, told, ERROR, f"Correct boxes of split '{need.what}' in data.py.")
    if need.kind == "split" and find_spec("embreex") is None:
        return Finding("project", label, "can't be rendered without embreex", ERROR, "pip install embreex")
    return Finding("project", label, f"not made yet, for {recipe}", NOTE, need.command)


def _mended_by(project: Project, need: Need) -> tuple[str, str]:
    """Why what is there is of no use, and its mend; '' twice where it is sound as far as a look tells."""
    if need.kind == "split":
        split = project.split(need.what)
        if not project.path(split.images).is_dir():
            fix = need.command if split.render else f"Correct images of split '{need.what}' in data.py."
            return f"its image folder is not there: {project.path(split.images)}", fix
    if need.kind == "stats":
        try:
            require_fresh_stats(project)
        except SagecacheError as error:
            place = f"{error.file}: " if error.file else ""
            return place + error.message, project.command(error.fix or "")
    return "", ""


# -- printing ------------------------------------------------------------------------------------------


def _print(findings: list[Finding]) -> None:
    if sys.stdout.isatty():
        for section in dict.fromkeys(finding.section for finding in findings):
            rows = [(f.state, f.name, f.value, f.fix) for f in findings if f.section == section]
            emit_table(section, ("", "", "", "mend by"), rows)
    else:
        for f in findings:
            click.echo(f"{f.state:5s} {f.section:8s} {f.name}: {f.value}{f'  [{f.fix}]' if f.fix else ''}")
    errors = sum(finding.state == ERROR for finding in findings)
    click.echo(f"training could not work: {errors} errors" if errors else "ready to train")
