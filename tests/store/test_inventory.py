import json
import os

import pytest
from bucket import bucket
from toy_store import make_content

from sagecache.store.files import open_root
from sagecache.store.inventory import RECORDS, find_stores, first_ids, look_at


def test_stores_of_a_folder_are_counted_as_they_were_made(tmp_path):
    make_content(10, failed=(5, 7)).write(tmp_path / "geo")
    part = make_content(6, outputs=("depth",))
    with part.open(tmp_path / "geo-first6") as writer:
        part.commit(writer, 1)
    (tmp_path / "detections.json").write_text("[]")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("no store")
    whole, started = find_stores(tmp_path)
    assert (whole.root.name, started.root.name) == ("geo", "geo-first6")
    assert (whole.instances, whole.done, whole.failed, whole.missing) == (10, 8, 2, 0)
    assert (started.instances, started.done, started.failed, started.missing) == (6, 2, 0, 4)
    assert whole.complete and not started.complete and not whole.problem and not started.problem
    assert (set(whole.fields), started.fields) == ({"depth", "normal", "mask"}, ("depth",))
    assert whole.size == (6, 8) and len(whole.fingerprint_sha256) == 64
    assert find_stores(tmp_path / "nowhere") == []


def test_bytes_are_those_on_the_disk_array_by_array(store):
    facts = look_at(store)
    files = [path for path in store.rglob("*") if path.is_file()]
    assert facts.total_bytes == sum(path.stat().st_size for path in files)
    for name in ("depth", "normal", "mask", "status", "ids", "bbox", "image_sha256", "target_from_image"):
        below = (store / "targets.zarr" / name / "c").rglob("*")
        assert facts.bytes[name] == sum(path.stat().st_size for path in below if path.is_file())
    assert facts.bytes[RECORDS] > (store / "manifest.json").stat().st_size


@pytest.mark.parametrize(
    "spoil, told",
    [
        (lambda root: (root / "manifest.json").write_text("{"), "manifest.json: the manifest is damaged"),
        (lambda root: (root / "manifest.json").unlink(), "there is no target store"),
        (lambda root: newer(root), "manifest.json: the store has format 99"),
        (lambda root: os.truncate(root / "targets.zarr/ids/c/0/0", 5), "ids"),
        (
            lambda root: (root / "targets.zarr/status/zarr.json").unlink(),
            "status/zarr.json: the array's meta",
        ),
        (
            lambda root: (root / "manifest.json").write_text('{"format": 1}'),
            "the manifest is damaged (KeyError",
        ),
    ],
)
def test_a_store_that_can_not_be_read_says_why_and_how_large_it_is(store, spoil, told):
    spoil(store)
    (facts,) = find_stores(store.parent)
    assert told in facts.problem and facts.total_bytes > 1000 and not facts.complete


def newer(root) -> None:
    content = json.loads((root / "manifest.json").read_bytes())
    (root / "manifest.json").write_text(json.dumps({**content, "format": 99}))


def test_a_link_to_a_store_elsewhere_is_not_followed(store, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "geo").symlink_to(store)
    assert find_stores(tmp_path / "here") == []


def test_stores_in_a_bucket_are_found_the_same_way(content, tmp_path):
    here = content.write(tmp_path / "geo")
    with bucket() as url:
        content.write(open_root(f"{url}/cache/val/geo"))
        (far,) = find_stores(open_root(f"{url}/cache/val"))
        near = look_at(here)
        assert (far.instances, far.done, far.failed, far.bytes) == (
            near.instances,
            near.done,
            near.failed,
            near.bytes,
        )
        assert str(far.root) == f"{url}/cache/val/geo"
        assert find_stores(open_root(f"{url}/cache/nowhere")) == []


def test_a_list_of_instances_is_cut_to_the_first():
    assert first_ids([(1, 0), (1, 1)]) == "1/0, 1/1"
    assert first_ids([(k, 0) for k in range(5)]) == "0/0, 1/0, 2/0, … (5)"
