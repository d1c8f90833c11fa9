"""What a recipe page may say. Sections that mmengine owns (``optim_wrapper``, ``param_scheduler``,
``default_hooks`` …) keep mmengine's names and are handed to its Runner as they are."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from sagecache.data.views import ViewConfig
from sagecache.errors import SagecacheError
from sagecache.strict import at_least, positive

MAX_SEED = 10**9  # what a training makes of it must fit into torch's 64 bits
# What a term reads beside the images; it is asked for before a training starts.
TERM_NEEDS = {"diffusion": "prior", "cmgc_depth": "geometry", "cmgc_normal": "geometry"}


@dataclass(frozen=True)
class RecipeData:
    """Names of splits of ``data.py``. Several labeled splits are joined.

    on_missing: what an unlabeled instance without targets is. image_cache_mb: decoded images that a loader
    process keeps.
    """

    labeled: tuple[str, ...] = ("labeled",)
    unlabeled: str | None = None
    val: str | None = "val"
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
        at_least("labeled", self.labeled, 1)  # every step has a supervised loss
        at_least("unlabeled", self.unlabeled, 0)
        at_least("workers", self.workers, 0)


@dataclass(frozen=True)
class ViewSettings:
    """The EMA teacher's weak view, the student's strong views (labeled images get a strong one too)."""

    weak: ViewConfig = ViewConfig()
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
class SemiSettings:
    """Learning without labels. Terms map a name to its options; weight 0 builds nothing, the default is 1.

    ramp_up: steps over which the terms' weights rise to full.
    """

    pseudo_labels: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    terms: dict[str, dict[str, Any]] = field(default_factory=dict)
    ramp_up: int = 0

    def __post_init__(self) -> None:
        at_least("ramp_up", self.ramp_up, 0)
        for name, options in self.terms.items():
            weight = options.get("weight", 1.0)
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not (number and 0 <= weight < math.inf):
                raise SagecacheError(
                    f"weight of term '{name}' is {weight!r}, it must be a number >= 0",
                    fix="Set 0 to switch the term off.",
                )


@dataclass(frozen=True)
class Recipe:
    """A page of a project: one training.

    kind 'pose' trains a student (with unlabeled images if ``batch.unlabeled`` > 0), 'prior' fits the
    diffusion prior. load_from: a recipe's name (its best checkpoint), 'demo' (the committed student), a
    file, or None. channels_last: keep the weights of convolutions in that memory format (their outputs
    follow), which is faster for convolutional students on CPUs and under AMP (ViTs have little to gain).
    """

    kind: Literal["pose", "prior"] = "pose"
    load_from: str | None = None
    data: RecipeData = RecipeData()
    batch: BatchSettings = BatchSettings()
    views: ViewSettings = ViewSettings()
    train_cfg: TrainSettings | None = None
    ema_decay: float = 0.999
    channels_last: bool = False
    semi: SemiSettings = SemiSettings()
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
        return "geometry" in self._needs

    @property
    def uses_prior(self) -> bool:
        return "prior" in self._needs or self.semi.gate.get("teacher_b", "none") == "diffusion"

    @property
    def _needs(self) -> set[str | None]:
        return {TERM_NEEDS.get(name) for name in self.terms}

    @property
    def uses_unlabeled(self) -> bool:
        """Without a term no unlabeled image is read, whatever the batch says."""
        return self.data.unlabeled is not None and self.batch.unlabeled > 0 and bool(self.terms)

    @property
    def summary(self) -> str:
        """What a step learns from, in a line."""
        if not self.uses_unlabeled:
            return f"{self.batch.labeled} labeled a step, no unlabeled ones: labels alone"
        terms = ", ".join(f"{name} {options.get('weight', 1.0):g}" for name, options in self.terms.items())
        return f"{self.batch.labeled} labeled and {self.batch.unlabeled} unlabeled a step; terms: {terms}"
