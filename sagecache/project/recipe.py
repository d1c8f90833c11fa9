"""What a recipe page may say. Sections that mmengine owns (``optim_wrapper``, ``param_scheduler``,
``default_hooks`` …) keep mmengine's names and are handed to its Runner as they are."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from sagecache.data.views import ViewConfig
from sagecache.errors import SagecacheError
from sagecache.semi.ema import require_different
from sagecache.strict import at_least, positive, share

MAX_SEED = 10**9  # what a training makes of it must fit into torch's 64 bits
# What a term reads beside the images; it is asked for before a training starts.
# CMGC compares with what the labeled bodies measure in their own targets.
TERM_NEEDS = {
    "diffusion": {"prior"},
    "cmgc_depth": {"targets", "labeled targets"},
    "cmgc_normal": {"targets", "labeled targets"},
    "geometry": {"targets"},
}


@dataclass(frozen=True)
class RecipeData:
    """Names of splits of ``data.py``. Several labeled splits are joined.

    on_missing: what an unlabeled instance without targets is. image_cache_mb: decoded images that a loader
    process keeps. probe: the labeled split on which pseudo labels are judged at each validation; 'val' is
    the one that ``val`` names, None judges none.
    """

    labeled: tuple[str, ...] = ("labeled",)
    unlabeled: str | None = None
    val: str | None = "val"
    probe: str | None = "val"
    on_missing: Literal["error", "skip"] = "error"
    image_cache_mb: int = 512

    def __post_init__(self) -> None:
        at_least("image_cache_mb", self.image_cache_mb, 0)


@dataclass(frozen=True)
class BatchSettings:
    """Instances of each stream in a step of one process, and loader processes."""

    labeled: int = 16
    unlabeled: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        at_least("labeled", self.labeled, 0)
        at_least("unlabeled", self.unlabeled, 0)
        if not self.labeled and not self.unlabeled:
            raise SagecacheError("a step needs images, and batch.labeled and batch.unlabeled are 0")
        at_least("workers", self.workers, 0)


@dataclass(frozen=True)
class ViewSettings:
    """The EMA teacher's weak view, the student's strong views (labeled images get a strong one too).

    appearance: a second view of teachers that look at two, the plain crop in other colours.
    """

    weak: ViewConfig = ViewConfig()
    appearance: ViewConfig | None = None
    strong: ViewConfig = ViewConfig()
    num_strong: int = 1
    padding: float = 1.25

    def __post_init__(self) -> None:
        at_least("num_strong", self.num_strong, 1)  # the student's views: without one no term has an input
        positive("padding", self.padding)


@dataclass(frozen=True)
class TrainSettings:
    """As mmengine's ``train_cfg``: optimiser iterations, and how often to validate."""

    max_iters: int
    val_interval: int = 0
    checkpoint_interval: int = 0
    log_interval: int = 10

    def __post_init__(self) -> None:
        at_least("max_iters", self.max_iters, 1)
        at_least("val_interval", self.val_interval, 0)
        at_least("checkpoint_interval", self.checkpoint_interval, 0)
        at_least("log_interval", self.log_interval, 1)


@dataclass(frozen=True)
class AppearanceTeacher:
    """How the second EMA teacher of mode 'dual' differs from the first; with none of the three it would not.

    decay: its own. alternate: the two are updated in turns, one optimiser step each. own_norm: its batch norm
    layers measure what it sees, the others' are averages of the student's.
    """

    decay: float | None = None
    alternate: bool = False
    own_norm: bool = False

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise SagecacheError(f"decay is {self.decay}, it must be in [0, 1)")


@dataclass(frozen=True)
class TeacherSettings:
    """What the EMA teacher looks at.

    mode: 'single' sees the weak view; 'single_two_view' sees it and the appearance view (views.appearance:
    the plain crop in other colours) in one forward pass; 'dual' has a teacher of its own for the latter.
    flip: each view once more, mirrored.
    """

    mode: Literal["single", "single_two_view", "dual"] = "single"
    flip: bool = True
    appearance: AppearanceTeacher = AppearanceTeacher()

    def __post_init__(self) -> None:
        if self.mode != "dual" and self.appearance != AppearanceTeacher():
            raise SagecacheError(
                f"teacher.appearance has no effect with mode '{self.mode}'", fix="Set teacher.mode='dual'."
            )


SECTIONS = ("fusion", "pseudo_labels", "instances", "swaps", "mixing", "style", "gate")


@dataclass(frozen=True)
class SemiSettings:
    """Learning without labels. Terms map a name to its options; weight 0 builds nothing, the default is 1.

    ramp_up: optimiser steps (with optim_wrapper.accumulative_counts fewer than iterations) over which the
    terms' weights rise to full. pseudo_labels.warm_up counts iterations. refresh: epochs of unlabeled images
    after which all pseudo-labels are made anew and kept (0: each step makes its own). coupling: softness with
    which joints of implausible structure lose weight (``semi.coupling``), 0 is off. The dicts are options of
    ``semi.fusion.ViewFusion``, ``semi.filtering.KeypointFilter`` (pseudo_labels),
    ``semi.instances.InstanceGate``, ``semi.gating.HybridGate``, ``data.mixing.StrongMixing``,
    ``data.style.StyleTransfer``, ``semi.swaps.SwapCheck``; None takes back what a page says of one, and is
    the same as leaving it out: off, or for fusion, pseudo_labels and gate their defaults.
    """

    teacher: TeacherSettings = TeacherSettings()
    fusion: dict[str, Any] | None = field(default_factory=dict)
    pseudo_labels: dict[str, Any] | None = field(default_factory=dict)
    instances: dict[str, Any] | None = field(default_factory=dict)
    swaps: dict[str, Any] | None = field(default_factory=dict)
    coupling: float = 0.0
    mixing: dict[str, Any] | None = field(default_factory=dict)
    style: dict[str, Any] | None = field(default_factory=dict)
    gate: dict[str, Any] | None = field(default_factory=dict)
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    ramp_up: int = 0
    refresh: int = 0

    @property
    def has_teacher_b(self) -> bool:
        """Whether the gate gives samples that it refuses to the prior."""
        return self.gate.get("teacher_b") == "diffusion"

    def __post_init__(self) -> None:
        for name in SECTIONS:
            if getattr(self, name) is None:  # one form alone, so that both are the same training
                object.__setattr__(self, name, {})
        at_least("ramp_up", self.ramp_up, 0)
        at_least("refresh", self.refresh, 0)
        at_least("coupling", self.coupling, 0)
        if self.refresh and self.terms.get("consistency", {}).get("target") == "heatmap":
            raise SagecacheError(
                "semi.refresh keeps poses and no heatmaps",
                fix="Set semi.terms.consistency.target='keypoints'.",
            )
        if self.fusion and self.teacher.mode == "single":
            raise SagecacheError(
                "semi.fusion has no effect on one view", fix="Set teacher.mode='single_two_view'."
            )
        for name, options in self.terms.items():
            weight = options.get("weight", 1.0)
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not (number and 0 <= weight < math.inf):
                raise SagecacheError(
                    f"weight of term '{name}' is {weight!r}, it must be a number >= 0",
                    fix="Set 0 to switch the term off.",
                )


@dataclass(frozen=True)
class GuardSettings:
    """What looks after a training, and how loudly.

    recordings: frames of one recording in what is trained on and in val or test: 'error', or 'warn' where
    file names only look like it (the same image on both sides is always an error).
    collapse: what to do once an alarm has stood for ``patience`` log intervals in a row: 'warn' once in the
    log, 'stop' the run, or 'off'. The alarms: the student's mean peak on unlabeled views is below ``peak``
    of its highest so far; the share of joints that are learned from is below ``kept_low`` or above
    ``kept_high`` (0 and 1 never ring).
    """

    recordings: Literal["error", "warn"] = "error"
    collapse: Literal["warn", "stop", "off"] = "warn"
    patience: int = 5
    peak: float = 0.5
    kept_low: float = 0.01
    kept_high: float = 0.995

    def __post_init__(self) -> None:
        at_least("patience", self.patience, 1)
        for name in ("peak", "kept_low", "kept_high"):
            share(name, getattr(self, name))
        if self.kept_low >= self.kept_high:
            raise SagecacheError(f"kept_low is {self.kept_low}, it must be below kept_high")


@dataclass(frozen=True)
class Recipe:
    """A page of a project: one training.

    kind 'pose' trains a student (with unlabeled images if ``batch.unlabeled`` > 0), 'prior' fits the
    diffusion prior. load_from: a recipe's name (its best checkpoint), 'demo' (the committed student), a
    file, or None. channels_last: keep the weights of convolutions in that memory format (their outputs
    follow), which is faster for convolutional students on CPUs and under AMP (ViTs have little to gain).
    amp: bfloat16 autocast in the networks' forward passes (weights and geometry stay float32); `train --amp`
    sets it.
    """

    kind: Literal["pose", "prior"] = "pose"
    load_from: str | None = None
    data: RecipeData = RecipeData()
    batch: BatchSettings = BatchSettings()
    views: ViewSettings = ViewSettings()
    train_cfg: TrainSettings | None = None
    ema_decay: float = 0.999
    channels_last: bool = False
    amp: bool = False
    semi: SemiSettings = SemiSettings()
    guards: GuardSettings = GuardSettings()
    prior: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    optim_wrapper: dict[str, Any] = field(default_factory=dict)
    param_scheduler: Any = None
    default_hooks: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    custom_hooks: tuple[dict[str, Any], ...] = ()
    env_cfg: dict[str, Any] = field(default_factory=dict)
    vis_backends: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise SagecacheError(f"seed is {self.seed}, it must be in [0, {MAX_SEED}]")
        if not 0 <= self.ema_decay < 1:
            raise SagecacheError(f"ema_decay is {self.ema_decay}, it must be in [0, 1)")
        self._refuse_keys_of_the_other_kind()
        self._check_teachers()
        if self.kind == "pose" and not self.batch.labeled and not self.uses_unlabeled:
            raise SagecacheError(
                "nothing to learn from: batch.labeled is 0, and no term uses unlabeled images",
                fix="Give a term of semi.terms a weight, and batch.unlabeled a number.",
            )

    def _check_teachers(self) -> None:
        """Two views need the second one's config; the second teacher must differ from the first."""
        teacher = self.semi.teacher
        if (teacher.mode == "single") != (self.views.appearance is None):
            raise SagecacheError(
                f"semi.teacher.mode '{teacher.mode}' and views.appearance do not go together",
                fix="Two views need views.appearance = dict(colour=…, blur=…), one must not have it.",
            )
        if teacher.mode == "dual":
            own = teacher.appearance
            other = self.ema_decay if own.decay is None else own.decay
            require_different(self.ema_decay, other, own.alternate, own.own_norm)

    def _refuse_keys_of_the_other_kind(self) -> None:
        if self.kind == "pose":
            foreign = ["prior"]
        else:
            foreign = [one.name for one in fields(self) if one.name not in ("kind", "data", "seed", "prior")]
            if self.data != RecipeData(labeled=self.data.labeled, val=self.data.val):
                raise SagecacheError(
                    "a recipe of kind 'prior' reads data.labeled alone", fix="Remove the rest."
                )
        for one in fields(self):
            default = one.default if one.default_factory is MISSING else one.default_factory()
            if one.name in foreign and getattr(self, one.name) != default:
                raise SagecacheError(
                    f"'{one.name}' has no effect on a recipe of kind '{self.kind}'", fix="Remove it."
                )

    @property
    def terms(self) -> dict[str, dict[str, Any]]:
        """Terms with a weight: only these are built, and only these ask for stores and priors."""
        return {name: options for name, options in self.semi.terms.items() if options.get("weight", 1.0)}

    @property
    def uses_geometry(self) -> bool:
        """Whether a step reads cached depth and normals."""
        return "targets" in self._needs

    @property
    def geometry_splits(self) -> list[str]:
        """Splits whose cached depth and normals a training reads."""
        if not self.uses_unlabeled or not self.uses_geometry:
            return []
        labeled = self.data.labeled if "labeled targets" in self._needs else ()
        return [*labeled, self.data.unlabeled]

    @property
    def uses_prior(self) -> bool:
        return "prior" in self._needs or self.semi.has_teacher_b

    @property
    def _needs(self) -> set[str]:
        return set().union(*(TERM_NEEDS.get(name, ()) for name in self.terms))

    @property
    def uses_unlabeled(self) -> bool:
        """Without a term no unlabeled image is read, whatever the batch says."""
        return self.data.unlabeled is not None and self.batch.unlabeled > 0 and bool(self.terms)

    @property
    def optimiser_steps(self) -> int | None:
        """Of the whole training; None where no train_cfg tells. An iteration is a batch."""
        if self.train_cfg is None:
            return None
        return self.train_cfg.max_iters // self.accumulation

    @property
    def accumulation(self) -> int:
        """Iterations to an optimiser step; what mmengine refuses later counts as 1."""
        counts = self.optim_wrapper.get("accumulative_counts", 1)
        return counts if isinstance(counts, int) and counts > 0 else 1

    @property
    def probe(self) -> str | None:
        """The split on which pseudo labels are judged; None where there are none, or nothing to judge by."""
        if not self.uses_unlabeled:
            return None
        return self.data.val if self.data.probe == "val" else self.data.probe

    @property
    def summary(self) -> str:
        """What a step learns from, in a line."""
        if not self.uses_unlabeled:
            return f"{self.batch.labeled} labeled a step, no unlabeled ones: labels alone"
        terms = ", ".join(f"{name} {options.get('weight', 1.0):g}" for name, options in self.terms.items())
        images = f"{self.batch.labeled or 'no'} labeled and {self.batch.unlabeled} unlabeled"
        return f"{images} a step; terms: {terms}"
