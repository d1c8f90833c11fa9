"""How good predicted keypoints are: OKS AP/AR by pycocotools and PCK, with every convention stated.

Predictions are COCO results ({image_id, keypoints [x, y, score, ...], score}; category_id is not used),
ground truth is a COCO keypoint dict. All figures are fractions in [0, 1].

Conventions. AP: the ten OKS thresholds .5:.05:.95, at most 20 predictions an image, v > 0 counts, crowds and
persons without a labeled keypoint are ignored. Area: 'bbox53' is .53 w h (mmpose's rule for files without
area), 'annotation' the file's own field, which differs by file even within one data set (SyRIP: median
area / (w h) of .05, 15.6 and 1.0). PCK: a labeled joint is correct within threshold x normaliser of the true
box ('diagonal' or 'max_side'); joints of a person whom no prediction matches are wrong.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sagecache.errors import SagecacheError, nearest
from sagecache.evaluation.ranking import RankedDetections
from sagecache.skeleton.category import is_person, person_categories
from sagecache.skeleton.definition import Skeleton

AREA_RULES = {
    "bbox53": ".53 * w * h of the annotated box",
    "annotation": "the 'area' field of the annotation",
}
NORMALISERS = {
    "diagonal": "diagonal of the annotated box",
    "max_side": "longer side of the annotated box",
}
COCO_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
MIN_MATCH_OKS = 0.1  # below it a prediction is of somebody else, or of nobody


@dataclass(frozen=True, eq=False)
class KeypointReport:
    """What `evaluate` found.

    coco: the ten figures of pycocotools by name, None where there is nothing to measure. pck {threshold:
    value}, pck_per_joint {threshold: (K,)}; NaN where no joint is labeled. correct (thresholds, I, K) and
    labeled (I, K) are counts for each of the I images of image_ids; ranking is what AP is made of.
    persons: labeled ones, unmatched: those without a prediction, all of whose joints are wrong.
    """

    skeleton: Skeleton
    area_rule: str
    normaliser: str
    matching: str
    coco: dict[str, float | None]
    thresholds: tuple[float, ...]
    image_ids: np.ndarray
    correct: np.ndarray
    labeled: np.ndarray
    persons: int
    unmatched: int
    ranking: RankedDetections

    @property
    def AP(self) -> float | None:
        return self.coco["AP"]

    @property
    def AP50(self) -> float | None:
        return self.coco["AP50"]

    @property
    def AP75(self) -> float | None:
        return self.coco["AP75"]

    @property
    def AR(self) -> float | None:
        return self.coco["AR"]

    @property
    def pck(self) -> dict[float, float]:
        totals = self.correct.sum(axis=(1, 2)), self.labeled.sum()
        return {t: _ratio(correct, totals[1]) for t, correct in zip(self.thresholds, totals[0], strict=True)}

    @property
    def pck_per_joint(self) -> dict[float, np.ndarray]:
        labeled = self.labeled.sum(axis=0)
        with np.errstate(invalid="ignore"):
            return {t: c.sum(axis=0) / labeled for t, c in zip(self.thresholds, self.correct, strict=True)}

    def per_image(self) -> dict[str, np.ndarray]:
        """Sums for each image: 'image_ids' (I,), 'labeled' (I,) joints, 'PCK@t' (I,) correct joints."""
        sums = {"image_ids": self.image_ids, "labeled": self.labeled.sum(axis=1)}
        for threshold, correct in zip(self.thresholds, self.correct, strict=True):
            sums[pck_name(threshold)] = correct.sum(axis=1)
        return sums

    def as_dict(self) -> dict:
        """Plain values for JSON: figures first, then the conventions and counts behind them."""
        joints = {
            pck_name(t): {
                name: _plain(value) for name, value in zip(self.skeleton.names, values, strict=True)
            }
            for t, values in self.pck_per_joint.items()
        }
        return {
            **self.coco,
            **{pck_name(t): _plain(value) for t, value in self.pck.items()},
            "per_joint": joints,
            "area_rule": f"{self.area_rule}: {AREA_RULES[self.area_rule]}",
            "pck_normaliser": f"{self.normaliser}: {NORMALISERS[self.normaliser]}",
            "matching": self.matching,
            "images": len(self.image_ids),
            "persons": self.persons,
            "unmatched_persons": self.unmatched,
            "labeled_joints": int(self.labeled.sum()),
        }


def evaluate(
    predictions: Sequence[Mapping],
    ground_truth: Mapping,
    skeleton: Skeleton,
    *,
    area_rule: str = "bbox53",
    normaliser: str = "diagonal",
    thresholds: Sequence[float] = (0.05, 0.1),
    keep_order: bool = False,
) -> KeypointReport:
    """Compare predictions with ground truth; see the module for the conventions.

    For PCK, predictions that carry 'annotation_id' (boxes were the annotated ones) are compared with that
    annotation. Without, they are matched one to one by OKS, best score first, at OKS >= .1. The order of
    predictions does not matter, unless keep_order: then it decides among equal scores, as in pycocotools.
    Raises SagecacheError for what does not fit together.
    """
    _one_of("area rule", area_rule, AREA_RULES)
    _one_of("normaliser", normaliser, NORMALISERS)
    truth = prepare_ground_truth(ground_truth, skeleton, area_rule)
    results = _checked(predictions, truth, skeleton)
    results = [dict(one) for one in results] if keep_order else sort_predictions(results)
    coco, ranking = _average_precision(truth, results, skeleton)

    image_ids = np.array(sorted(image["id"] for image in truth["images"]), dtype=np.int64)
    persons = [a for a in truth["annotations"] if a["num_keypoints"] > 0 and not a["iscrowd"]]
    matching, found = _match(persons, results, truth, skeleton)
    correct, labeled = _count_correct(persons, found, image_ids, normaliser, tuple(thresholds), skeleton)
    return KeypointReport(
        skeleton=skeleton,
        area_rule=area_rule,
        normaliser=normaliser,
        matching=matching,
        coco=coco,
        thresholds=tuple(thresholds),
        image_ids=image_ids,
        correct=correct,
        labeled=labeled,
        persons=len(persons),
        unmatched=sum(one is None for one in found),
        ranking=ranking,
    )


def pck_name(threshold: float) -> str:
    return f"PCK@{threshold:g}"


def oks(predicted: np.ndarray, keypoints: np.ndarray, areas: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """Object keypoint similarity: mean over v > 0 of exp(-d^2 / (2 area (2 sigma)^2)), COCO's definition.

    predicted (P, K, 2), keypoints (G, K, 3), areas (G,) px^2, sigmas (K,) -> (P, G) in [0, 1]; NaN where a
    person has no labeled joint.
    """
    squared = ((predicted[:, None] - keypoints[None, :, :, :2]) ** 2).sum(axis=-1)  # (P, G, K)
    scale = 2 * (areas[:, None] + np.spacing(1)) * (2 * np.asarray(sigmas)) ** 2  # (G, K)
    visible = keypoints[..., 2] > 0
    similarity = np.where(visible, np.exp(-squared / scale), 0.0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return similarity / visible.sum(axis=-1)


def sort_predictions(predictions: Sequence[Mapping]) -> list[dict]:
    """Predictions in the order that decides ties: by image, score (best first), annotation_id, coordinates.

    pycocotools keeps the file's order among equal scores, so a results file should be written in this one.
    """

    def order(p: Mapping) -> tuple:
        return p["image_id"], -p["score"], p.get("annotation_id") or 0, tuple(p["keypoints"])

    return sorted((dict(p) for p in predictions), key=order)


def prepare_ground_truth(ground_truth: Mapping, skeleton: Skeleton, area_rule: str) -> dict:
    """The COCO dict that pycocotools is given: one category, area by the rule, counted num_keypoints.

    Annotation ids become 1, 2, ... because pycocotools takes a match with id 0 for none; the old one stays
    as 'source_id'. Other categories than persons are left out, as in training. A person without keypoints
    gets zeros: pycocotools ignores it, and a prediction on it is no false positive.
    """
    known = {image["id"] for image in ground_truth["images"]}
    persons, count = person_categories(ground_truth), 3 * skeleton.num_keypoints
    annotations = []
    for i, source in enumerate(ground_truth["annotations"]):
        if not is_person(source, persons):
            continue
        where = f"annotations[{i}] (id {source.get('id')})"
        keypoints = list(source.get("keypoints") or [0] * count)
        if len(keypoints) != count:
            raise SagecacheError(
                f"has {len(keypoints)} keypoint numbers, the skeleton needs {count}", record=where
            )
        if source["image_id"] not in known:
            raise SagecacheError(f"image_id {source['image_id']} is not among the images", record=where)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "source_id": source.get("id"),
                "image_id": source["image_id"],
                "category_id": 1,
                "bbox": list(source["bbox"]),
                "area": _area(source, area_rule, where),
                "iscrowd": int(bool(source.get("iscrowd", 0))),
                "keypoints": keypoints,
                "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
            }
        )
    images = [{"id": image["id"]} for image in ground_truth["images"]]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def _area(source: Mapping, area_rule: str, where: str) -> float:
    if area_rule == "bbox53":
        return 0.53 * source["bbox"][2] * source["bbox"][3]
    if source.get("area") is None:
        raise SagecacheError("has no 'area'", record=where, fix="Use the area rule 'bbox53'")
    return source["area"]


def _one_of(what: str, name: str, known: Mapping) -> None:
    if name not in known:
        raise SagecacheError(f"unknown {what} '{name}'", fix=nearest(name, known))


def _checked(predictions: Sequence[Mapping], truth: dict, skeleton: Skeleton) -> Sequence[Mapping]:
    known = {image["id"] for image in truth["images"]}
    for i, prediction in enumerate(predictions):
        where = f"predictions[{i}]"
        missing = [key for key in ("image_id", "keypoints", "score") if key not in prediction]
        if missing:
            raise SagecacheError(f"lacks {', '.join(missing)}", record=where)
        if prediction["image_id"] not in known:
            raise SagecacheError(
                f"image_id {prediction['image_id']} is not in the ground truth", record=where
            )
        values = np.asarray(prediction["keypoints"], dtype=np.float64)
        if values.shape != (3 * skeleton.num_keypoints,):
            raise SagecacheError(
                f"needs {3 * skeleton.num_keypoints} keypoint numbers, has shape {values.shape}", record=where
            )
        if not (np.isfinite(values).all() and np.isfinite(prediction["score"])):
            raise SagecacheError("keypoints and score must be finite", record=where)
    return predictions


def _average_precision(
    truth: dict, results: list[dict], skeleton: Skeleton
) -> tuple[dict[str, float | None], RankedDetections]:
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints whatever the log level
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        found = COCO()
        found.dataset = {**truth, "annotations": []}
        found.createIndex()
        if results:
            keys = ("image_id", "keypoints", "score")
            found = coco.loadRes([{**{k: r[k] for k in keys}, "category_id": 1} for r in results])
        judge = COCOeval(coco, found, "keypoints")
        judge.params.kpt_oks_sigmas = np.asarray(skeleton.sigmas)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    figures = {
        name: None if value < 0 else float(value)
        for name, value in zip(COCO_METRICS, judge.stats, strict=True)
    }
    return figures, RankedDetections.from_cocoeval(judge)


def _match(
    persons: list[dict], results: list[dict], truth: dict, skeleton: Skeleton
) -> tuple[str, list[np.ndarray | None]]:
    """How persons were matched, and for each its predicted keypoints (K, 2) or None."""
    carried = sum(r.get("annotation_id") is not None for r in results)
    if carried not in (0, len(results)):
        raise SagecacheError(
            f"{carried} of {len(results)} predictions carry an annotation_id",
            fix="Give it to all (annotated boxes) or to none (detected boxes)",
        )
    if carried:
        return "annotation_id of the box", _match_by_annotation(persons, results, truth)
    return f"OKS >= {MIN_MATCH_OKS:g}, best score first", _match_by_oks(persons, results, skeleton)


def _match_by_annotation(persons: list[dict], results: list[dict], truth: dict) -> list[np.ndarray | None]:
    image_of = {a["source_id"]: a["image_id"] for a in truth["annotations"]}
    if len(image_of) != len(truth["annotations"]):
        ids = Counter(a["source_id"] for a in truth["annotations"])
        key, count = next((key, count) for key, count in ids.items() if count > 1)
        told = f"{count} annotations have no id" if key is None else f"{count} annotations have the id {key}"
        raise SagecacheError(
            f"{told} in the ground truth, and boxes are matched by it",
            fix="Give each its own; 'sagecache data check' lists them all",
        )
    by_annotation: dict[int, np.ndarray] = {}
    for result in results:
        key = result["annotation_id"]
        if image_of.get(key) != result["image_id"]:
            raise SagecacheError(
                "no such annotation in that image",
                record=f"prediction for image {result['image_id']}, annotation {key}",
            )
        if key in by_annotation:
            raise SagecacheError("two predictions for one annotation", record=f"annotation {key}")
        by_annotation[key] = _points(result)
    return [by_annotation.get(person["source_id"]) for person in persons]


def _match_by_oks(persons: list[dict], results: list[dict], skeleton: Skeleton) -> list[np.ndarray | None]:
    rows: dict[int, tuple[list[int], list[np.ndarray]]] = {}
    for i, person in enumerate(persons):
        rows.setdefault(person["image_id"], ([], []))[0].append(i)
    for result in results:  # sorted: best score of an image first
        if result["image_id"] in rows:
            rows[result["image_id"]][1].append(_points(result))
    found: list[np.ndarray | None] = [None] * len(persons)
    for members, predicted in rows.values():
        if not predicted:
            continue
        keypoints = np.array([persons[i]["keypoints"] for i in members], dtype=np.float64)
        areas = np.array([persons[i]["area"] for i in members], dtype=np.float64)
        keypoints = keypoints.reshape(len(members), -1, 3)
        similarity = oks(np.stack(predicted), keypoints, areas, skeleton.sigmas)
        for p, row in enumerate(similarity):
            best = int(row.argmax())
            if row[best] >= MIN_MATCH_OKS:
                found[members[best]] = predicted[p]
                similarity[:, best] = -1.0  # taken
    return found


def _points(result: Mapping) -> np.ndarray:
    return np.asarray(result["keypoints"], dtype=np.float64).reshape(-1, 3)[:, :2]


def _count_correct(
    persons: list[dict],
    found: list[np.ndarray | None],
    image_ids: np.ndarray,
    normaliser: str,
    thresholds: tuple[float, ...],
    skeleton: Skeleton,
) -> tuple[np.ndarray, np.ndarray]:
    """Correct (thresholds, I, K) and labeled (I, K) joints of each image, int64."""
    count = skeleton.num_keypoints
    correct = np.zeros((len(thresholds), len(image_ids), count), dtype=np.int64)
    labeled = np.zeros((len(image_ids), count), dtype=np.int64)
    if not persons:
        return correct, labeled
    truth = np.array([p["keypoints"] for p in persons], dtype=np.float64).reshape(-1, count, 3)
    sides = np.array([p["bbox"][2:] for p in persons], dtype=np.float64)
    size = np.linalg.norm(sides, axis=1) if normaliser == "diagonal" else sides.max(axis=1)
    if not (size > 0).all():
        bad = persons[int(np.argmin(size))]
        raise SagecacheError("box has no size", record=f"annotation {bad['source_id']}")
    predicted = np.stack([np.full((count, 2), np.inf) if one is None else one for one in found])
    error = np.linalg.norm(predicted - truth[..., :2], axis=-1) / size[:, None]  # (P, K)
    visible = truth[..., 2] > 0
    row = np.searchsorted(image_ids, [p["image_id"] for p in persons])
    np.add.at(labeled, row, visible)
    for t, threshold in enumerate(thresholds):
        np.add.at(correct[t], row, visible & (error <= threshold))
    return correct, labeled


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
