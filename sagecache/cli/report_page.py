"""From a run, its log and its pseudo-labels to a `Page`: what ``sagecache report`` tells, in which words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sagecache import __version__
from sagecache.data.coco import read_image
from sagecache.data.views import warp_image
from sagecache.errors import counted
from sagecache.geometry.affine import apply_affine, crop_affine
from sagecache.mm.gallery import Gallery, Judged, Picked, views_of
from sagecache.project import Project, Recipe
from sagecache.project.run_log import RunLog
from sagecache.project.trained import TrainedRun
from sagecache.skeleton import Skeleton
from sagecache.visualization.curves import charts_of, last_values
from sagecache.visualization.overlays import FATES, Overlay, View, fate_style, joint_words, overlay
from sagecache.visualization.page import (
    Bar,
    Card,
    Column,
    Fact,
    FateRow,
    Page,
    Section,
    Table,
    percent,
)

VALIDATED = {"keypoints/PCK@0.05": "PCK@0.05", "keypoints/PCK@0.1": "PCK@0.1", "keypoints/AP": "AP"}
TEACHERS = {
    "single": "one, on the weak view",
    "single_two_view": "one, on the weak and the appearance view",
    "dual": "two, one for each view",
}
# sections of a recipe's ``semi`` that hold options, in the order in which they act
FILTERS = {
    "fusion": "fusion of views",
    "pseudo_labels": "keypoint filter",
    "instances": "instance gate",
    "swaps": "swap check",
    "gate": "hybrid gate",
    "mixing": "mixing",
    "style": "style of labeled ones",
}
SHOWN = 6  # persons of each group
RIGHT = 0.05  # of the box's diagonal: as PCK@0.05 counts
CROP_HEIGHT = 320
CROP_ROOM = 1.15  # around what the views see
# logged joint by joint: prefix, title, what it is
LOGGED = (
    ("joints/kept/", "kept, training", "share learned from, as last logged in training"),
    ("joints/confidence/", "confidence, training", "mean, as last logged in training"),
    ("joints/threshold/", "threshold", "of the confidence, as last logged in training"),
    ("probe/precision/", "right, probe", "of kept joints of labeled persons, treated as unlabeled ones"),
    ("probe/kept/", "kept, probe", "of labeled persons, treated as unlabeled ones"),
)


def page_of(project: Project, run: TrainedRun, log: RunLog, gallery: Gallery | None) -> Page:
    """gallery: None for a run without pseudo-labels to show."""
    recipe = run.recipe
    weights = {name: float(options.get("weight", 1.0)) for name, options in recipe.terms.items()}
    ramp_end = recipe.semi.ramp_up * recipe.accumulation
    fates = {name: style.words for name, style in FATES.items()}
    charts, more = charts_of(log.curves, weights, ramp_end, fates)
    judged = [] if gallery is None else gallery.judged
    started = "" if log.started is None else f"{log.started:%Y-%m-%d %H:%M}, "
    return Page(
        title=run.name,
        subtitle=f"{started}{run.work_dir}",
        command=run.command,
        figures=_figures(run, log),
        notes=_notes(run, log),
        details=_details(run, log),
        terms=[(name, f"{weights[name]:g}", _options(options)) for name, options in recipe.terms.items()],
        charts=charts,
        more_charts=more,
        joints=_joints(project.skeleton, log, judged),
        joints_text=_joints_text(gallery),
        gallery_text="" if gallery is None else _gallery_text(gallery, recipe),
        fates=_fates(judged),
        sections=[] if gallery is None else _sections(project.skeleton, run, gallery),
        footer=f"sagecache {__version__}",
    )


def steps_of(run: TrainedRun, log: RunLog) -> int | None:
    """Iterations that were trained, as far as is known."""
    logged = [int(curve.steps[-1]) for curve in log.curves.values()]
    return run.iterations or max(logged, default=None) or _checkpoint_step(run)


def figures(run: TrainedRun, log: RunLog) -> dict[str, float | None]:
    """Validation of the checkpoint that stands for the run; None where none was logged at its step."""
    step = _checkpoint_step(run)
    found: dict[str, float | None] = {}
    for key, name in VALIDATED.items():
        curve = log.curves.get(key)
        at = [] if curve is None else curve.values[curve.steps == step]
        found[name] = float(at[-1]) if len(at) and math.isfinite(at[-1]) else None
    return found


def _checkpoint_step(run: TrainedRun) -> int | None:
    number = re.search(r"iter_(\d+)$", "" if run.checkpoint is None else run.checkpoint.stem)
    return int(number[1]) if number else None


# --- the run --------------------------------------------------------------------------------------


def _figures(run: TrainedRun, log: RunLog) -> list[Fact]:
    step, where = _checkpoint_step(run), run.recipe.data.val or "val"
    facts = [
        Fact(name, f"{100 * value:.1f}", f"{where}, step {step}")
        for name, value in figures(run, log).items()
        if value is not None
    ]
    planned, done = run.recipe.train_cfg, steps_of(run, log)
    of = f"of {planned.max_iters}" if planned is not None else ""
    facts.append(Fact("steps", "–" if done is None else str(done), of))
    if (time := log.curves.get("time")) is not None:
        facts.append(Fact("seconds a step", f"{np.nanmedian(time.values):.2f}", "median of the log"))
    return facts


def _notes(run: TrainedRun, log: RunLog) -> list[str]:
    notes = []
    if run.doubt:
        notes.append(f"The run was {run.doubt}: what is said of its recipe here is the page of today.")
    if run.iterations is None:
        notes.append("The run did not end by itself: it was cut off, or it still goes on.")
    if run.checkpoint is None:
        notes.append("It has no checkpoint yet, so there are no pseudo-labels to show.")
    if not log.curves:
        notes.append("It left no scalars (vis_data/scalars.json), so there are no curves.")
    return notes


def _details(run: TrainedRun, log: RunLog) -> list[Fact]:
    recipe = run.recipe
    data, batch, optimizer = recipe.data, recipe.batch, recipe.optim_wrapper.get("optimizer", {})
    labeled = f"{batch.labeled} a step, from {', '.join(data.labeled)}" if batch.labeled else "none"
    views = counted(recipe.views.num_strong, "strong view")
    unlabeled = f"{batch.unlabeled} a step, from {data.unlabeled}, {views} each"
    facts = [
        Fact("recipe", run.name),
        Fact("begun", "–" if log.started is None else f"{log.started:%Y-%m-%d %H:%M:%S}"),
        Fact("started from", recipe.load_from or "nothing: random weights"),
        Fact("best checkpoint", "–" if run.checkpoint is None else run.checkpoint.name),
        Fact("seed", str(recipe.seed)),
        Fact("labeled images", labeled),
        Fact("unlabeled images", unlabeled if recipe.uses_unlabeled else "none: it learns from labels alone"),
        Fact("EMA decay", f"{recipe.ema_decay:g}"),
        Fact("optimiser", " ".join([str(optimizer.get("type", "–")), _options(optimizer, ("type",))])),
    ]
    if recipe.uses_unlabeled:
        semi = recipe.semi
        facts += [
            Fact("teacher", TEACHERS[semi.teacher.mode]),
            Fact("ramp-up", f"{semi.ramp_up} optimiser steps" if semi.ramp_up else "none"),
            Fact("coupling", f"{semi.coupling:g}" if semi.coupling else "none"),
            Fact("refresh", f"after {counted(semi.refresh, 'epoch')}" if semi.refresh else "in every step"),
        ]
        stated = [(words, _options(getattr(semi, name))) for name, words in FILTERS.items()]
        facts += [Fact(words, options) for words, options in stated if options]
    return facts


def _options(options: Mapping[str, Any], without: Sequence[str] = ("weight",)) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items() if key not in without)


# --- joints ---------------------------------------------------------------------------------------


def _joints(skeleton: Skeleton, log: RunLog, judged: Sequence[Judged]) -> Table | None:
    columns = _judged_columns(judged) if judged else []
    for prefix, title, hint in LOGGED:
        columns.append(Column(title, hint, last_values(log.curves, prefix, skeleton.names)))
    columns = [one for one in columns if any(value is not None for value in one.values)]
    return Table("joint", [joint_words(name) for name in skeleton.names], columns) if columns else None


def _judged_columns(judged: Sequence[Judged]) -> list[Column]:
    learned = np.array([one.learned for one in judged])
    right, known = _right(judged)
    confidence = np.array([one.confidence for one in judged])
    near = "within 5 % of the box's diagonal of the true joint"
    return [
        Column("kept", "share of these persons with the joint learned from", learned.mean(0).tolist()),
        Column("confidence", "mean over these persons", confidence.mean(0).tolist()),
        Column("right, kept", f"of kept joints {near}", _share(right, learned & known)),
        Column("right, dropped", f"of dropped joints {near}", _share(right, ~learned & known)),
    ]


def _right(judged: Sequence[Judged]) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) bool: lies within RIGHT of the truth; the truth is known."""
    errors = np.array([one.errors for one in judged])
    return errors <= RIGHT, np.isfinite(errors)


def _share(right: np.ndarray, of: np.ndarray) -> list[float | None]:
    """By joint; None where there is nothing to take a share of."""
    pairs = zip((right & of).sum(0).tolist(), of.sum(0).tolist(), strict=True)
    return [hits / count if count else None for hits, count in pairs]


def _joints_text(gallery: Gallery | None) -> str:
    if gallery is None or not gallery.judged:
        return "As last logged in training."
    text = f"Measured now on {len(gallery.judged)} unlabeled persons with the checkpoint's EMA teacher"
    if gallery.stored is not None:
        text = f"Of {len(gallery.judged)} unlabeled persons, as stored at iteration {gallery.stored}"
    return text + "; columns of training and probe as last logged. A click on a name sorts."


def _fates(judged: Sequence[Judged]) -> list[FateRow]:
    if not judged:
        return []
    fates = np.array([one.fates for one in judged])
    right, known = _right(judged)
    order = [*FATES, *sorted(set(fates.ravel()) - FATES.keys())]
    rows = []
    for name in order:
        there = fates == name
        if there.any():
            measured = int((there & known).sum())
            hits = int((there & right & known).sum()) / measured if measured else None
            rows.append(FateRow(fate_style(name), int(there.sum()), float(there.mean()), hits))
    return rows


# --- pictures -------------------------------------------------------------------------------------


def _gallery_text(gallery: Gallery, recipe: Recipe) -> str:
    split = recipe.data.unlabeled
    if not gallery.judged:
        return f"The split '{split}' has no person to look at."
    text = f"{len(gallery.judged)} of the {gallery.total} persons of '{split}', evenly over the split, "
    if gallery.stored is None:
        text += "as the checkpoint's EMA teacher and the recipe's filters see them. "
        if recipe.semi.refresh:
            text += (
                "The run learned from labels of a refresh, which it did not keep of them: here are others. "
            )
    else:
        text += f"with the labels of the refresh at iteration {gallery.stored}, which the checkpoint learned "
        text += "from last; the views are drawn anew. "
    if any(np.isfinite(one.errors).any() for one in gallery.judged):
        text += "Their true joints are known here: they measure errors, and no training saw them."
    return (
        text + " On pictures: orange is the person's own left side, blue the right one; filled signs are "
        "learned from, open ones dropped; white crosses are true joints."
    )


def _sections(skeleton: Skeleton, run: TrainedRun, gallery: Gallery) -> list[Section]:
    picked = Picked(gallery.judged, SHOWN)
    scale = (
        "mean error of the joints learned from" if picked.by_error else "plausibility times mean confidence"
    )
    groups = (
        ("Worst", f"Learned from, and last by {scale}.", picked.worst),
        ("Best", f"First by {scale}.", picked.best),
        ("Silent", "Persons from whom nothing, or next to nothing, is learned.", picked.silent),
    )
    return [
        Section(title, text, [_card(skeleton, run, gallery, one) for one in judged])
        for title, text, judged in groups
        if judged
    ]


def _card(skeleton: Skeleton, run: TrainedRun, gallery: Gallery, one: Judged) -> Card:
    styles = [fate_style(name) for name in one.fates]
    names = [joint_words(name) for name in skeleton.names]
    errors = [float(error) if math.isfinite(error) else None for error in one.errors]
    facts = [
        Fact("plausibility", f"{one.plausibility:.2f}", "KPS: confidence, limb lengths and angles"),
        Fact("confidence", f"{one.confidence.mean():.2f}", "mean over all joints"),
        Fact("learned from", f"{int(one.learned.sum())} of {len(names)}"),
        Fact("teacher", {"A": "A, EMA", "B": "B, prior"}.get(one.teacher, one.teacher)),
    ]
    if math.isfinite(one.error):
        facts.append(Fact("mean error", percent(one.error, 1), "of the box's diagonal, joints learned from"))
    elif any(np.isfinite(other.errors).any() for other in gallery.judged):
        facts.append(Fact("truth", "no annotated person in this box"))
    counts = [(fate_style(fate), number) for fate, number in Counter(one.fates).most_common()]
    bars = [Bar(*row) for row in zip(names, styles, one.confidence.tolist(), errors, strict=True)]
    title = f"image {one.instance.image_id}, person {one.instance.instance}"
    return Card(title, facts, _overlays(skeleton, run, gallery, one), bars, counts)


def _overlays(skeleton: Skeleton, run: TrainedRun, gallery: Gallery, one: Judged) -> list[Overlay]:
    """The person in the source image, then every view with what is said of it there."""
    texts = []
    for fate, confidence, error in zip(one.fates, one.confidence, one.errors, strict=True):
        told = f"{fate_style(fate).words}, confidence {confidence:.2f}"
        texts.append(told + (f", error {percent(error, 1)}" if math.isfinite(error) else ""))
    everything = np.ones(len(texts), dtype=bool)
    views = [_source_view(run, gallery, one, everything)]
    for seen in views_of(gallery.views, one):
        joints = seen.follow(one.keypoints if seen.learned is None else one.target)
        title, marked = f"{seen.title}, teacher", everything
        if seen.learned is not None:
            title, marked = f"{seen.title}, student", seen.learned
        views.append(View(title, seen.image, joints, marked))
    return [overlay(view, skeleton, one.fates, texts) for view in views]


def _source_view(run: TrainedRun, gallery: Gallery, one: Judged, marked: np.ndarray) -> View:
    width, height = gallery.views.size
    size = (max(2, round(CROP_HEIGHT * width / height)), CROP_HEIGHT)
    shown_from_image = crop_affine(one.instance.bbox, size, run.recipe.views.padding * CROP_ROOM)
    image = warp_image(read_image(one.instance.path), shown_from_image, size)
    truth = None
    if one.instance.keypoints is not None:
        known = one.instance.keypoints[:, 2:] > 0
        truth = np.where(
            known, apply_affine(shown_from_image, one.instance.keypoints[:, :2].astype(float)), np.nan
        )
    title = "person and target"
    return View(title, image, apply_affine(shown_from_image, one.target), marked, truth)
