"""Which annotations of a COCO dict are of persons: decided here once, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sagecache.errors import SagecacheError, counted
from sagecache.skeleton.definition import Skeleton


def person_categories(coco: Mapping) -> set[int] | None:
    """Ids of the categories named 'person' or with keypoint names; None (all) where there are none."""
    categories = coco.get("categories") or ()
    return {c["id"] for c in categories if c.get("name") == "person" or c.get("keypoints")} or None


def require_skeleton(coco: Mapping, skeleton: Skeleton, file: object) -> None:
    """Raise SagecacheError where the persons of a COCO dict are of another skeleton, by name or by count, or
    where none of its annotations is of a category that it knows.
    """
    persons = person_categories(coco)
    if coco["annotations"] and not any(is_person(one, persons) for one in coco["annotations"]):
        if strangers := unknown_categories(coco):
            raise SagecacheError(strangers, file=file, fix=UNKNOWN_CATEGORY_FIX)
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


def unknown_categories(coco: Mapping) -> str:
    """'9 annotations have category_id 3, the file knows 1 (person)'; '' where each category is listed.

    A file without any lists none, and all its annotations are of persons.
    """
    categories = coco.get("categories") or ()
    known = {one["id"] for one in categories}
    strange = [one["category_id"] for one in coco["annotations"] if one.get("category_id", None) is not None]
    strange = [number for number in strange if number not in known]
    if not known or not strange:
        return ""
    numbers = ", ".join(map(str, sorted(set(strange))))
    listed = ", ".join(
        f"{one['id']} ({one['name']})" if one.get("name") else f"{one['id']}" for one in categories
    )
    verb = "has" if len(strange) == 1 else "have"
    return f"{counted(len(strange), 'annotation')} {verb} category_id {numbers}, the file knows {listed}"


UNKNOWN_CATEGORY_FIX = "Give the annotations of persons the id of the person category, or list theirs"


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
