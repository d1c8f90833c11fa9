"""The trainings of an ablation: where each lies, whether it stands, and how one is made and scored.

A training stands when its run has ended, with today's settings, and was made from today's images and start
weights. One that was cut off goes on; anything else is trained anew, and what was there is set aside.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagecache.errors import SagecacheError
from sagecache.project.runs import changed_since_start, finished_run, noted_start, shortfall
from sagecache.store.files import write_whole

if TYPE_CHECKING:
    from sagecache.evaluation.keypoints import KeypointReport
    from sagecache.project import Project

NETWORK, BOXES = "ema_teacher", "annotations"  # what is scored, the same for all arms


@dataclass(frozen=True)
class Repetitions:
    """A project's draws. folder: None for the demo."""

    folder: Path | None
    labels: int | None = None

    @classmethod
    def of(cls, project: Project, labels: int | None) -> Repetitions:
        return cls(None if project.embedded else project.folder, labels)

    def project(self, draw: int) -> Project:
        """Reads the pages; writes the lists of the draw's labels."""
        from sagecache.project import Project
        from sagecache.project.draws import write_label_lists

        whole = Project.demo() if self.folder is None else Project.open(self.folder)
        drawn = whole.redrawn(draw, self.labels)
        write_label_lists(drawn, whole)
        return drawn


@dataclass(frozen=True)
class Training:
    """A recipe with some keys changed, in one draw. max_iters: a trial of so many, apart from all others."""

    recipe: str
    draw: int
    overrides: Mapping[str, Any] = field(default_factory=dict)
    max_iters: int | None = None

    def work_dir(self, project: Project) -> Path:
        """The recipe's own for the page as it is; else one named after what differs."""
        if not self.overrides and self.max_iters is None:
            return project.work_dir(self.recipe)
        name = self.recipe.replace("-", "_")
        if self.overrides:
            changed = json.dumps(dict(self.overrides), sort_keys=True, default=str)
            name += "-" + hashlib.sha256(changed.encode()).hexdigest()[:8]
        root = project.work_root / "ablations"
        return (root if self.max_iters is None else root / f"trial_{self.max_iters}") / name

    def command(self, project: Project) -> str:
        """How to train it alone."""
        words = [f"sagecache train {self.recipe} --work-dir {shlex.quote(str(self.work_dir(project)))}"]
        words += [f"--max-iters {self.max_iters}"] if self.max_iters else []
        words += [shlex.quote(f"{key}={value!r}") for key, value in self.overrides.items()]
        return project.command(" ".join(words))


def starts(project: Project, training: Training) -> Iterator[Training]:
    """The trainings that this one starts from, first the one that is needed first."""
    recipe, _ = project.recipe(training.recipe, training.overrides)
    if recipe.load_from in project.recipe_names():
        before = Training(recipe.load_from, training.draw)  # of a trial too: never a trial itself
        yield from starts(project, before)
        yield before


# -- does it stand? ----------------------------------------------------------------------------------


def state(project: Project, training: Training) -> str:
    """'stands', 'cut' (a run to go on with) or 'none'. What it starts from must stand too."""
    from sagecache.mm.inputs import inputs_of

    if any(state(project, start) != "stands" for start in starts(project, training)):
        return "none"
    recipe, model = project.recipe(training.recipe, training.overrides)
    work_dir = training.work_dir(project)
    try:
        noted = noted_start(work_dir)
        if noted is None:
            return "none"
        now = inputs_of(project, recipe) if noted.inputs else {}
        if any(now.get(key) != value for key, value in (noted.inputs or {}).items()):  # older runs note less
            return "none"
    except (SagecacheError, OSError):  # of another version, or weights or annotations are not there
        return "none"
    if finished_run(work_dir) is not None:
        return "none" if shortfall(work_dir, recipe, model, training.max_iters) else "stands"
    cut = any(work_dir.glob("iter_*.pth")) and not changed_since_start(work_dir, recipe, model)
    return "cut" if cut else "none"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content) + "\n").encode())


# -- making it ---------------------------------------------------------------------------------------


def train_and_score(
    repetitions: Repetitions, training: Training, split: str | None, report: Callable[..., None]
) -> None:
    """Train what does not stand, score what is not scored; everything it needs must be there."""
    from sagecache.cli.jobs import check_recipe, require_fresh
    from sagecache.mm import run

    project = repetitions.project(training.draw)
    where = state(project, training)
    if where != "stands":
        recipe, _ = project.recipe(training.recipe, training.overrides)
        check_recipe(recipe)
        require_fresh(project, recipe)
        work_dir = training.work_dir(project)
        options = run.TrainOptions(
            work_dir=work_dir,
            resume=where == "cut",
            max_iters=training.max_iters,
            overrides=dict(training.overrides),
        )
        run.train(project, training.recipe, options, report)
    if split is not None and scored(project, training, split) is None:
        _score(project, training, split, report)


def _score(project: Project, training: Training, split: str, report: Callable[..., None]) -> None:
    from sagecache.mm.evaluate import score

    own = as_trained(project, training)
    _, predictions = score(
        own, checkpoint_of(project, training), split, BOXES, NETWORK, lambda *told: report(*told, "score")
    )
    content = dict(made_from=score_made_from(project, training, split), predictions=predictions)
    write_json(score_file(project, training, split), content)


def as_trained(project: Project, training: Training) -> Project:
    """The project with the model that the training's overrides make of its page."""
    own = copy.copy(project)
    own.model = project.recipe(training.recipe, training.overrides)[1]
    return own


def checkpoint_of(project: Project, training: Training) -> Path:
    work_dir = training.work_dir(project)
    return work_dir / finished_run(work_dir).checkpoint


def score_file(project: Project, training: Training, split: str) -> Path:
    return training.work_dir(project) / f"scored_{split}.json"


def score_made_from(project: Project, training: Training, split: str) -> dict[str, Any]:
    """All that predictions hang on; how they are judged is asked when the table is made."""
    from sagecache.mm.inputs import file_digest

    rules = project.data.evaluation
    # what came later is noted where it is not the default, so that scores made before it still stand
    sampling = {} if rules.sampling == "training" else dict(sampling=rules.sampling)
    return sampling | dict(
        checkpoint=file_digest(checkpoint_of(project, training)),
        annotations=file_digest(project.path(project.split(split).annotations)),
        padding=rules.padding,
        model=json.loads(json.dumps(as_trained(project, training).model, default=str)),
        network=NETWORK,
        boxes=BOXES,
    )


def scored(project: Project, training: Training, split: str) -> list[dict] | None:
    """Predictions of a training that stands; None where they are to be made."""
    content = read_json(score_file(project, training, split))
    if content is None or content.get("made_from") != score_made_from(project, training, split):
        return None
    return content["predictions"]


def report_of(project: Project, training: Training, split: str) -> KeypointReport | None:
    """By today's rules of data.py; None where the training does not stand or is not scored."""
    from sagecache.data.coco import load_coco
    from sagecache.evaluation.keypoints import evaluate

    if state(project, training) != "stands" or (predictions := scored(project, training, split)) is None:
        return None
    truth, rules = load_coco(project.path(project.split(split).annotations)), project.data.evaluation
    return evaluate(
        predictions, truth, project.skeleton, area_rule=rules.area, normaliser=rules.pck_normaliser
    )
