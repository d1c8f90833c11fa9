"""Imported maps against a plane, against the teacher that made them, and files that are wrong."""

import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from toy_store import tree
from toy_teacher import ToyTeacher, geo_job, make_instances

from sagecache.errors import SagecacheError
from sagecache.precompute.imported import ImportedMaps
from sagecache.precompute.jobs import RunOptions
from sagecache.precompute.runner import run_geo
from sagecache.store import StoreReader
from sagecache.store.codec import decode_depth, decode_normal, depth_error_bound
from sagecache.teachers.base import TeacherSpec

SPEC = TeacherSpec("imported", (12, 16), (12, 16), ("depth", "normal", "mask"), "affine", "relative")
SHAPE = (50, 40)  # of the toy images: rows, columns


def truth(image_id: int) -> dict[str, np.ndarray]:
    """A tilted plane whose normals are known, in OpenGL's axes as Sapiens has them, and an oval mask."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.float32)
    normal = np.array([0.48, -0.36, 0.8], np.float32)
    return {
        "depth": image_id + 0.02 * x - 0.01 * y,
        "normal": np.broadcast_to(normal, (*SHAPE, 3)).copy(),
        "mask": ((x - 20) / 18) ** 2 + ((y - 25) / 23) ** 2 < 1,
    }


@pytest.fixture
def folders(images, tmp_path) -> dict[str, Path]:
    folders = {name: tmp_path / name for name in ("depth", "normal", "mask")}
    for name, folder in folders.items():
        folder.mkdir()
        for image_id, path in images:
            np.save(folder / f"{path.stem}.npy", truth(image_id)[name])
    return folders


def imported(folders, instances, spec: TeacherSpec = SPEC, **changes) -> ImportedMaps:
    images = instances[0].path.parent, [one.path for one in instances]
    outputs = tuple(name for name in spec.outputs if name in folders or name == "mask")
    return ImportedMaps(folders, images, replace(spec, outputs=outputs), **changes)


def test_a_plane_is_stored_as_it_is_with_normals_in_our_axes(folders, instances, tmp_path):
    report = run_geo(geo_job(tmp_path / "geo", instances), imported(folders, instances))
    assert (report.total, report.computed, report.failed) == (14, 14, [])
    reader = StoreReader(tmp_path / "geo")
    assert reader.complete and reader.verify() == [] and reader.size == (12, 16)
    assert reader.fingerprint["teacher"]["type"] == "imported"
    for one in instances:
        stored = reader.read(*one.key)
        affine = stored["target_from_image"]
        y, x = np.mgrid[:16, :12]
        x, y = (x - affine[0, 2]) / affine[0, 0], (y - affine[1, 2]) / affine[1, 1]
        deep = ((x - 20) / 15) ** 2 + ((y - 25) / 19) ** 2 < 1  # the kernel sees nothing but mask
        assert deep.sum() > 60 and stored["mask"][deep].all()
        far = ((x - 20) / 21) ** 2 + ((y - 25) / 27) ** 2 > 1
        assert far.any() and not stored["mask"][far].any()
        depth = decode_depth(stored["depth"], stored["depth_range"])
        error = np.abs(depth - (one.image_id + 0.02 * x - 0.01 * y))[deep]
        assert error.max() <= depth_error_bound(stored["depth_range"]) + 1e-6
        cosine = np.tensordot([0.48, 0.36, -0.8], decode_normal(stored["normal"]), 1)[stored["mask"]]
        assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 1


def test_what_a_teacher_says_of_whole_images_imported_is_what_it_says_of_crops(images, instances, tmp_path):
    """A teacher that works pixel by pixel: in both orders resampling is linear, so that they nearly agree."""

    class Colours(ToyTeacher):
        def __call__(self, crops):
            small = torch.from_numpy(crops.copy()).float().permute(0, 3, 1, 2) / 255
            normal = torch.cat([small[:, :2] - 0.5, -torch.ones_like(small[:, :1])], 1)
            return {"depth": 2 + small[:, :1], "normal": normal, "mask": torch.ones_like(small[:, :1])}

    teacher = Colours(replace(SPEC, name="toy"))
    smooth = tmp_path / "smooth"
    smooth.mkdir()
    folders = {name: tmp_path / name for name in ("depth", "normal")}
    for folder in folders.values():
        folder.mkdir()
    rng = np.random.default_rng(0)
    for _, path in images:
        picture = cv2.resize(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8), SHAPE[::-1], interpolation=2)
        assert cv2.imwrite(str(smooth / path.name), picture)
        said = teacher(picture[None, ..., ::-1])
        np.save(folders["depth"] / f"{path.stem}.npy", said["depth"][0, 0].numpy())
        np.save(folders["normal"] / f"{path.stem}.npy", said["normal"][0].numpy())  # (3, H, W) will do
    own = make_instances([(image_id, smooth / path.name) for image_id, path in images])
    run_geo(geo_job(tmp_path / "taught", own), teacher)
    run_geo(geo_job(tmp_path / "imported", own), imported(folders, own, normal_axes="opencv"))
    both = 0
    for one in own:
        first, second = (StoreReader(tmp_path / name).read(*one.key) for name in ("taught", "imported"))
        np.testing.assert_array_equal(first["target_from_image"], second["target_from_image"])
        affine = second["target_from_image"]
        y, x = np.mgrid[:16, :12]
        x, y = (x - affine[0, 2]) / affine[0, 0], (y - affine[1, 2]) / affine[1, 1]
        # at its edge the teacher saw black
        inside = (x > 1.5) & (x < 37.5) & (y > 1.5) & (y < 47.5)
        assert second["mask"][inside].all()
        both += inside.sum()
        a, b = (decode_depth(found["depth"], found["depth_range"])[inside] for found in (first, second))
        assert np.abs(a - b).max() < 0.03 and np.abs(a - b).mean() < 0.005  # of a range of 1
        a, b = (decode_normal(found["normal"])[:, inside] for found in (first, second))
        assert np.degrees(np.arccos((a * b).sum(0).clip(-1, 1))).mean() < 1
    assert both > 14 * 100


def test_what_is_missing_or_wrong_is_noted_for_each_instance_and_the_rest_is_made(
    folders, instances, tmp_path
):
    named = {image_id: f"{image_id:012d}.npy" for image_id in range(3, 10)}
    (folders["depth"] / named[4]).unlink()
    (folders["normal"] / named[5]).write_bytes(b"junk")
    np.save(folders["mask"] / named[6], np.ones((40, 50), bool))
    np.save(folders["depth"] / named[7], np.full(SHAPE, np.nan, np.float32))
    np.save(folders["depth"] / named[8], np.array(["a"] * 4))
    np.save(folders["normal"] / named[9], np.ones((*SHAPE, 2), np.float32))
    report = run_geo(geo_job(tmp_path / "geo", instances), imported(folders, instances))
    reasons = {item.image_id: item.reason for item in report.failed}
    assert len(report.failed) == 12 and set(reasons) == set(range(4, 10))
    for image_id, words in {
        4: "the image's map is missing",
        5: "not a .npy file of numbers",
        6: "the map is 50x40, its image is 40x50",
        7: "no value of the map is finite",
        8: "not a .npy file of numbers",
        9: r"the map has shape (50, 40, 2), not (H, W, 3)",
    }.items():
        assert words in reasons[image_id]
    for image_id, folder in ((5, "normal"), (6, "mask"), (7, "depth")):
        of_image = [item.path for item in report.failed if item.image_id == image_id]
        assert of_image == [folders[folder] / named[image_id]] * 2
    assert not any("pickle" in item.reason or item.nobody for item in report.failed)
    again = run_geo(geo_job(tmp_path / "geo", instances), imported(folders, instances))
    assert again.computed == 0 and again.failed == report.failed, "a later run says no less"
    reader = StoreReader(tmp_path / "geo")
    assert (3, 0) in reader and (3, 1) in reader and (4, 0) not in reader
    with pytest.raises(SagecacheError, match="image's map is missing"):
        run_geo(
            geo_job(tmp_path / "strict", instances), imported(folders, instances), RunOptions(strict=True)
        )


def test_it_resumes_shard_by_shard_and_refuses_files_that_have_changed(folders, instances, tmp_path):
    job = geo_job(tmp_path / "geo", instances)
    run_geo(job, imported(folders, instances), RunOptions(workers=1))
    before = tree(tmp_path / "geo")
    for name in ("complete.json", "targets.zarr/normal/c/2/0/0/0"):
        (tmp_path / "geo" / name).unlink()
    report = run_geo(job, imported(folders, instances), RunOptions(workers=3))
    assert report.computed == 4 and tree(tmp_path / "geo") == before
    np.save(folders["depth"] / f"{3:012d}.npy", np.zeros(SHAPE, np.float32))
    with pytest.raises(SagecacheError, match="teacher.files.sha256.*--force"):
        run_geo(job, imported(folders, instances))


def test_the_fingerprint_knows_names_bytes_and_axes_and_no_place(folders, instances, tmp_path):
    first = imported(folders, instances).fingerprint()
    moved = {name: folder.rename(tmp_path / f"moved-{name}") for name, folder in folders.items()}
    assert imported(moved, instances).fingerprint() == first
    assert first["files"]["count"] == 21
    for changes in ({"normal_axes": "opencv"}, {"towards": True}):
        assert imported(moved, instances, **changes).fingerprint() != first
    (moved["mask"] / f"{9:012d}.npy").unlink()
    assert imported(moved, instances).fingerprint()["files"] != first["files"]
    (moved["depth"] / "other.npy").write_bytes(b"of no image of the split")
    again = imported(moved, instances)
    assert pickle.loads(pickle.dumps(again)).fingerprint() == again.fingerprint()


def test_without_a_mask_folder_values_that_are_nan_are_off_the_mask(folders, instances, tmp_path):
    for image_id in range(3, 10):
        depth = truth(image_id)["depth"]
        depth[:, 20:] = np.nan
        np.save(folders["depth"] / f"{image_id:012d}.npy", depth)
    del folders["mask"], folders["normal"]
    run_geo(geo_job(tmp_path / "geo", instances), imported(folders, instances, towards=True))
    reader = StoreReader(tmp_path / "geo")
    assert reader.fields == ("depth", "mask")
    stored = reader.read(5, 0)
    column = (np.arange(12) - stored["target_from_image"][0, 2]) / stored["target_from_image"][0, 0]
    inside = stored["mask"].any(0)
    assert inside[(column > 1) & (column < 17)].all() and not inside[column > 22].any()
    depth = decode_depth(stored["depth"], stored["depth_range"])
    assert -6 < np.nanmin(depth) and np.nanmax(depth) < -4  # negated


def test_a_box_without_a_finite_value_names_the_map_now_and_later(folders, instances, tmp_path):
    depth = truth(5)["depth"]
    depth[:45] = np.nan  # finite below all boxes alone
    np.save(folders["depth"] / f"{5:012d}.npy", depth)
    del folders["mask"], folders["normal"]
    for _ in range(2):
        report = run_geo(geo_job(tmp_path / "geo", instances), imported(folders, instances))
        assert {(item.image_id, item.reason) for item in report.failed} == {
            (5, "no value of its maps is finite in the box")
        }
        assert {item.path for item in report.failed} == {folders["depth"] / f"{5:012d}.npy"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("square", [False, True])
def test_maps_of_a_picture_that_opencv_turned_come_back_to_its_raw_pixels(orientation, square, tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (40 if square else 30, 40, 3), dtype=np.uint8)
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(raw).save(path, exif=exif)
    turned = cv2.imread(str(path))[..., ::-1].astype(np.float32)
    assert turned.shape[:2] == (raw.shape[:2] if orientation < 5 else raw.shape[1::-1])
    for name in ("depth", "normal"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "depth/a.npy", turned[..., 0])
    height, width = turned.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    outward = np.stack([x - (width - 1) / 2, y - (height - 1) / 2, np.full_like(x, -9)])  # opencv axes
    np.save(tmp_path / "normal/a.npy", outward)
    folders = {name: tmp_path / name for name in ("depth", "normal")}
    maps, valid = ImportedMaps(folders, (tmp_path, [path]), SPEC, "opencv").read(path)
    assert np.array_equal(maps["depth"][0], raw[..., 0]) and valid.all() and valid.shape == raw.shape[:2]
    y, x = np.mgrid[: raw.shape[0], : raw.shape[1]]
    np.testing.assert_allclose(maps["normal"][0], x - (raw.shape[1] - 1) / 2)
    np.testing.assert_allclose(maps["normal"][1], y - (raw.shape[0] - 1) / 2)


def test_maps_of_the_raw_pixels_of_such_a_picture_are_told_by_their_shape(tmp_path):
    path, exif = tmp_path / "a.png", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path, exif=exif)
    depth = np.arange(1200, dtype=np.float32).reshape(30, 40)
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth/a.npy", depth)
    maps, _ = ImportedMaps({"depth": tmp_path / "depth"}, (tmp_path, [path]), SPEC).read(path)
    assert np.array_equal(maps["depth"][0], depth)


def test_files_are_found_below_the_folder_or_in_it_and_no_two_images_share_one(tmp_path):
    images = [tmp_path / "images" / place / "a.jpg" for place in ("x", "y")]
    for place in ("x", "y"):
        (tmp_path / "depth" / place).mkdir(parents=True)
        np.save(tmp_path / "depth" / place / "a.npy", np.zeros((2, 2)))
    folders = {"depth": tmp_path / "depth"}
    maps = ImportedMaps(folders, (tmp_path / "images", images), SPEC)
    assert [maps.files[image]["depth"].parent.name for image in images] == ["x", "y"]
    for place in ("x", "y"):
        (tmp_path / "depth" / place / "a.npy").unlink()
    assert ImportedMaps(folders, (tmp_path / "images", images[:1]), SPEC).files[images[0]]["depth"] == (
        tmp_path / "depth" / "a.npy"
    )
    with pytest.raises(SagecacheError, match="the maps of two images have one name"):
        ImportedMaps(folders, (tmp_path / "images", images), SPEC).fingerprint()


@pytest.mark.parametrize(
    "folders, changes, told",
    [
        ({}, {}, "nothing to import"),
        ({"depth": "gone"}, {}, "gone: there is no such folder"),
        ({"depth": "."}, {"normal_axes": "opengel"}, "did you mean 'opengl'"),
    ],
)
def test_bad_words_are_refused(folders, changes, told, tmp_path):
    with pytest.raises(SagecacheError, match=told):
        ImportedMaps({k: tmp_path / v for k, v in folders.items()}, (tmp_path, []), SPEC, **changes)
