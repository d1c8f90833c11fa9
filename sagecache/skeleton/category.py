"""Which annotations of a COCO dict are of persons: decided here once, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping


def person_categories(coco: Mapping) -> set[int] | None:
    """Ids of the categories named 'person' or with keypoint names; None (all) where there are none."""
    categories = coco.get("categories") or ()
    return {c["id"] for c in categories if c.get("name") == "person" or c.get("keypoints")} or None


def is_person(annotation: Mapping, persons: set[int] | None) -> bool:
    """Whether an annotation is of one of these categories; one without category_id is."""
    return persons is None or annotation.get("category_id") in persons | {None}
