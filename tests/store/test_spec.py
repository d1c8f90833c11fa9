import numpy as np
import pytest

from sagecache.errors import SagecacheError
from sagecache.store.spec import StorePlan, build_fields


def plan_of(ids, **changes):
    count = len(ids)
    parts = {
        "ids": np.array(ids, np.int64).reshape(-1, 2),
        "image_sha256": np.zeros((count, 32), np.uint8),
        "bbox": np.zeros((count, 4)),
        "target_from_image": np.zeros((count, 3, 3)),
        "size": (6, 8),
    }
    return StorePlan(**{**parts, **changes})


def test_fields_come_in_one_order_whatever_the_teacher_says():
    assert [field.name for field in build_fields(["mask", "depth"])] == ["depth", "mask"]
    depth, normal, mask = build_fields(["depth", "normal", "mask"], "disparity", None)
    assert depth.attributes["kind"] == "disparity"
    assert [field.shape((6, 8)) for field in (depth, normal, mask)] == [(8, 6), (2, 8, 6), (8, 6)]


def test_an_unknown_output_is_refused_with_the_nearest_known_one():
    with pytest.raises(SagecacheError, match="did you mean 'normal'"):
        build_fields(["depth", "normals"])


@pytest.mark.parametrize(
    "ids", [[(7, 1), (7, 1)], [(7, 1), (9, 0), (7, 1)], [(9, 2), (7, 0), (7, 1), (7, 1)]]
)
def test_an_id_that_stands_twice_is_refused_and_named(ids):
    with pytest.raises(SagecacheError, match="image_id 7, instance 1: an instance stands twice"):
        plan_of(ids)


def test_ids_with_gaps_negative_numbers_and_in_any_order_are_fine():
    assert len(plan_of([(-3, 0), (-3, 4), (0, 1), (2**40, 0)])) == 4
    assert len(plan_of([(5, 1), (-3, 4), (5, 0)])) == 3


def test_an_empty_plan_and_a_wrong_dtype_are_refused():
    with pytest.raises(SagecacheError, match="at least one"):
        plan_of([])
    with pytest.raises(ValueError, match="bbox is float32"):
        plan_of([(1, 0)], bbox=np.zeros((1, 4), np.float32))
