"""The evidence plots of an ablation: what its trainings logged, what its networks do on disturbed crops.

Which arms a plot shows stands under ``evidence`` of the ablation's page. A plot shows those that are trained,
where two are; arms, and plots without logs, that are left out are named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagecache.cli.ablate_disturbed import STRENGTHS, Runs, judge_all, was_disturbed
from sagecache.cli.ablate_runs import BOXES, Repetitions, Training, report_of, scored, state
from sagecache.cli.output import note
from sagecache.errors import SagecacheError, nearest
from sagecache.project.run_log import read_run_log

if TYPE_CHECKING:
    from sagecache.project import Project

LAST = 0.25  # share of a run that 'at its end' means


class NothingToShow(Exception):
    """Why a plot is left out."""


@dataclass(frozen=True)
class Evidence:
    """Trainings that stand, arm -> draw -> (project of the draw, training), and where figures go."""

    runs: Runs
    split: str
    folder: Path

    def per_seed(self, arms: Sequence[str], value: Callable[..., Any]) -> dict[str, np.ndarray]:
        """arm -> (S, N) of value(project, training)."""
        for arm in arms:
            if not self.runs.get(arm):
                raise NothingToShow(f"arm '{arm}' is not trained")
        return {
            arm: np.array([value(*self.runs[arm][draw]) for draw in sorted(self.runs[arm])], float)
            for arm in arms
        }


def standing_runs(projects: Mapping[int, Project], every: Mapping[tuple[str, int], Training]) -> Runs:
    runs: dict[str, dict[int, tuple[Project, Training]]] = {}
    for (arm, draw), training in every.items():
        if state(projects[draw], training) == "stands":
            runs.setdefault(arm, {})[draw] = (projects[draw], training)
    return runs


def draw_evidence(
    title: str,
    evidence: Evidence,
    wanted: Mapping[str, Sequence[str]],
    repetitions: Repetitions,
    processes: int | None,
) -> list[Path]:
    """Draw each plot that the page asks for; says what is left out and why. Returns the files."""
    wanted = {name: _trained(evidence, name, arms) for name, arms in wanted.items()}
    drawn = {name: arms for name, arms in wanted.items() if all(evidence.runs.get(arm) for arm in arms)}
    disturbed = [(arm, DISTURBED_BY[name]) for name in drawn if name in DISTURBED_BY for arm in drawn[name]]
    judge_all(title, repetitions, evidence.runs, disturbed, evidence.split, processes)
    files = []
    for name, arms in wanted.items():
        try:
            files += PLOTS[name](evidence, arms, evidence.folder / name)
        except NothingToShow as why:
            note(f"no plot '{name}': {why}")
    return files


def _trained(evidence: Evidence, name: str, arms: Sequence[str]) -> Sequence[str]:
    """The arms of a plot that can be shown; all of them where these compare nothing, which draws no plot."""
    there = [arm for arm in arms if evidence.runs.get(arm)]
    if len(there) < 2 or len(there) == len(arms):
        return arms
    note(f"plot '{name}' is without {', '.join(arm for arm in arms if arm not in there)}: not trained")
    return there


def check_plots(wanted: Mapping[str, Sequence[str]]) -> None:
    for name in wanted:
        if name not in PLOTS:
            raise SagecacheError(f"evidence: no plot '{name}'", fix=nearest(name, PLOTS))


# -- from the logs -----------------------------------------------------------------------------------


def _logged(project: Project, training: Training, names: Sequence[str], *, needed: str) -> list[dict]:
    """step -> value of each name, {} where nothing was logged: the probe leaves out what it can't measure."""
    curves = read_run_log(training.work_dir(project)).curves
    if needed not in curves:
        raise NothingToShow(f"{training.work_dir(project)} has no '{needed}' in its log")
    found = (curves.get(name) for name in names)
    return [{} if one is None else dict(zip(*(part.tolist() for part in one), strict=True)) for one in found]


def _net_use(evidence: Evidence, arms: Sequence[str], path: Path) -> list[Path]:
    from sagecache.visualization.evidence import Panel, draw_curves

    names = ("probe/kept", "probe/precision")
    steps = sorted(_logged(*_some_run(evidence, arms), names, needed=names[0])[0])

    def curves(project: Project, training: Training) -> list[np.ndarray]:
        kept, right = (_at(steps, one) for one in _logged(project, training, names, needed=names[0]))
        return [np.where(kept > 0, kept * right, 0.0), kept, right]

    found = evidence.per_seed(arms, curves)  # arm -> (S, 3, N)
    titles = ("right labels in use", "kept", "right among kept")
    panels = [
        Panel(
            title, steps, {arm: 100 * rows[:, k] for arm, rows in found.items()}, "step", "% of probe joints"
        )
        for k, title in enumerate(titles)
    ]
    return draw_curves(path, "Net use of pseudo-labels", panels)


def _at(steps: Sequence[int], values: Mapping[int, float]) -> np.ndarray:
    """Values at steps, between those logged on a straight line; NaN where nothing was logged."""
    if not values:
        return np.full(len(steps), np.nan)
    return np.interp(steps, sorted(values), [values[step] for step in sorted(values)])


def _selection(evidence: Evidence, arms: Sequence[str], path: Path) -> list[Path]:
    from sagecache.visualization.evidence import Panel, draw_bars

    joints = _some_run(evidence, arms)[0].skeleton.names

    def at_the_end(project: Project, training: Training) -> list[list[float]]:
        names = [f"probe/{kind}/{joint}" for kind in ("kept", "precision") for joint in joints]
        values = [_mean_of_last(one) for one in _logged(project, training, names, needed=names[0])]
        return [values[: len(joints)], values[len(joints) :]]

    found = evidence.per_seed(arms, at_the_end)  # arm -> (S, 2, K)
    panels = [
        Panel(title, joints, {arm: 100 * rows[:, k] for arm, rows in found.items()}, y_label="%")
        for k, title in enumerate(("kept, by joint", "right among kept, by joint"))
    ]
    return draw_bars(path, "Which joints the filter keeps, at the end of training", panels)


def _mean_of_last(values: Mapping[int, float]) -> float:
    if not values:
        return math.nan
    begin = (1 - LAST) * max(values)
    return float(np.mean([value for step, value in values.items() if step >= begin]))


def _some_run(evidence: Evidence, arms: Sequence[str]) -> tuple[Project, Training]:
    for arm in arms:
        for run in evidence.runs.get(arm, {}).values():
            return run
    raise NothingToShow(f"none of {', '.join(arms)} is trained")


# -- from the predictions on the split ---------------------------------------------------------------


def _hard_joints(evidence: Evidence, arms: Sequence[str], path: Path) -> list[Path]:
    from sagecache.visualization.evidence import Panel, draw_bars

    names = list(_some_run(evidence, arms)[0].skeleton.names)
    hard = [name for name in names if name.rpartition("_")[2] in ("wrist", "ankle")] or names
    rows = [names.index(name) for name in hard]

    def pck(project: Project, training: Training) -> np.ndarray:
        report = report_of(project, training, evidence.split)
        if report is None:
            raise NothingToShow(f"{training.work_dir(project)} is not scored on {evidence.split}")
        return 100 * report.pck_per_joint[0.05][rows]

    panels = [Panel(f"split {evidence.split}", hard, evidence.per_seed(arms, pck), y_label="PCK@0.05, %")]
    return draw_bars(path, "Hard joints", panels)


def _drift(evidence: Evidence, arms: Sequence[str], path: Path) -> list[Path]:
    from sagecache.evaluation.plausibility import BodyRange
    from sagecache.visualization.evidence import Panel, draw_bars

    project, _ = _some_run(evidence, arms)
    bodies = [one for one in project.instances(evidence.split, BOXES) if one.keypoints is not None]
    truth = np.array([one.keypoints for one in bodies]), np.array([one.bbox for one in bodies])
    bounds = BodyRange.of(*truth, project.skeleton)

    def share(own: Project, training: Training) -> list[float]:
        predictions = scored(own, training, evidence.split) or []
        points = np.array([one["keypoints"] for one in predictions], float).reshape(len(predictions), -1, 3)
        points[..., 2] = 1
        return [100 * bounds.outside(points, np.array([one["bbox"] for one in predictions])).mean()]

    line = ("true bodies", 100 * float(bounds.outside(*truth).mean()))
    panels = [
        Panel(
            "limbs that no true body shows",
            [evidence.split],
            evidence.per_seed(arms, share),
            y_label="% of persons",
            line=line,
        )
    ]
    return draw_bars(path, "Implausible skeletons", panels)


# -- from disturbed crops ----------------------------------------------------------------------------


def _against_strength(kind: str, title: str, x_label: str, confidence: bool = False):
    def plot(evidence: Evidence, arms: Sequence[str], path: Path) -> list[Path]:
        from sagecache.mm.robustness import Disturbed
        from sagecache.visualization.evidence import Panel, draw_curves

        def curves(project: Project, training: Training) -> list[list[float]]:
            found = was_disturbed(project, training, evidence.split, kind)
            if found is None:
                raise NothingToShow(f"{training.work_dir(project)} was not judged on disturbed crops")
            each = [Disturbed.from_dict(one) for one in found]
            return [[100 * one.pck for one in each], [one.mean_confidence for one in each]]

        found = evidence.per_seed(arms, curves)
        labels = ("PCK@0.05, %", "peak of the map")[: 2 if confidence else 1]
        panels = [
            Panel(
                f"split {evidence.split}",
                STRENGTHS[kind],
                {arm: rows[:, k] for arm, rows in found.items()},
                x_label,
                label,
            )
            for k, label in enumerate(labels)
        ]
        return draw_curves(path, title, panels)

    return plot


PLOTS: dict[str, Callable[[Evidence, Sequence[str], Path], list[Path]]] = {
    "net_use": _net_use,
    "hard_joints": _hard_joints,
    "stability": _against_strength(
        "strong", "Stability", "strength of the disturbance, 1 = training's strong view"
    ),
    "hidden": _against_strength(
        "hidden", "Hidden joints", "side of the patch, crop heights", confidence=True
    ),
    "selection": _selection,
    "drift": _drift,
    "camera": _against_strength("camera", "Camera", "lens and tilt, 2 = the strongest that views know"),
}
DISTURBED_BY = {"stability": "strong", "hidden": "hidden", "camera": "camera"}  # plot -> kind
