from dataclasses import replace

import numpy as np
import pytest
from toy_teacher import ToyDetector, ToyTeacher, detect_job, geo_job, make_instances, write_images

from sagecache.errors import SagecacheError
from sagecache.precompute.estimates import estimate_detect, estimate_geo, estimate_stats
from sagecache.precompute.jobs import RunOptions, StatsJob
from sagecache.precompute.runner import run_detect, run_geo, run_stats
from sagecache.skeleton.definition import COCO17


def test_an_estimate_writes_nothing_and_is_near_the_truth(tmp_path):
    instances = make_instances(write_images(tmp_path / "images", 30), each=4)
    job, teacher = geo_job(tmp_path / "geo", instances, shard_size=16), ToyTeacher(pause=0.01)
    guess = estimate_geo(job, teacher)
    assert (guess.total, guess.missing) == (120, 120) and not (tmp_path / "geo").exists()
    # a pause of 10 ms for a batch of 3 and for the last of each shard
    assert guess.seconds > 120 / 3 * 0.01
    report = run_geo(job, ToyTeacher())
    arrays = sum(p.stat().st_size for p in (tmp_path / "geo").rglob("c/**/*") if p.is_file())
    assert 0.85 < guess.bytes / arrays < 1.15 and arrays < report.bytes
    (tmp_path / "geo/targets.zarr/mask/c/7/0/0").unlink()
    assert estimate_geo(job, teacher).missing == 8
    assert estimate_geo(job, teacher, RunOptions(force=True)).missing == 120
    with pytest.raises(SagecacheError, match="teacher.version"):
        estimate_geo(job, ToyTeacher(version=2))


def test_an_estimate_of_boxes_counts_what_is_missing_and_writes_nothing(images, tmp_path):
    job, before = detect_job(tmp_path, images), sorted(tmp_path.rglob("*"))
    guess = estimate_detect(job, ToyDetector())
    assert (guess.total, guess.missing) == (7, 7) and sorted(tmp_path.rglob("*")) == before
    report = run_detect(job, ToyDetector())
    assert 0.7 < guess.bytes / report.bytes < 1.3
    assert estimate_detect(job, ToyDetector()).missing == 0
    assert estimate_detect(job, ToyDetector(), RunOptions(force=True)).missing == 7
    assert estimate_detect(job, ToyDetector(), RunOptions(limit=3)).total == 3
    assert estimate_detect(detect_job(tmp_path, []), ToyDetector()).total == 0


def test_an_estimate_of_statistics_refuses_those_of_other_labels_as_a_run_does(instances, tmp_path):
    rng = np.random.default_rng(0)
    labeled = [
        replace(one, keypoints=np.c_[rng.uniform(0, 50, (17, 2)), np.full(17, 2)]) for one in instances
    ]
    job = StatsJob(tmp_path / "skeleton_stats.json", labeled, COCO17)
    guess = estimate_stats(job)
    assert (guess.total, guess.missing) == (14, 14) and not job.result.exists()
    report = run_stats(job)
    there = estimate_stats(job)
    assert (there.total, there.missing, there.bytes) == (14, 0, report.bytes)
    fewer = replace(job, instances=labeled[1:])
    with pytest.raises(SagecacheError, match="made from other labels.*precompute stats --force"):
        estimate_stats(fewer)
    assert estimate_stats(fewer, RunOptions(force=True)).missing == 13
