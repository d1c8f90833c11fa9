import pytest

from sagecache.errors import SagecacheError
from sagecache.skeleton.category import is_person, person_categories, require_skeleton, unknown_categories
from sagecache.skeleton.definition import COCO17

PERSON, DOG, INFANT = {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 7, "keypoints": ["nose"]}


@pytest.mark.parametrize(
    ("categories", "found"),
    [([PERSON, DOG], {1}), ([INFANT, DOG], {7}), ([INFANT, PERSON], {1, 7}), ([DOG], None), ([], None)],
)
def test_a_person_is_named_so_or_has_keypoints(categories, found):
    assert person_categories({"categories": categories}) == found


def test_without_categories_everybody_is_one():
    assert person_categories({}) is None and is_person({"category_id": 18}, None)


def test_only_another_category_makes_no_person():
    assert is_person({"category_id": 1}, {1}) and is_person({}, {1})
    assert not is_person({"category_id": 18}, {1})


def test_annotations_of_a_category_that_is_not_listed_are_counted():
    strange = [{"category_id": 3}, {"category_id": 3}, {"category_id": 4}, {}]
    coco = {"categories": [PERSON, INFANT], "annotations": [{"category_id": 1}, *strange]}
    assert unknown_categories(coco) == "3 annotations have category_id 3, 4, the file knows 1 (person), 7"
    one = {"categories": [PERSON], "annotations": [{"category_id": 18}]}
    assert unknown_categories(one) == "1 annotation has category_id 18, the file knows 1 (person)"
    assert unknown_categories({**one, "categories": [PERSON, DOG]}) == ""
    assert unknown_categories({**one, "categories": []}) == ""


def test_a_file_whose_annotations_are_all_of_an_unlisted_category_is_refused():
    coco = {"categories": [PERSON], "annotations": [{"category_id": 3}, {"category_id": 3}]}
    with pytest.raises(
        SagecacheError, match="a.json: 2 annotations have category_id 3, the file knows 1 .person"
    ):
        require_skeleton(coco, COCO17, "a.json")
    require_skeleton({**coco, "annotations": [{"category_id": 3}, {"category_id": 1}]}, COCO17, "a.json")
    require_skeleton({**coco, "annotations": []}, COCO17, "a.json")
