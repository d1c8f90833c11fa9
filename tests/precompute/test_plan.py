import hashlib
from dataclasses import replace

import numpy as np
import pytest
from toy_teacher import SPEC

from sagecache.errors import SagecacheError
from sagecache.precompute.plan import CropRule, geo_fingerprint, hash_images, limited, plan_geo
from sagecache.store.fingerprint import diff
from sagecache.structures import Instance

CROP = CropRule()


def plan(instances, spec=SPEC, crop=CROP):
    return plan_geo(instances, spec, {"name": "toy"}, crop)


def test_rows_are_the_instances_in_order_with_the_hashes_of_their_files(instances):
    made = plan(instances)
    assert made.store.ids.tolist() == [list(one.key) for one in instances]
    for row, one in enumerate(instances):
        assert bytes(made.store.image_sha256[row]) == hashlib.sha256(one.path.read_bytes()).digest()
        assert tuple(made.store.bbox[row]) == one.bbox


def test_the_padded_box_fills_the_crop_and_the_maps_see_the_crop_at_half_pixel_centres(tmp_path):
    (tmp_path / "a").touch()
    one = Instance(1, 0, tmp_path / "a", (10.0, 20.0, 30.0, 40.0))  # already of the teacher's aspect 3:4
    made = plan([one], crop=CropRule(padding=1.5))
    corners = np.array([[10 - 7.5, 20 - 10, 1], [10 + 37.5, 20 + 50, 1]]).T
    np.testing.assert_allclose((made.crop_from_image[0] @ corners)[:2].T, [[0, 0], [11, 15]], atol=1e-12)
    # crop 12x16 -> map 6x8: the outer edges (-.5 and 11.5) stay edges
    target_from_crop = made.store.target_from_image[0] @ np.linalg.inv(made.crop_from_image[0])
    edges = target_from_crop @ np.array([[-0.5, -0.5, 1], [11.5, 15.5, 1]]).T
    np.testing.assert_allclose(edges[:2].T, [[-0.5, -0.5], [5.5, 7.5]], atol=1e-12)


def test_a_file_that_cannot_be_read_has_a_hash_of_zeros(images, tmp_path):
    hashes = hash_images([images[0][1], tmp_path / "absent.png", tmp_path])
    assert hashes[images[0][1]].any()
    assert not hashes[tmp_path / "absent.png"].any() and not hashes[tmp_path].any()


def test_a_box_without_area_is_named(tmp_path):
    with pytest.raises(SagecacheError, match="image_id 7, instance 2.*positive width"):
        plan([Instance(7, 2, tmp_path / "x.png", (0.0, 0.0, 0.0, 5.0))])


def test_an_instance_given_twice_is_refused(instances):
    with pytest.raises(SagecacheError, match="stands twice"):
        plan([*instances, instances[0]])


def test_the_fingerprint_knows_what_decides_the_numbers_and_no_path(instances):
    base = geo_fingerprint(SPEC, {"name": "toy"}, CropRule(), "fast")
    assert str(instances[0].path.parent) not in str(base)
    name = {"name": "toy"}
    changes = {
        "crop.padding": geo_fingerprint(SPEC, name, CropRule(1.5), "fast"),
        "crop.border": geo_fingerprint(SPEC, name, CropRule(border="replicate"), "fast"),
        "teacher.name": geo_fingerprint(SPEC, {"name": "other"}, CropRule(), "fast"),
        "targets.map_size": geo_fingerprint(replace(SPEC, map_size=(12, 16)), name, CropRule(), "fast"),
        "targets.depth_kind": geo_fingerprint(replace(SPEC, depth_kind="affine"), name, CropRule(), "fast"),
        "exact": geo_fingerprint(SPEC, name, CropRule(), "lossless"),
    }
    for key, changed in changes.items():
        assert [name for name, _, _ in diff(base, changed)] == [key]
    assert geo_fingerprint(SPEC, name, CropRule(), "compact") == base  # other bytes, the same numbers


def test_an_unknown_border_is_refused():
    with pytest.raises(SagecacheError, match="unknown border 'wrap'"):
        CropRule(border="wrap")


def test_a_limit_has_a_place_of_its_own(tmp_path):
    items = list(range(10))
    assert limited(tmp_path / "geo", items, 3) == (tmp_path / "geo-first3", [0, 1, 2])
    assert limited(tmp_path / "detections.json", items, 3)[0].name == "detections-first3.json"
    assert (
        limited(tmp_path / "geo", items, None)
        == limited(tmp_path / "geo", items, 10)
        == (tmp_path / "geo", items)
    )
    with pytest.raises(SagecacheError, match="at least 1"):
        limited(tmp_path / "geo", items, 0)
