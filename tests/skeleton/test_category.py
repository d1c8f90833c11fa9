import pytest

from sagecache.skeleton.category import is_person, person_categories

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
