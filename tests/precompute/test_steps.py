from dataclasses import replace

import cv2
import numpy as np
import pytest
from toy_teacher import SPEC, ToyDetector, ToyTeacher

from oracles import warp
from sagecache.data.coco import read_image
from sagecache.errors import SagecacheError
from sagecache.precompute.plan import CropRule, plan_geo
from sagecache.precompute.steps import DetectWork, FailedItem, detect_part, geo_shard
from sagecache.store.codec import unpack_into
from sagecache.store.spec import NO_BODY, OK, UNREADABLE, UNUSABLE
from sagecache.structures import Instance

CROP = CropRule()


def make_plan(instances, spec=SPEC, crop=CROP):
    return plan_geo(instances, spec, {"name": "toy"}, crop)


class Recorder(ToyTeacher):
    """Keeps its inputs."""

    def __call__(self, crops):
        self.seen = [*getattr(self, "seen", []), *crops]
        return super().__call__(crops)


@pytest.mark.parametrize("border", ["constant", "replicate"])
def test_the_teacher_sees_the_crop_that_the_plan_says(instances, border):
    spec = replace(SPEC, input_size=(48, 64), map_size=(24, 32))  # so large that nothing is averaged first
    teacher, plan = Recorder(spec), make_plan(instances, spec, CropRule(2.5, border))
    geo_shard(plan, teacher, [1], 4)
    image = read_image(instances[1].path).astype(float)
    if border == "replicate":
        margin = 60  # the oracle's outside is black: give it an outside of edge pixels
        image = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        shift = np.array([[1, 0, -margin], [0, 1, -margin], [0, 0, 1.0]])
    else:
        shift = np.eye(3)
    for channel in range(3):
        wanted = warp(image[..., channel], plan.crop_from_image[1] @ shift, spec.input_size)
        # OpenCV interpolates at 1/32 pixel
        np.testing.assert_allclose(teacher.seen[0][..., channel], wanted, atol=255 * 2 / 32)


def one_large_image(folder, pixels):
    path = folder / "large.png"
    assert cv2.imwrite(str(path), pixels)
    return [Instance(1, 0, path, (0.0, 0.0, float(pixels.shape[1]), float(pixels.shape[0])))]


def test_a_shrunken_crop_shows_averages_not_single_pixels(tmp_path):
    rows, columns = np.indices((400, 300))
    checks = np.uint8(255 * ((rows + columns) % 2))  # of one pixel: nothing but grey can be seen from afar
    teacher = Recorder()
    geo_shard(make_plan(one_large_image(tmp_path, np.dstack([checks] * 3))), teacher, [0], 1)
    inside = teacher.seen[0][3:-3, 3:-3].astype(float)
    assert np.abs(inside - 127.5).max() < 6


def test_an_image_wider_than_opencv_can_warp_is_cropped_first(tmp_path):
    pixels = np.zeros((30, 33000, 3), np.uint8)
    pixels[:, 32900:] = 200
    (wide,) = one_large_image(tmp_path, pixels)
    teacher = Recorder()
    both = [wide, replace(wide, instance=1, bbox=(32940.0, 5.0, 15.0, 20.0))]
    assert [row.status for row in geo_shard(make_plan(both), teacher, [0, 1], 2).rows] == [NO_BODY, OK]
    assert (teacher.seen[1] == 200).all() and teacher.seen[0][:, :-1].max() < 10


def test_batches_never_reach_into_another_shard(instances):
    teacher, plan = ToyTeacher(), make_plan(instances)
    for rows in (range(0, 5), range(5, 10), range(10, 14)):
        geo_shard(plan, teacher, rows, batch_size=3)
    assert teacher.batches == [3, 2, 3, 2, 3, 1]


def test_a_shard_does_not_depend_on_what_ran_before(instances):
    plan = make_plan(instances)
    used = ToyTeacher()
    geo_shard(plan, used, range(0, 5), 3)
    assert geo_shard(plan, used, range(5, 10), 3).rows == geo_shard(plan, ToyTeacher(), range(5, 10), 3).rows


@pytest.mark.parametrize(("how", "status"), [("nan", UNUSABLE), ("flat", UNUSABLE), ("empty", NO_BODY)])
def test_one_bad_output_is_noted_and_the_others_are_kept(instances, how, status):
    plan, recorder, teacher = make_plan(instances), Recorder(), ToyTeacher()
    sound = geo_shard(plan, recorder, range(4), 4)
    teacher.poison = {int(recorder.seen[2][0, 0, 0]): how}
    shard = geo_shard(plan, teacher, range(4), 4)
    assert [row.status for row in shard.rows] == [OK, OK, status, OK]
    assert [(item.image_id, item.instance) for item in shard.failed] == [instances[2].key]
    assert [shard.rows[k] for k in (0, 1, 3)] == [sound.rows[k] for k in (0, 1, 3)]
    mask = np.ones((8, 6), bool)
    unpack_into(shard.rows[2].chunks["mask"], mask)
    assert not mask.any()


def test_unreadable_images_are_left_out_of_their_batch_and_told_with_the_reason(own_images, instances):
    own = [replace(one, path=dict(own_images)[one.image_id]) for one in instances]
    own[0].path.write_bytes(b"not an image")
    own[4].path.unlink()
    teacher = ToyTeacher()
    shard = geo_shard(make_plan(own), teacher, range(6), 3)
    assert [row.status for row in shard.rows] == [UNREADABLE, UNREADABLE, OK, OK, UNREADABLE, UNREADABLE]
    assert teacher.batches == [1, 1]
    reasons = [item.reason for item in shard.failed]
    assert "no image that OpenCV can decode" in reasons[0] and "missing" in reasons[2]
    assert not any(str(item.path) in item.reason for item in shard.failed)


def test_a_shard_of_unreadable_images_asks_the_teacher_nothing(own_images, instances):
    own = [replace(one, path=one.path.with_name("absent")) for one in instances]
    teacher = ToyTeacher()
    assert {row.status for row in geo_shard(make_plan(own), teacher, range(4), 3).rows} == {UNREADABLE}
    assert teacher.batches == []


def test_a_teacher_that_breaks_its_spec_stops_the_run(instances):
    spec = replace(SPEC, map_size=(12, 16))
    teacher = ToyTeacher()
    with pytest.raises(
        SagecacheError, match=r"gave shape \(3, 1, 8, 6\) for 'depth', its spec says \(3, 1, 16, 12\)"
    ):
        geo_shard(make_plan(instances, spec), teacher, range(3), 3)
    teacher.spec = replace(SPEC, outputs=("depth",))
    with pytest.raises(SagecacheError, match="gave nothing for 'normal'"):
        geo_shard(make_plan(instances), teacher, range(3), 3)


def test_progress_counts_every_row_once(instances):
    counts = []
    geo_shard(make_plan(instances), ToyTeacher(), range(7), 3, counts.append)
    assert counts == [3, 3, 1]


class Picky(ToyDetector):
    """Refuses pictures less than 10 pixels high, and with them their whole batch; or every picture."""

    def __init__(self, everything: bool = False) -> None:
        super().__init__()
        self.everything = everything

    def __call__(self, images):
        heights = [len(image) for image in images]
        if self.everything or min(heights) < 10:
            raise SagecacheError(f"the processor takes no picture of height {min(heights)}", fix="Mend it.")
        return super().__call__(images)


def test_an_image_that_the_detector_refuses_fails_alone(own_images):
    for image_id, path in (own_images[1], own_images[4]):
        cv2.imwrite(str(path), np.full((3, 200, 3), image_id, np.uint8))
    odd, counts = [own_images[1], own_images[4]], []
    work = DetectWork([own_images], Picky(), batch_size=3)
    ((_, part),) = work([0], counts.append)
    assert counts == [3, 3, 1] and work.detector.batches[-1] == 1
    reason = "the processor takes no picture of height 3"
    assert part.failed == [FailedItem(image_id, None, reason, path) for image_id, path in odd]
    others = [one for one in own_images if one not in odd]
    assert part.detections == detect_part(others, ToyDetector(), 3).detections != []
    assert detect_part(odd[:1], Picky(), 3).failed == part.failed[:1]


def test_a_detector_that_refuses_a_plain_picture_too_stops_the_run(own_images):
    cv2.imwrite(str(own_images[0][1]), np.zeros((3, 200, 3), np.uint8))
    with pytest.raises(
        SagecacheError, match="no picture of height 3. Mend it"
    ):  # the first error, not the last
        detect_part(own_images, Picky(everything=True), 3)


def test_detections_are_coco_records_in_image_order(own_images):
    own_images[1][1].write_bytes(b"junk")
    for image_id, path in (own_images[0], own_images[2]):
        pixels = np.full((9, 9, 3), image_id, np.uint8)  # 3 and 5: three boxes and one
        cv2.imwrite(str(path), pixels)
    part = detect_part(own_images[:3], ToyDetector(), 2)
    assert [(r["image_id"], r["score"]) for r in part.detections] == [
        (3, 0.33333),
        (3, 0.25),
        (3, 0.2),
        (5, 0.33333),
    ]
    assert part.detections[0] == {
        "image_id": 3,
        "category_id": 1,
        "bbox": [1.13, 2.0, 18.87, 28.25],
        "score": 0.33333,
    }
    assert [(item.image_id, item.instance) for item in part.failed] == [(4, None)]
