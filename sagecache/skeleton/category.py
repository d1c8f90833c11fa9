"""Which annotations of a COCO dict are of persons: decided here once, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sagecache.errors import SagecacheError
from sagecache.skeleton.definition import Skeleton


def person_categories(coco: Mapping) -> set[int] | None:
    """Ids of the categories named 'person' or with keypoint names; None (all) where there are none."""
    categories = coco.get("categories") or ()
    return {c["id"] for c in categories if c.get("name") == "person" or c.get("keypoints")} or None


def require_skeleton(coco: Mapping, skeleton: Skeleton, file: object) -> None:
    """Raise SagecacheError where the persons of a COCO dict are of another skeleton, by name or by count."""
    fix = "Name theirs, an mmpose dataset_info page: --dataset-info of 'init', dataset_info in data.py."
    for category in coco.get("categories") or ():
        names = tuple(category.get("keypoints") or ())
        if names and names != skeleton.names:
            raise SagecacheError(
                f"its keypoints ({', '.join(names[:3])}, …) are not those of the skeleton '{skeleton.name}' "
                f"({', '.join(skeleton.names[:3])}, …): {_difference(names, skeleton.names)}",
                file=file,
                fix=fix,
            )
    counts = {len(one["keypoints"]) // 3 for one in coco["annotations"] if one.get("keypoints")}
    if counts and skeleton.num_keypoints not in counts:
        raise SagecacheError(
            f"persons have {', '.join(map(str, sorted(counts)))} keypoints, and the skeleton "
            f"'{skeleton.name}' has {skeleton.num_keypoints}",
            file=file,
            fix=fix,
        )


def person_category(coco: Mapping) -> int:
    """The category that predictions are written under: the annotations' own, COCO's 1 where there is none."""
    return min(person_categories(coco) or {1})


def is_person(annotation: Mapping, persons: set[int] | None) -> bool:
    """Whether an annotation is of one of these categories; one without category_id is."""
    return persons is None or annotation.get("category_id") in persons | {None}


def _difference(names: Sequence[str], expected: Sequence[str]) -> str:
    if len(names) != len(expected):
        return f"{len(names)}, not {len(expected)}"
    place = next(k for k in range(len(names)) if names[k] != expected[k])
    return f"number {place + 1} is '{names[place]}', not '{expected[place]}'"
