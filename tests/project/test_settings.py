"""What data.py may say: defaults, types, and errors that name the key."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from sagecache.errors import SagecacheError
from sagecache.project.settings import CropSettings, DataSettings, RenderSettings
from sagecache.strict import build

SPLIT = dict(images="images", annotations="labels.json")


def page(split: dict | None = None, **values) -> DataSettings:
    given = dict(splits=dict(labeled=SPLIT | (split or {})), teacher=dict(type="demo"))
    return build(DataSettings, given | values, "data.py")


def test_two_lines_make_a_project_and_the_rest_has_defaults():
    data = page()
    split = data.splits["labeled"]
    assert (split.images, split.annotations) == (Path("images"), Path("labels.json"))
    assert (split.boxes, split.min_score, split.max_per_image, split.render) == ("annotations", 0.3, 20, None)
    assert data.crop == CropSettings(padding=1.25, border="replicate")
    assert (data.evaluation.area, data.evaluation.pck_normaliser) == ("bbox53", "diagonal")
    assert (data.cache_root, data.work_root, data.dataset_info) == (Path("cache"), Path("work_dirs"), "coco")


def test_a_rendered_split_is_read_to_the_last_leaf():
    data = page(dict(render=dict(look="target", count=24, seed=101, size=[128, 96])))
    assert data.splits["labeled"].render == RenderSettings("target", 24, 101, (128, 96), geometry=True)


def test_what_a_teacher_takes_is_left_to_the_teacher():
    assert page(teacher=dict(type="x", deep=dict(a=[1]))).teacher == dict(type="x", deep=dict(a=[1]))


@pytest.mark.parametrize(
    "values, told",
    [
        (dict(splits=dict(labeled=dict(images="i"))), "missing key 'splits.labeled.annotations'"),
        (dict(splits=[SPLIT]), "'splits' should be a dict"),
        (dict(split=dict(min_score="low")), "'splits.labeled.min_score' should be float, got 'low'"),
        (dict(split=dict(max_per_image=True)), "'splits.labeled.max_per_image' should be int, got True"),
        (dict(split=dict(max_per_image=2.0)), "'splits.labeled.max_per_image' should be int, got 2.0"),
        (dict(split=dict(images=3)), "'splits.labeled.images' should be Path, got 3"),
        (dict(split=dict(image="i")), "unknown key 'splits.labeled.image'. Did you mean 'images'"),
        (
            dict(split=dict(render=dict(look="a", count=1, seed=0, size=(1, 2, 3)))),
            r"'splits.labeled.render.size' should be 2 values, got \(1, 2, 3\)",
        ),
        (dict(crop=dict(border="wrap")), "'crop.border' can't be 'wrap'.*constant, replicate"),
        (dict(evaluation=dict(area="bbox")), "'evaluation.area' can't be 'bbox'. Did you mean 'bbox53'"),
        (dict(crop=1.5), "expected a dict, got 1.5"),
        (dict(teacher="demo"), "'teacher' should be a dict, got 'demo'"),
        (dict(shard_size="big"), "'shard_size' should be int"),
        (dict(shard_size=0), "shard_size is 0, it must be at least 1"),
        (dict(split=dict(max_per_image=-1)), "max_per_image is -1"),
        (dict(split=dict(min_score=1.5)), r"min_score is 1.5, it must be in \[0, 1\]"),
        (dict(split=dict(render=dict(look="a", count=0, seed=0))), "count is 0, it must be at least 1"),
        (dict(split=dict(render=dict(look="a", count=1, seed=-1))), "seed is -1"),
        (dict(split=dict(render=dict(look="a", count=1, seed=0, size=(64, 0)))), "size is 0"),
        (dict(crop=dict(padding=0.0)), "padding is 0.0, it must be positive"),
        (dict(evaluation=dict(padding=float("inf"))), "padding is inf"),
        (dict(more_targets=dict(labled=("x",))), "more_targets: no split 'labled'. did you mean 'labeled'"),
        (dict(codec="lz4"), "'codec' can't be 'lz4'.*compact, fast, lossless|'codec' can't be 'lz4'"),
        (dict(shard_cache=dict(gigabytes=-1.0)), "gigabytes is -1"),
        (dict(stats_splits=("labled",)), "stats_splits: no split 'labled'. did you mean 'labeled'"),
        (dict(cacheroot="c"), "unknown key 'cacheroot'. Did you mean 'cache_root'"),
    ],
)
def test_what_is_wrong_is_named_with_its_page_and_key(values, told):
    with pytest.raises(SagecacheError, match=rf"^data\.py.*: {told}|^data\.py: {told}"):
        page(**values)


def test_settings_cannot_be_changed_behind_a_project_s_back():
    with pytest.raises(FrozenInstanceError):
        page().shard_size = 3
