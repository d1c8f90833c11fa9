"""Batches for training: same for any number of workers, resumable at any step, targets by id."""

import dataclasses
import itertools
import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
import torch

from sagecache.data.dataset import (
    CachedTargetDataset,
    ImageReader,
    LabeledViews,
    UnlabeledViews,
    build_loader,
    collate,
)
from sagecache.data.sampling import Draw, MixedBatchSampler
from sagecache.data.targets import dequantise
from sagecache.data.views import STRONG, ViewConfig
from sagecache.errors import SagecacheError
from sagecache.geometry.affine import crop_affine
from sagecache.skeleton import COCO17
from sagecache.store.codec import encode_row, failed_row
from sagecache.store.joined import JoinedReader
from sagecache.store.reader import StoreReader
from sagecache.store.spec import NO_BODY, UNREADABLE, StorePlan, build_fields
from sagecache.store.writer import StoreWriter
from sagecache.structures import Instance

SIZE, MAP_SIZE, PADDING = (48, 64), (24, 32), 1.25
COUNT = 7
STREAMS = ("labeled", "unlabeled")
COMMAND = "sagecache precompute geo --split unlabeled"


@pytest.fixture(scope="module")
def instances(tmp_path_factory) -> list[Instance]:
    """Seven persons in four images; image i has the red level 20 + 30 i."""
    folder = tmp_path_factory.mktemp("images")
    found = []
    for i in range(4):
        image = np.random.default_rng(i).integers(0, 256, (90, 80, 3), dtype=np.uint8)
        image[..., 2] = 20 + 30 * i  # OpenCV writes BGR
        path = folder / f"{100 + i}.png"
        cv2.imwrite(str(path), image)
        for k in range(2 if i < 3 else 1):
            joints = np.random.default_rng(10 * i + k).uniform(10, 70, (17, 3))
            joints[:, 2] = 2
            found.append(Instance(100 + i, k, path, (10.0 + 5 * k, 12.0, 40.0, 60.0), keypoints=joints))
    return found


def target_maps(image_id: int, instance: int) -> dict[str, np.ndarray]:
    """Depth and normals that tell whose they are."""
    width, height = MAP_SIZE
    depth = np.linspace(0, 1, width * height).reshape(1, height, width) + image_id + 10 * instance
    normal = np.zeros((3, height, width))
    normal[2] = -1
    mask = np.zeros((1, height, width), dtype=bool)
    mask[:, 4:-4, 3:-3] = True
    return {"depth": depth, "normal": normal, "mask": mask}


def make_store(
    root, instances, failed=(), status=UNREADABLE, outputs=("depth", "normal", "mask")
) -> StoreReader:
    plan = StorePlan(
        ids=np.array([instance.key for instance in instances], dtype=np.int64),
        image_sha256=np.zeros((len(instances), 32), np.uint8),
        bbox=np.array([instance.bbox for instance in instances], dtype=np.float64),
        target_from_image=np.array([crop_affine(instance.bbox, MAP_SIZE, 1.9) for instance in instances]),
        size=MAP_SIZE,
    )
    fields = build_fields(outputs)
    with StoreWriter.open(root, plan, fields, {"teacher": "test"}, {"command": COMMAND}, 4) as writer:
        for number in writer.missing():
            keys = [tuple(plan.ids[row].tolist()) for row in writer.rows(number)]
            writer.commit(
                number,
                [
                    failed_row(fields, MAP_SIZE, status)
                    if key in failed
                    else encode_row(fields, target_maps(*key))
                    for key in keys
                ],
            )
        writer.finish()
    return StoreReader(root)


@pytest.fixture(scope="module")
def store(tmp_path_factory, instances) -> StoreReader:
    return make_store(tmp_path_factory.mktemp("store") / "geo", instances)


def labeled_views(instances, config=STRONG, **options) -> LabeledViews:
    return LabeledViews(instances, SIZE, PADDING, config, COCO17, **options)


def unlabeled_views(instances, store, views=2, on_missing="error", **options) -> UnlabeledViews:
    return UnlabeledViews(instances, store, SIZE, PADDING, ViewConfig(), STRONG, views, on_missing, **options)


def mixed(instances, store, **sampling) -> tuple[CachedTargetDataset, MixedBatchSampler]:
    dataset = CachedTargetDataset(labeled_views(instances[:3]), unlabeled_views(instances, store))
    return dataset, MixedBatchSampler(3, COUNT, 2, 4, **sampling)


def assert_same(one: dict, two: dict) -> None:
    assert one.keys() == two.keys()
    for stream in one:
        assert one[stream].keys() == two[stream].keys()
        for name, value in one[stream].items():
            assert torch.equal(value, two[stream][name]), (stream, name)


# --- one sample ----------------------------------------------------------------------------------


def test_a_labeled_item_is_the_crop_with_its_joints(instances):
    item = labeled_views(instances, ViewConfig())[1]
    source = instances[1]
    expected = crop_affine(source.bbox, SIZE, PADDING)
    np.testing.assert_allclose(item["view_from_image"], expected, rtol=1e-6)
    homogeneous = np.c_[source.keypoints[:, :2], np.ones(17)]
    np.testing.assert_allclose(item["keypoints"], (homogeneous @ expected.T)[:, :2], atol=1e-3)
    assert item["image"].shape == (3, SIZE[1], SIZE[0]) and item["image"].dtype == np.uint8
    red = item["image"][0]
    assert np.median(red) == 20, "channels first, red first: image 100 has the red level 20"
    assert (item["image_id"], item["instance"]) == source.key
    assert {name: value.dtype for name, value in item.items()} == {
        "image": np.uint8,
        "keypoints": np.float32,
        "visible": np.float32,
        "view_from_image": np.float32,
        "bbox": np.float32,
        "image_id": np.int64,
        "instance": np.int64,
    }


def test_an_unlabeled_item_has_a_weak_and_different_strong_views(instances, store):
    item = unlabeled_views(instances, store, views=3)[Draw(2, (5, 1, 9))]
    assert item["weak"].shape == (3, 64, 48) and item["strong"].shape == (3, 3, 64, 48)
    expected = crop_affine(instances[2].bbox, SIZE, PADDING)
    np.testing.assert_allclose(item["weak_from_image"], expected, rtol=1e-6)
    matrices = item["strong_from_image"]
    assert matrices.shape == (3, 3, 3) and len(np.unique(matrices.round(4), axis=0)) == 3
    assert item["bbox_scale"] == pytest.approx(np.sqrt(40 * 60))


def test_targets_belong_to_the_instance_and_stay_as_stored(instances, store):
    item = unlabeled_views(instances, store)[3]
    assert (item["image_id"], item["instance"]) == (101, 1)
    assert (
        item["depth"].dtype == np.uint16 and item["normal"].dtype == np.uint8 and item["mask"].dtype == bool
    )
    np.testing.assert_allclose(
        item["target_from_image"], crop_affine(instances[3].bbox, MAP_SIZE, 1.9), rtol=1e-6
    )
    decoded = dequantise(collate([item]))
    maps = target_maps(101, 1)
    error = np.abs(decoded["depth"][0].numpy() - maps["depth"])[maps["mask"]].max()
    assert error < 1 / 4000


def test_without_a_store_there_are_views_only(instances):
    item = unlabeled_views(instances, None)[0]
    assert "depth" not in item and "target_from_image" not in item and "weak" in item


def test_strong_views_may_be_none_at_all(instances):
    item = unlabeled_views(instances, None, views=0)[0]
    assert item["strong"].shape == (0, 3, 64, 48) and item["strong_from_image"].shape == (0, 3, 3)


def test_more_strong_views_leave_the_first_ones_as_they_were(instances):
    draw = Draw(0, (1, 2, 3))
    few, many = (
        unlabeled_views(instances, None, views=1)[draw],
        unlabeled_views(instances, None, views=3)[draw],
    )
    np.testing.assert_array_equal(many["strong"][:1], few["strong"])
    np.testing.assert_array_equal(many["weak"], few["weak"])


def test_entropy_alone_decides_the_view(instances):
    views = labeled_views(instances)
    np.testing.assert_array_equal(views[Draw(0, (1, 2))]["image"], views[Draw(0, (1, 2))]["image"])
    assert (views[Draw(0, (1, 2))]["image"] != views[Draw(0, (1, 3))]["image"]).any()


# --- a batch -------------------------------------------------------------------------------------


def test_a_batch_stacks_the_items_of_its_draws(instances, store):
    dataset, sampler = mixed(instances, store, seed=3)
    draws = sampler.step(4)
    batch = dataset[draws]
    assert set(batch) == {"labeled", "unlabeled"}
    assert batch["labeled"]["image"].shape == (2, 3, 64, 48)
    assert batch["unlabeled"]["strong"].shape == (4, 2, 3, 64, 48)
    assert batch["unlabeled"]["depth"].dtype == torch.uint16
    for stream, singles in (("labeled", dataset.labeled), ("unlabeled", dataset.unlabeled)):
        for row, draw in enumerate(getattr(draws, stream)):
            item = singles[draw]
            assert item.keys() == batch[stream].keys()
            for name, value in item.items():
                np.testing.assert_array_equal(batch[stream][name][row].numpy(), value, err_msg=name)


def test_a_stream_without_draws_is_absent(instances):
    dataset = CachedTargetDataset(labeled_views(instances), None)
    batch = dataset[MixedBatchSampler(COUNT, 0, 3, 0).step(0)]
    assert set(batch) == {"labeled"}


def first_batches(dataset, sampler, workers, context=None, count=5) -> list[dict]:
    """A loader over a finite run of steps: a worker that is stopped while a batch is on its way may abort."""
    steps = list(itertools.islice(sampler, count))
    return list(build_loader(dataset, steps, workers, context=context))


@pytest.mark.parametrize("workers, context", [(1, "fork"), (2, "fork"), (1, "spawn")])
def test_workers_do_not_change_the_batches(instances, store, workers, context):
    dataset, sampler = mixed(instances, store, seed=11)
    dataset.unlabeled.images = ImageReader(1 << 20)
    alone = first_batches(dataset, sampler, 0)  # also opens the store and fills the cache before the fork
    helped = first_batches(dataset, sampler, workers, context)
    for one, two in zip(alone, helped, strict=True):
        assert_same(one, two)


def test_loading_leaves_the_global_random_state_alone(instances, store):
    dataset, sampler = mixed(instances, store)
    torch.manual_seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first_batches(dataset, sampler, 0, count=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])


def test_a_pickled_dataset_travels_light(instances, store):
    dataset, sampler = mixed(instances, store)
    dataset.unlabeled.images = ImageReader(1 << 20)
    before = len(pickle.dumps(dataset))
    batch = dataset[sampler.step(0)]
    data = pickle.dumps(dataset)
    assert len(data) == before, "neither open files nor decoded images go along"
    assert_same(pickle.loads(data)[sampler.step(0)], batch)


# --- drawing -------------------------------------------------------------------------------------


# --- missing targets and unusable records --------------------------------------------------------


def test_a_missing_target_names_the_id_and_the_command(tmp_path, instances):
    partial = make_store(tmp_path / "geo", instances[:-2])
    with pytest.raises(SagecacheError) as caught:
        unlabeled_views(instances, partial)
    text = str(caught.value)
    assert "image_id 102, instance 1" in text and COMMAND in text and "1 more of 7" in text


def test_missing_and_failed_targets_are_skipped_and_counted(tmp_path, instances):
    partial = make_store(tmp_path / "geo", instances[:-2], failed={(100, 1)})
    views = unlabeled_views(instances, partial, on_missing="skip")
    assert (views.skipped, views.not_computed) == (3, 2) and len(views) == 4
    assert [instance.key for instance in views.instances] == [(100, 0), (101, 0), (101, 1), (102, 0)]
    for index in range(len(views)):
        assert views[index]["mask"].any()


def test_a_failed_target_is_an_error_with_its_reason(tmp_path, instances):
    failed = make_store(tmp_path / "geo", instances, failed={(101, 0)})
    with pytest.raises(SagecacheError, match="image_id 101, instance 0: the image could not be read"):
        unlabeled_views(instances, failed)


@pytest.mark.parametrize("on_missing", ["error", "skip"])
def test_a_box_in_which_the_teacher_saw_nobody_is_left_out_and_counted(tmp_path, instances, on_missing):
    store = make_store(tmp_path / "geo", instances, {(101, 0)}, NO_BODY)
    views = unlabeled_views(instances, store, on_missing=on_missing)
    assert (views.skipped, views.not_computed) == (1, 0)
    assert (101, 0) not in [one.key for one in views.instances]


def test_an_unknown_answer_to_missing_targets_is_refused(instances, store):
    with pytest.raises(SagecacheError, match="on_missing"):
        unlabeled_views(instances, store, on_missing="ignore")


@pytest.mark.parametrize("bbox", [(0.0, 0.0, 0.0, 5.0), (0.0, 0.0, 5.0, -1.0), (0.0, 0.0, float("nan"), 5.0)])
def test_a_box_without_area_names_its_record(instances, bbox):
    broken = [instances[0], dataclasses.replace(instances[1], bbox=bbox)]
    for build in (labeled_views, lambda found: unlabeled_views(found, None)):
        with pytest.raises(SagecacheError, match="image_id 100, instance 1.*no area"):
            build(broken)


@pytest.mark.parametrize("keypoints", [None, np.zeros((13, 3)), np.zeros((17, 2))])
def test_keypoints_that_do_not_fit_the_skeleton_name_their_record(instances, keypoints):
    broken = [dataclasses.replace(instances[0], keypoints=keypoints)]
    with pytest.raises(SagecacheError, match=r"image_id 100, instance 0.*\(17, 3\)"):
        labeled_views(broken)


# --- images in memory ----------------------------------------------------------------------------


def test_images_are_kept_up_to_the_limit(instances, monkeypatch):
    reads = Counter()

    def counted(path):
        reads[path] += 1
        return np.full((10, 10, 3), len(reads), dtype=np.uint8)

    monkeypatch.setattr("sagecache.data.dataset.read_image", counted)
    images = ImageReader(cache_bytes=650)  # two images of 300 bytes
    paths = [instance.path for instance in instances[::2]]
    for path in paths * 3:
        images(path)
    assert sorted(reads.values()) == [1, 1, 3, 3]
    uncached = ImageReader()
    uncached(paths[0]), uncached(paths[0])
    assert reads[paths[0]] == 3


def test_targets_of_several_stores_arrive_as_those_of_one(tmp_path, instances, store):
    depth = make_store(tmp_path / "depth", instances, outputs=("depth", "mask"))
    lacking = instances[2].key
    normal = make_store(tmp_path / "normal", instances, failed=[lacking], outputs=("normal", "mask"))
    joined = JoinedReader([depth, normal])
    with pytest.raises(SagecacheError, match="normal: no targets for"):
        unlabeled_views(instances, joined)
    views = unlabeled_views(instances, joined, on_missing="skip")
    whole = unlabeled_views([one for one in instances if one.key != lacking], store)
    assert [one.key for one in views.instances] == [one.key for one in whole.instances]
    found, wanted = views.read_targets([0, 3]), whole.read_targets([0, 3])
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
