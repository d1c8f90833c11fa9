"""``sagecache.evaluation`` as an mmengine metric."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from sagecache.evaluation.keypoints import evaluate
from sagecache.mm.samples import coco_result
from sagecache.skeleton.definition import Skeleton


@METRICS.register_module()
class KeypointMetric(BaseMetric):
    """AP, AR and PCK of the predictions, in [0, 1]; ``report`` keeps the whole evaluation.

    ground_truth: a COCO keypoint dict. area_rule and normaliser as evaluation.keypoints.evaluate states.
    collect_dir: where several processes hand over their predictions.
    """

    default_prefix = "keypoints"

    def __init__(
        self,
        ground_truth: dict,
        skeleton: Skeleton,
        area_rule: str,
        normaliser: str,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device="cpu", collect_dir=collect_dir)
        self.ground_truth, self.skeleton = ground_truth, skeleton
        self.area_rule, self.normaliser = area_rule, normaliser
        self.report, self.predictions = None, []

    def process(self, data_batch, data_samples: Sequence) -> None:
        self.results += [coco_result(sample) for sample in data_samples]

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        # Under several processes the sampler repeats instances to fill the last batch.
        self.predictions = list({(r["image_id"], r["instance"]): r for r in results}.values())
        self.report = evaluate(
            self.predictions,
            self.ground_truth,
            self.skeleton,
            area_rule=self.area_rule,
            normaliser=self.normaliser,
        )
        report = self.report.as_dict()
        return {name: report[name] for name in ("AP", "AP50", "AP75", "AR", "PCK@0.05", "PCK@0.1")}
