"""Ray gives what the local engine gives, whatever becomes of its workers."""

import subprocess
import sys

import pytest
from squares import Squares
from toy_store import python, tree
from toy_teacher import ToyDetector, ToyTeacher, detect_job, geo_job

from sagecache.errors import SagecacheError
from sagecache.precompute.jobs import RunOptions
from sagecache.precompute.ray_engine import RETRIES, run_ray
from sagecache.precompute.runner import run_detect, run_geo


def nothing(count):
    pass


def test_every_number_is_computed_once_and_told_of(ray):
    counts = []
    found = list(run_ray(Squares(), [5, 2, 9, 11, 3], counts.append))
    assert sorted(found) == [(2, 4), (3, 9), (5, 25), (9, 81), (11, 121)]
    assert sum(counts) == 5 + 2 + 9 + 11 + 3
    assert list(run_ray(Squares(), [], counts.append)) == []


def test_an_error_of_the_work_stops_the_run_as_it_would_here(ray):
    with pytest.raises(SagecacheError, match="a.jpg, number 3: bad. Mend it"):
        list(run_ray(Squares(bad=3), [1, 2, 3, 4, 5], nothing))


def test_a_store_made_by_ray_is_the_local_one_byte_for_byte(ray, instances, tmp_path):
    run_geo(geo_job(tmp_path / "here", instances), ToyTeacher())
    report = run_geo(geo_job(tmp_path / "there", instances), ToyTeacher(), RunOptions(engine="ray"))
    assert report.computed == 14
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_detections_made_by_ray_are_the_local_ones(ray, images, tmp_path):
    for engine in ("local", "ray"):
        run_detect(detect_job(tmp_path / engine, images), ToyDetector(), RunOptions(engine=engine))
    assert tree(tmp_path / "local") == tree(tmp_path / "ray")


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(ray, tmp_path):
    work = Squares(fatal=4, deaths=2, notes=tmp_path)
    assert sorted(run_ray(work, range(8), nothing)) == [(k, k * k) for k in range(8)]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_shard_that_kills_every_worker_is_named(ray, tmp_path):
    work = Squares(fatal=1, deaths=99, notes=tmp_path)
    with pytest.raises(SagecacheError, match=f"the workers of shard 1 died.* {RETRIES + 1} times"):
        list(run_ray(work, range(3), nothing))


def test_a_cluster_of_its_own_does_not_alarm(tmp_path):
    """In a process of its own: Ray's core writes to the descriptor of stderr."""
    pytest.importorskip("ray", reason="the engine 'ray' needs the package ray")
    code = (
        "from squares import Squares; from sagecache.precompute.ray_engine import run_ray; "
        "print(sorted(run_ray(Squares(), range(3), lambda count: None)))"
    )
    with python("-c", code, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert out == "[(0, 0), (1, 1), (2, 4)]\n"
    assert "restart" not in err and "authentication" not in err


def test_without_ray_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SagecacheError, match="needs the package ray. pip install"):
        list(run_ray(Squares(), [1], nothing))
