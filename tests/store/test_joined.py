"""Stores of different teachers read as one, against each alone."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from toy_store import make_content, same

from sagecache.errors import SagecacheError
from sagecache.store import StoreReader
from sagecache.store.joined import JoinedReader
from sagecache.store.spec import NOT_DONE, UNREADABLE


def stores(tmp_path, **changes):
    """Depth and mask of one teacher; normals and another mask of a second, whose rows stand otherwise."""
    first = make_content(outputs=("depth", "mask"), failed=(5,))
    second = make_content(outputs=("normal", "mask"), failed=(2,), seed=7)
    plan = replace(second.plan, target_from_image=first.plan.target_from_image, **changes)
    second = replace(second, plan=plan).only([7, 8, 9, 0, 1, 2, 3, 4, 5])  # 6 is missing
    paths = first.write(tmp_path / "depth"), second.write(tmp_path / "normal")
    return first, [StoreReader(path) for path in paths]


def test_every_field_is_that_of_its_own_store_and_masks_meet(tmp_path):
    content, (depth, normal) = stores(tmp_path)
    keys = [tuple(content.plan.ids[row].tolist()) for row in (9, 0, 4)]
    joined = JoinedReader([depth, normal])
    found, a, b = joined.read_many(keys), depth.read_many(keys), normal.read_many(keys)
    assert joined.fields == ("depth", "mask", "normal") and len(joined) == 10
    assert found.keys() == a.keys() | b.keys()
    assert same(found["depth"], a["depth"]) and same(found["depth_range"], a["depth_range"])
    assert same(found["normal"], b["normal"])
    assert same(found["mask"], a["mask"] & b["mask"]) and not same(a["mask"], b["mask"])
    out = joined.allocate(3)
    assert joined.read_many(keys, out)["normal"] is out["normal"] and same(out["mask"], found["mask"])
    one = pickle.loads(pickle.dumps(joined)).read(*keys[1])
    assert all(same(one[name], found[name][1]) for name in found)


def test_an_instance_that_one_store_lacks_is_a_failure_of_the_whole(tmp_path):
    content, readers = stores(tmp_path)
    failures = {(f.image_id, f.instance): f.status for f in JoinedReader(readers).failures()}
    keys = [tuple(pair) for pair in content.plan.ids.tolist()]
    assert failures == {keys[5]: UNREADABLE, keys[2]: UNREADABLE, keys[6]: NOT_DONE}
    with pytest.raises(SagecacheError, match="normal: no targets for.*not in the store's plan"):
        JoinedReader(readers).read(*keys[6])


def test_other_crops_are_refused_by_instance(tmp_path):
    content, readers = stores(tmp_path)
    moved = np.array(content.plan.target_from_image)
    moved[4] += 1
    other = replace(content, plan=replace(content.plan, target_from_image=moved)).write(tmp_path / "moved")
    joined, key = JoinedReader([readers[0], StoreReader(other)]), content.plan.ids[4].tolist()
    joined.read(*content.plan.ids[3].tolist())
    with pytest.raises(SagecacheError, match=f"moved, image_id {key[0]}, instance {key[1]}: another crop"):
        joined.read_many([tuple(content.plan.ids[3].tolist()), tuple(key)])


def test_maps_of_other_sizes_are_refused(tmp_path):
    _, readers = stores(tmp_path)
    small = make_content(size=(3, 4)).write(tmp_path / "small")
    with pytest.raises(SagecacheError, match="different sizes: .*3x4 in .*small.*one map_size"):
        JoinedReader([*readers, StoreReader(small)]).read(5, 0)
