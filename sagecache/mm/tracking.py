"""Where a run's scalars are written: files, TensorBoard, and Weights & Biases where it is asked for.

Three things of mmengine's W&B backend are mended: it counts its own calls as steps, so that curves of
training and validation would not lie on one axis; it uploads every .py file below the folder in which the
command runs; and a refused login is a traceback.
"""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.registry import VISBACKENDS
from mmengine.visualization import WandbVisBackend
from mmengine.visualization.vis_backend import force_init_env

from sagecache.errors import SagecacheError
from sagecache.project import Project, Recipe

STEP = "iteration"
INSTALL = 'Run: pip install "sagecache[wandb]" (or: pip install wandb).'


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """mmengine's backend; scalars carry their iteration, code stays at home, errors are one line.

    Environment variables of wandb keep their meaning: WANDB_MODE=offline needs neither network nor account.
    """

    def _init_env(self) -> None:
        try:
            super()._init_env()
        except Exception as error:  # wandb's own classes; without wandb there are none to name
            told = str(error).strip().split("\n")[0]
            raise SagecacheError(
                f"W&B can't start: {told}",
                fix="Log in (wandb login), stay on this machine (WANDB_MODE=offline), or leave --wandb out.",
            ) from error

    @force_init_env
    def add_config(self, config: Config, **_: Any) -> None:
        self._wandb.config.update(config.to_dict(), allow_val_change=True)

    @force_init_env
    def add_scalars(self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **_: Any) -> None:
        self._wandb.log({**scalar_dict, STEP: step}, commit=self._commit)

    @force_init_env
    def add_scalar(self, name: str, value: Any, step: int = 0, **_: Any) -> None:
        self.add_scalars({name: value}, step)

    def close(self) -> None:
        if hasattr(self, "_wandb"):
            self._wandb.finish()


def log_writers(project: Project, name: str, recipe: Recipe, wandb: bool) -> list[dict[str, Any]]:
    """Configs of mmengine's backends, fresh at each call: mmengine writes the run's folder into them."""
    own = [dict(type="WandbBackend", **_wandb_options(project, name))] if wandb else []
    if recipe.vis_backends:
        return [*copy.deepcopy(list(recipe.vis_backends)), *own]
    curves = [dict(type="TensorboardVisBackend")] if find_spec("tensorboard") else []  # an optional extra
    return [dict(type="LocalVisBackend"), *curves, *own]


def _wandb_options(project: Project, recipe_name: str) -> dict[str, Any]:
    """A W&B project named after the project's folder, a run after the recipe.

    WANDB_PROJECT and WANDB_NAME win. Raises SagecacheError as ``require_wandb``.
    """
    require_wandb()
    return dict(
        init_kwargs=dict(
            project=os.environ.get("WANDB_PROJECT") or project.folder.name,
            name=os.environ.get("WANDB_NAME") or recipe_name,
        ),
        define_metric_cfg=[dict(name="*", step_metric=STEP)],
    )


def require_wandb() -> None:
    """Raise SagecacheError where wandb is not installed."""
    if find_spec("wandb") is None:
        raise SagecacheError("--wandb needs the package wandb, which is not installed", fix=INSTALL)
