import re
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagecache.data.splits import (
    _name_prefix,
    draw_images,
    evenly,
    is_held_out,
    sequence_keys,
    shared,
    subset,
)
from sagecache.errors import SagecacheError


def coco_of(count, labeled=None, name="{:012d}.jpg"):
    images = [{"id": i, "file_name": name.format(i)} for i in range(1, count + 1)]
    labeled = count if labeled is None else labeled
    annotations = [
        {"id": i, "image_id": i, "bbox": [0, 0, 9, 9], "keypoints": [1, 1, 2 if i <= labeled else 0]}
        for i in range(1, count + 1)
    ]
    return {"images": images, "annotations": annotations, "info": "kept"}


@pytest.mark.parametrize("count, positions", [(1, [0]), (3, [0, 4, 9]), (10, range(10)), (99, range(10))])
def test_an_even_choice_reaches_both_ends(count, positions):
    letters = "abcdefghij"
    assert evenly(letters, count) == [letters[k] for k in positions]


@given(st.integers(0, 500), st.integers(1, 600))
def test_an_even_choice_takes_no_item_twice(total, count):
    chosen = evenly(range(total), count)
    assert len(chosen) == min(total, count) and chosen == sorted(set(chosen))


def test_draws_are_nested_repeatable_and_differ_by_seed():
    coco = coco_of(200)
    small, large = draw_images(coco, 20, seed=0), draw_images(coco, 60, seed=0)
    assert len(small) == 20 and len(large) == 60 and set(small) < set(large)
    assert small == draw_images(coco, 20, seed=0) == sorted(small)
    assert len(set(small) & set(draw_images(coco, 20, seed=1))) < 10


def test_draws_do_not_depend_on_the_order_of_the_file():
    coco = coco_of(50)
    turned = {**coco, "images": coco["images"][::-1]}
    assert draw_images(coco, 10, seed=3) == draw_images(turned, 10, seed=3)


def test_draws_are_even():
    """Each of 40 images is drawn about as often over 400 seeds."""
    coco = coco_of(40)
    hits = [0] * 41
    for seed in range(400):
        for i in draw_images(coco, 10, seed):
            hits[i] += 1
    assert sum(hits) == 4000 and min(hits[1:]) > 60 and max(hits) < 145  # binomial: 100 +- 8.7


def test_only_labeled_images_are_drawn_unless_asked():
    coco = coco_of(20, labeled=5)
    assert draw_images(coco, 5, seed=0) == [1, 2, 3, 4, 5]
    with pytest.raises(SagecacheError, match="can't draw 6 of 5 labeled images"):
        draw_images(coco, 6, seed=0)
    assert len(draw_images(coco, 20, seed=0, labeled_only=False)) == 20


def test_sequences_are_drawn_whole():
    records = [
        {"id": 100 * s + f, "file_name": f"baby{s}_{f:03d}.jpg"} for s in range(6) for f in range(10, 20)
    ]
    coco = {"images": records, "annotations": []}
    drawn = draw_images(coco, 25, seed=0, labeled_only=False, by_sequence=True)
    assert len(drawn) == 30  # 25 reached with the third sequence
    assert len({i // 100 for i in drawn}) == 3


def test_a_subset_has_its_annotations_and_nothing_else():
    part = subset(coco_of(10), [3, 7])
    assert [image["id"] for image in part["images"]] == [3, 7]
    assert [a["image_id"] for a in part["annotations"]] == [3, 7] and part["info"] == "kept"
    with pytest.raises(SagecacheError, match="no image has id 11"):
        subset(coco_of(10), [3, 11])


def keys_of(*names, **fields):
    return sequence_keys([{"id": 900 + i, "file_name": n, **fields} for i, n in enumerate(names)])


def test_names_that_tell_the_recording():
    assert keys_of("a_001.jpg", "a_002.jpg", "b_001.jpg") == ["a", "a", "b"]
    assert keys_of("s1/001.jpg", "s1/002.jpg", "s2/frame_001.jpg") == ["s1", "s1", "s2"]
    assert keys_of("s1/cam0-01.png", "s1\\cam1-01.png") == ["s1/cam0", "s1/cam1"]
    assert keys_of("a_001.jpg", "b_001.jpg", "portrait.jpg") == ["a", "b", None]


def test_names_that_tell_nothing():
    coco_rule = [{"id": i, "file_name": f"{folder}/{i:012d}.jpg"} for folder in "ab" for i in (785, 40083)]
    assert sequence_keys(coco_rule) == [None] * 4
    assert keys_of("train_001.jpg", "train_002.jpg") == [None] * 2  # one prefix: the data set's name
    assert keys_of("IMG_0001.jpg", "DSC_0002.jpg", "img0003.jpg") == [None] * 3
    assert keys_of("001.jpg", "002.jpg") == [None] * 2
    assert keys_of("a_1.jpg", "b_2.jpg") == [None] * 2  # one digit numbers variants, not frames
    assert sequence_keys([{"id": 1}, {"id": 2}]) == [None] * 2


def test_a_field_decides():
    assert keys_of("x.jpg", "y.jpg", video_id="crib 7") == ["video_id crib 7"] * 2
    assert keys_of("x.jpg", sequence=None, vid_id=4) == ["vid_id 4"]
    # Numbers start again in every file, so that names, where they tell, must agree too.
    assert keys_of("a_001.jpg", "b_001.jpg", video_id=1) == ["video_id 1 of a", "video_id 1 of b"]


def test_shared_needs_enough_on_both_sides():
    members = {"train": ["a", "a", "b", "b", None, "c"], "val": ["a", "a", "b", None, "d"], "test": ["e"]}
    assert shared(members) == {("train", "val"): ["a", "b"]}
    assert shared(members, fewest=2) == {("train", "val"): ["a"]}


@given(st.text("ab1/._-é ", max_size=12))
def test_the_prefix_of_a_name_is_cut_as_pathlib_would(name):
    """Which is too slow for the names of a large split."""
    path = PurePosixPath(name)
    found = re.fullmatch(r"(.*?)(\d{2,})", path.stem)
    prefix, number = _name_prefix({"file_name": name})
    if name.endswith(("/", ".")) or name.startswith("/") or "//" in name or "/." in name:
        return  # no file, or not in the form in which names are written
    assert number == (int(found[2]) if found else None)
    if found:
        parts = [] if str(path.parent) == "." else [str(path.parent)]
        stem = found[1].strip("_-. ")
        assert prefix == ("/".join([*parts, stem] if stem else parts) or None)


def test_splits_that_measure_are_told_by_their_names():
    assert all(map(is_held_out, ("val", "Test", "val2017", "test_hard", "validation")))
    assert not any(map(is_held_out, ("labeled", "unlabeled", "train", "a_test")))
