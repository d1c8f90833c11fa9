"""How good predictions are."""

from sagecache.evaluation.bootstrap import paired_bootstrap
from sagecache.evaluation.keypoints import KeypointReport, evaluate

__all__ = ["KeypointReport", "evaluate", "paired_bootstrap"]
