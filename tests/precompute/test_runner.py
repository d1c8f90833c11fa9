import json
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from toy_store import tree
from toy_teacher import ToyDetector, ToyTeacher, detect_job, geo_job, make_instances, write_images

from sagecache.data.coco import load_detections
from sagecache.errors import SagecacheError
from sagecache.precompute import runner
from sagecache.precompute.jobs import RunOptions, StatsJob
from sagecache.precompute.runner import run_detect, run_geo, run_stats
from sagecache.skeleton.definition import COCO17
from sagecache.skeleton.stats import SkeletonStats
from sagecache.store import StoreReader
from sagecache.store.codec import decode_depth, decode_normal, depth_error_bound


def test_the_store_holds_what_the_teacher_said_within_the_stated_error(instances, tmp_path):
    report = run_geo(geo_job(tmp_path / "geo", instances), ToyTeacher())
    assert (report.total, report.computed, report.failed) == (14, 14, [])
    assert report.bytes == sum(p.stat().st_size for p in (tmp_path / "geo").rglob("*") if p.is_file())
    reader = StoreReader(tmp_path / "geo")
    assert reader.verify() == []
    said = {}

    class Listener(ToyTeacher):
        def __call__(self, crops):
            maps = super().__call__(crops)
            for k in range(len(crops)):
                said[len(said)] = {name: values[k].numpy() for name, values in maps.items()}
            return maps

    run_geo(geo_job(tmp_path / "again", instances), Listener())
    for row, one in enumerate(instances):
        stored, mask = reader.read(*one.key), said[row]["mask"][0] > 0.5
        assert np.array_equal(stored["mask"], mask)
        depth = decode_depth(stored["depth"], stored["depth_range"])
        error = np.abs(depth[mask] - said[row]["depth"][0][mask])
        assert error.max() <= depth_error_bound(stored["depth_range"])
        true = said[row]["normal"] / np.linalg.norm(said[row]["normal"], axis=0)
        cosine = (decode_normal(stored["normal"]) * true).sum(0)[mask]
        assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 1


def test_a_second_run_computes_nothing_and_a_lost_shard_alone_is_made_again(instances, tmp_path):
    job, teacher = geo_job(tmp_path / "geo", instances), ToyTeacher()
    run_geo(job, teacher)
    before = tree(tmp_path / "geo")
    (tmp_path / "geo/targets.zarr/depth/c/2/0/0").unlink()
    teacher.batches.clear()
    assert run_geo(job, teacher).computed == 4
    assert teacher.batches == [3, 1]
    assert run_geo(job, teacher).computed == 0
    assert tree(tmp_path / "geo") == before


def test_bad_inputs_and_outputs_are_reported_and_the_run_goes_on(own_images, tmp_path):
    instances = make_instances(own_images)
    own_images[2][1].write_bytes(b"junk")
    job = geo_job(tmp_path / "geo", instances)
    report = run_geo(job, ToyTeacher())
    assert [(item.image_id, item.instance) for item in report.failed] == [(5, 0), (5, 1)]
    assert "OpenCV" in report.failed[0].reason and report.failed[0].path == own_images[2][1]
    again = run_geo(job, ToyTeacher())  # the reason is in the store, the detail was this run's
    assert [item.reason for item in again.failed] == ["the image could not be read"] * 2
    reader = StoreReader(tmp_path / "geo")
    with pytest.raises(SagecacheError, match="image_id 5, instance 0: the image could not be read"):
        reader.read(5, 0)
    assert (4, 1) in reader and len(reader) == 14


def test_strict_stops_at_the_first_failure_and_keeps_what_is_done(own_images, tmp_path):
    own_images[3][1].write_bytes(b"junk")
    job = geo_job(tmp_path / "geo", make_instances(own_images))
    with pytest.raises(SagecacheError, match="image_id 6, instance 0: the image could not be read.*--strict"):
        run_geo(job, ToyTeacher(), RunOptions(strict=True))
    assert StoreReader(tmp_path / "geo", partial=True).status.tolist() == [1] * 4 + [0] * 10
    with pytest.raises(SagecacheError, match="image_id 6"):
        run_detect(detect_job(tmp_path, own_images), ToyDetector(), RunOptions(strict=True))


def test_another_teacher_or_a_changed_image_is_refused_by_name(own_images, tmp_path):
    job = geo_job(tmp_path / "geo", make_instances(own_images))
    run_geo(job, ToyTeacher())
    before = tree(tmp_path / "geo")
    with pytest.raises(SagecacheError, match=r"fingerprint.teacher.version: 1 -> 2\).*--force"):
        run_geo(job, ToyTeacher(version=2))
    with pytest.raises(SagecacheError, match="fingerprint.crop.padding"):
        run_geo(replace(job, crop=replace(job.crop, padding=2)), ToyTeacher())
    write_images(own_images[0][1].parent, 1, seed=9)
    with pytest.raises(SagecacheError, match="another image than when"):
        run_geo(job, ToyTeacher())
    own_images[0][1].unlink()  # of those that have changed, the missing ones come first
    told = "image_id 3, instance 0: the image of 2 instances is missing.*data check"
    with pytest.raises(SagecacheError, match=told):
        run_geo(job, ToyTeacher())
    run_geo(replace(job, instances=job.instances[2:]), ToyTeacher())
    assert tree(tmp_path / "geo") == before


def test_a_complete_store_in_a_folder_that_cannot_be_written_is_used_as_it_is(
    instances, tmp_path, monkeypatch
):
    job = geo_job(tmp_path / "geo", instances)
    monkeypatch.setattr(runner.os, "access", lambda path, mode: False)  # the mode means nothing to root
    assert run_geo(job, ToyTeacher()).computed == 14
    before = tree(tmp_path)
    monkeypatch.setattr(runner.StoreWriter, "open", lambda *args: pytest.fail("opened for writing"))
    assert (run_geo(job, ToyTeacher()).computed, tree(tmp_path)) == (0, before)
    with pytest.raises(SagecacheError, match="teacher.version: 1 -> 2"):
        run_geo(job, ToyTeacher(version=2))


def test_force_keeps_the_old_store_beside_the_new_one(instances, tmp_path):
    job = geo_job(tmp_path / "geo", instances)
    run_geo(job, ToyTeacher())
    before = tree(tmp_path / "geo")
    report = run_geo(job, ToyTeacher(version=2), RunOptions(force=True))
    assert report.computed == 14 and tree(report.replaced) == before
    assert StoreReader(tmp_path / "geo").fingerprint["teacher"]["version"] == 2


def test_a_limited_run_is_never_taken_for_the_whole(instances, images, tmp_path):
    limit = RunOptions(limit=3)
    assert run_geo(geo_job(tmp_path / "geo", instances), ToyTeacher(), limit).path == tmp_path / "geo-first3"
    assert (
        run_detect(detect_job(tmp_path, images), ToyDetector(), limit).path.name == "detections-first3.json"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "detections-first3.json",
        "detections-first3.meta.json",
        "geo-first3",
    ]
    assert len(StoreReader(tmp_path / "geo-first3")) == 3


def test_progress_starts_with_what_is_there_and_ends_with_everything(instances, tmp_path):
    job, seen = geo_job(tmp_path / "geo", instances), []
    run_geo(job, ToyTeacher())
    (tmp_path / "geo/targets.zarr/mask/c/3/0/0").unlink()
    run_geo(job, ToyTeacher(), progress=lambda *state: seen.append(state))
    assert seen == [(0, 0, "reading images"), (12, 14, "targets"), (14, 14, "targets")]


def test_detections_are_read_back_and_made_once(images, tmp_path):
    job, detector = detect_job(tmp_path, images), ToyDetector()
    report = run_detect(job, detector)
    assert (report.total, report.computed, report.failed) == (7, 7, [])
    assert detector.batches == [
        2,
        1,
        2,
        1,
        1,
    ]  # parts of three, batches of two: no batch reaches into another part
    records = load_detections(report.path)
    assert [r["image_id"] for r in records] == sorted(r["image_id"] for r in records)
    assert run_detect(job, detector).computed == 0
    with pytest.raises(SagecacheError, match="detector.score: 0.3 -> 0.5"):
        run_detect(job, ToyDetector(score=0.5))
    forced = run_detect(job, ToyDetector(score=0.5), RunOptions(force=True))
    assert (forced.replaced / "detections.json").read_bytes() == report.path.read_bytes()


def test_unreadable_images_are_listed_by_every_later_run(own_images, tmp_path):
    own_images[6][1].unlink()
    job = detect_job(tmp_path, own_images)
    for _ in range(2):
        failed = run_detect(job, ToyDetector()).failed
        assert [(item.image_id, item.path) for item in failed] == [own_images[6]]
        assert "missing" in failed[0].reason


def test_images_out_of_order_are_refused(images, tmp_path):
    with pytest.raises(SagecacheError, match="ordered by image_id"):
        run_detect(detect_job(tmp_path, images[::-1]), ToyDetector())


@pytest.fixture
def labeled(instances):
    rng = np.random.default_rng(0)
    keypoints = np.concatenate(
        [rng.uniform(0, 50, (len(instances), 17, 2)), np.full((len(instances), 17, 1), 2)], 2
    )
    return [replace(one, keypoints=k) for one, k in zip(instances, keypoints, strict=True)]


def test_statistics_are_those_of_the_labeled_persons(labeled, tmp_path):
    unlabeled = replace(labeled[0], instance=99, keypoints=None)
    empty = replace(labeled[0], instance=98, keypoints=np.zeros((17, 3)))
    job = StatsJob(tmp_path / "skeleton_stats.json", [*labeled, empty, unlabeled], COCO17)
    report = run_stats(job)
    assert (report.total, report.computed) == (14, 14)
    assert SkeletonStats.load(report.path, COCO17).counts["instances"] == 14
    first = report.path.read_bytes()
    assert run_stats(job).computed == 0
    moved = labeled[3].keypoints + [1, 0, 0]
    changed = replace(job, instances=[*labeled[:3], replace(labeled[3], keypoints=moved), *labeled[4:]])
    with pytest.raises(SagecacheError, match="made from other labels .labels_sha256.*--force"):
        run_stats(changed)
    forced = run_stats(changed, RunOptions(force=True))
    assert (forced.replaced / "skeleton_stats.json").read_bytes() == first
    assert json.loads(report.path.read_bytes()) != json.loads(first)


def test_a_person_of_another_skeleton_is_named(labeled, tmp_path):
    labeled[3] = replace(labeled[3], keypoints=labeled[3].keypoints[:14], annotation_id=77)
    with pytest.raises(
        SagecacheError, match=r"image_id 4, annotation 77: has 14 keypoints, .* 'coco' has 17"
    ):
        run_stats(StatsJob(tmp_path / "skeleton_stats.json", labeled, COCO17))


def test_no_labeled_person_is_said_and_force_then_moves_nothing(labeled, tmp_path):
    job = StatsJob(tmp_path / "skeleton_stats.json", labeled, COCO17)
    run_stats(job)
    nobody = replace(job, instances=[replace(one, keypoints=None) for one in labeled])
    with pytest.raises(SagecacheError, match="no labeled person to summarise"):
        run_stats(nobody, RunOptions(force=True))
    assert [path.name for path in tmp_path.iterdir()] == ["skeleton_stats.json"]


def test_ranks_share_the_shards_and_the_last_one_seals(instances, tmp_path):
    whole = run_geo(geo_job(tmp_path / "whole", instances), ToyTeacher())
    job = geo_job(tmp_path / "shared", instances)  # four shards of at most four
    first = run_geo(job, ToyTeacher(), RunOptions(rank=1, world_size=2))
    assert (first.computed, first.missing) == (whole.total - 8, 8)
    assert not (tmp_path / "shared" / "complete.json").exists()
    last = run_geo(job, ToyTeacher(), RunOptions(rank=0, world_size=2))
    assert (last.computed, last.missing) == (8, 0)
    assert tree(tmp_path / "shared") == tree(tmp_path / "whole")


def test_ranks_share_detection_too(images, tmp_path):
    run_detect(detect_job(tmp_path / "whole", images), ToyDetector())
    job = detect_job(tmp_path / "shared", images)  # three parts of at most three
    first = run_detect(job, ToyDetector(), RunOptions(rank=0, world_size=2))
    assert (first.computed, first.missing, first.failed) == (4, 3, [])
    assert run_detect(job, ToyDetector(), RunOptions(rank=1, world_size=2)).missing == 0
    assert tree(tmp_path / "shared") == tree(tmp_path / "whole")


def test_ranks_at_work_at_once_give_the_store_of_one(instances, tmp_path):
    run_geo(geo_job(tmp_path / "whole", instances), ToyTeacher())
    job, reports = geo_job(tmp_path / "shared", instances), []

    def work(rank):
        reports.append(run_geo(job, ToyTeacher(pause=0.02), RunOptions(rank=rank, world_size=3)))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(report.computed for report in reports) == 14
    assert min(report.missing for report in reports) == 0
    assert tree(tmp_path / "shared") == tree(tmp_path / "whole")


def test_a_second_run_waits_says_so_and_finds_all_done(instances, tmp_path):
    job, entered, told = geo_job(tmp_path / "geo", instances), threading.Event(), []

    class Slow(ToyTeacher):
        def __call__(self, crops):
            entered.set()
            time.sleep(0.05)
            return super().__call__(crops)

    first = threading.Thread(target=run_geo, args=(job, Slow()))
    first.start()
    assert entered.wait(20)
    second = run_geo(job, ToyTeacher(), progress=lambda done, total, text: told.append(text))
    first.join(20)
    assert second.computed == 0 and "waiting for another run that is at work here" in told


def test_verify_makes_anew_only_what_is_damaged(instances, tmp_path):
    job = geo_job(tmp_path / "geo", instances)
    run_geo(job, ToyTeacher())
    sound = tree(tmp_path / "geo")
    shard = tmp_path / "geo/targets.zarr/normal/c/1/0/0/0"
    data = bytearray(shard.read_bytes())
    data[5] ^= 4
    shard.write_bytes(data)
    assert run_geo(job, ToyTeacher()).computed == 0  # sizes are right: nobody looked closer
    assert run_geo(job, ToyTeacher(), RunOptions(verify=True)).computed == 4
    assert tree(tmp_path / "geo") == sound


def test_the_bytes_do_not_depend_on_the_number_of_readers(instances, tmp_path):
    for workers in (1, 4):
        run_geo(geo_job(tmp_path / str(workers), instances), ToyTeacher(), RunOptions(workers=workers))
    assert tree(tmp_path / "1") == tree(tmp_path / "4")


class Broken(ToyTeacher):
    """Fails at once, like weights given for another output; its fingerprint is its own."""

    def fingerprint(self):
        return super().fingerprint() | dict(weights="wrong")

    def __call__(self, crops):
        raise SagecacheError("the network gives normals, not depth")


def test_a_run_that_failed_at_once_is_not_in_the_way_of_the_one_that_mends_it(instances, tmp_path):
    job = geo_job(tmp_path / "geo", instances)
    with pytest.raises(SagecacheError, match="normals, not depth"):
        run_geo(job, Broken())
    report = run_geo(job, ToyTeacher())
    assert report.computed == 14 and StoreReader(tmp_path / "geo").verify() == []
    with pytest.raises(
        SagecacheError, match="made from something else.*weights"
    ):  # here something would be lost
        run_geo(job, Broken())


def test_a_detector_that_failed_at_once_is_not_in_the_way_either(tmp_path):
    job = detect_job(tmp_path / "out", write_images(tmp_path / "images", 3))

    class BrokenDetector(ToyDetector):
        def fingerprint(self):
            return super().fingerprint() | dict(preprocessing="none")

        def __call__(self, images):
            raise SagecacheError("it has no preprocessing")

    with pytest.raises(SagecacheError, match="no preprocessing"):
        run_detect(job, BrokenDetector())
    assert run_detect(job, ToyDetector()).computed == 3
    with pytest.raises(SagecacheError, match="made from something else.*preprocessing"):
        run_detect(job, BrokenDetector())
