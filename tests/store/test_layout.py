import json
import warnings

import numpy as np
import pytest
import zarr
from toy_store import make_content

from sagecache.errors import SagecacheError
from sagecache.store import layout
from sagecache.store.fingerprint import sha256


def test_the_manifest_vouches_for_every_file_that_is_written_before_the_targets(store):
    manifest = layout.read_manifest(store)
    for name, (size, expected) in manifest["files"].items():
        data = (store / name).read_bytes()
        assert (len(data), sha256(data)) == (size, expected)
    journal = (store / "journal.jsonl").read_text()
    for path in (p for p in (store / "targets.zarr").rglob("*") if p.is_file()):
        name = str(path.relative_to(store))
        assert name in manifest["files"] or f'"{path.relative_to(store / "targets.zarr")}"' in journal


def test_zarr_sees_a_group_with_attributes_units_and_dimension_names(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a foreign file in the group would warn
        group = zarr.open_group(str(store / "targets.zarr"), mode="r")
        names = {name for name, _ in group.arrays()}
    assert names == {
        *("depth", "normal", "mask", "depth_range", "status"),
        *("ids", "bbox", "image_sha256", "target_from_image"),
    }
    about = group.attrs["sagecache"]
    assert about["format"] == 1 and about["split"] == "x" and about["size"] == [6, 8]
    assert about["made_from"]["padding"] == 1.25
    assert group["depth"].attrs["unit"] == "m" and group["depth"].attrs["range_array"] == "depth_range"
    assert group["normal"].metadata.dimension_names == ("instance", "uv", "y", "x")
    assert group["status"].attrs["codes"]["3"] == "the image could not be read"


def test_identity_depends_on_each_part_of_the_plan(content):
    base = layout.identity(content.plan, content.fields, {"a": 1}, 4)
    other = layout.identity(make_content(seed=1).plan, content.fields, {"a": 1}, 4)
    differing = {key for key in base["plan"] if base["plan"][key] != other["plan"][key]}
    assert differing == {"image_sha256", "bbox", "target_from_image"}


def test_a_plan_of_many_chunks_reads_back_by_zarr(tmp_path):
    content = make_content(2500, size=(1, 1), shard_size=2500, outputs=("mask",))
    files = layout.metadata_files(
        content.plan, content.fields, layout.identity(content.plan, content.fields, {}, 2500), {}
    )
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    group = zarr.open_group(str(tmp_path / "targets.zarr"), mode="r")
    assert group["ids"].chunks == (1024, 2)
    assert np.array_equal(group["ids"][:], content.plan.ids)
    assert np.array_equal(group["target_from_image"][:], content.plan.target_from_image)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"identity": 1}'])
def test_a_damaged_manifest_is_an_error_not_an_empty_store(tmp_path, data):
    assert layout.read_manifest(tmp_path) is None
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(SagecacheError, match="manifest is damaged"):
        layout.read_manifest(tmp_path)


def test_manifests_are_plain_json_with_the_fingerprint_in_full(store):
    manifest = json.loads((store / "manifest.json").read_bytes())
    assert manifest["identity"]["fingerprint"]["teacher"] == {"name": "toy", "weights": "aa"}
