"""A store that changes under an open reader: the reader follows the same store and refuses another."""

import pickle

import numpy as np
import pytest
from bucket import bucket
from toy_store import Content, expected, make_content

from sagecache.errors import SagecacheError
from sagecache.store import StoreReader, set_aside
from sagecache.store.opened import OpenedStore

ANEW = "was made anew since it was opened"


def keys_of(content: Content) -> list[tuple[int, int]]:
    return [tuple(pair) for row, pair in enumerate(content.plan.ids.tolist()) if row not in content.failed]


def assert_right_or_refused(reader: StoreReader, content: Content) -> int:
    """Each instance is content's own, or the reader says that the store is another; returns how many came."""
    came = 0
    for row, pair in enumerate(content.plan.ids.tolist()):
        if row in content.failed:
            continue
        try:
            found = reader.read(*pair)
        except SagecacheError as error:
            assert ANEW in str(error)
            continue
        came += 1
        for name, values in expected(content, row).items():
            assert np.array_equal(found[name], values), (row, name)
    return came


def other(content: Content, how: str) -> Content:
    if how == "another teacher":
        return Content(
            content.plan, content.fields, make_content(seed=7).maps, content.failed, {"teacher": "other"}
        )
    if how == "other boxes":
        return Content(make_content(seed=7).plan, content.fields, content.maps, content.failed)
    return content.only(list(reversed(range(len(content.plan)))))


@pytest.mark.parametrize("how", ["another teacher", "other boxes", "another order"])
@pytest.mark.parametrize("warm", [0, 3])
def test_a_store_made_anew_under_a_reader_is_never_mistaken_for_the_old(content, store, how, warm):
    reader = StoreReader(store)
    for pair in keys_of(content)[:warm]:  # of some shards the files are open already
        reader.read(*pair)
    assert len(reader.ids) == 10
    set_aside(store)
    other(content, how).write(store)
    came = assert_right_or_refused(reader, content)
    assert came < len(keys_of(content))
    with pytest.raises(SagecacheError, match=ANEW):
        reader.boxes(keys_of(content))


def test_the_same_store_made_anew_elsewhere_is_refused_as_well(content, store):
    reader = StoreReader(store)
    assert len(reader) == 10
    set_aside(store)
    with pytest.raises(SagecacheError, match="there is no target store|file is missing"):
        reader.read_many(keys_of(content))
    content.write(store)
    with pytest.raises(SagecacheError, match=ANEW):
        reader.read_many(keys_of(content))


@pytest.mark.parametrize("touched, now", [(0, "old"), (8, "new")])
def test_a_shard_mended_with_other_numbers_comes_whole_old_or_new(content, store, touched, now):
    reader = StoreReader(store)
    reader.read(*content.plan.ids[touched].tolist())  # of this shard the files stay open
    mended = Content(content.plan, content.fields, make_content(seed=3).maps, content.failed)
    for name in ("depth/c/0/0/0", "normal/c/0/0/0/0", "mask/c/0/0/0", "depth_range/c/0/0", "status/c/0"):
        (store / "targets.zarr" / name).unlink()
    with mended.open(store) as writer:
        assert writer.missing() == [0]
        mended.commit(writer, 0)
        writer.finish()
    found = reader.read(*content.plan.ids[1].tolist())
    for name, values in expected(content if now == "old" else mended, 1).items():
        assert np.array_equal(found[name], values), name


def test_shards_mended_one_by_one_are_never_mixed_with_what_was_read_before(content, store):
    mended = Content(content.plan, content.fields, make_content(seed=3).maps, content.failed)
    for path in (store / "targets.zarr/depth/c").glob("*/0/0"):
        path.write_bytes(b"damaged")
    with mended.open(store) as writer:
        assert writer.missing() == [0, 1, 2]
        reader = StoreReader(store, partial=True)
        for shard in writer.missing():
            mended.commit(writer, shard)
            for row, pair in enumerate(content.plan.ids.tolist()[: 4 * (shard + 1)]):
                if row not in content.failed:
                    found = reader.read(*pair)
                    assert all(np.array_equal(found[name], v) for name, v in expected(mended, row).items())


def test_a_reader_that_was_pickled_knows_its_store_again(content, store):
    reader = StoreReader(store)
    reader.read(*keys_of(content)[0])
    sent = pickle.dumps(reader)
    again = pickle.loads(sent)
    assert np.array_equal(again.read(*keys_of(content)[1])["depth"], expected(content, 1)["depth"])
    set_aside(store)
    other(content, "another teacher").write(store)
    for late in (pickle.loads(sent), pickle.loads(pickle.dumps(pickle.loads(sent)))):
        with pytest.raises(SagecacheError, match=ANEW):
            late.read(*keys_of(content)[2])


def test_workers_started_while_a_store_grows_read_what_it_had(content, tmp_path):
    small = content.only(range(6))
    reader = StoreReader(small.write(tmp_path / "geo"))
    reader.read(*keys_of(small)[0])
    with content.open(tmp_path / "geo") as writer:
        assert writer.missing() == [1, 2]
        late = pickle.loads(pickle.dumps(reader))
        assert assert_right_or_refused(late, small) == len(keys_of(small))


def test_a_reader_goes_on_while_its_store_grows(content, tmp_path):
    small = content.only(range(6))
    root = small.write(tmp_path / "geo")
    reader = StoreReader(root)
    reader.read(*keys_of(small)[0])
    assert_right_or_refused(reader, small)
    with content.open(root) as writer:
        fresh = StoreReader(root, partial=True)
        assert_right_or_refused(reader, small)
        for shard in writer.missing():
            content.commit(writer, shard)
            assert assert_right_or_refused(reader, small) == len(keys_of(small))
        writer.finish()
    assert assert_right_or_refused(reader, small) == len(keys_of(small))
    assert fresh.read_many(keys_of(content))["status"].tolist() == [1] * 9


def test_a_store_that_is_not_touched_is_opened_once(content, store, monkeypatch):
    opened = []
    real = OpenedStore.__init__
    monkeypatch.setattr(OpenedStore, "__init__", lambda self, *a: opened.append(1) or real(self, *a))
    reader = StoreReader(store)
    for pair in keys_of(content):
        reader.read(*pair)
    assert len(opened) == 1


def test_a_store_made_anew_in_a_bucket_is_refused(content, monkeypatch):
    monkeypatch.setattr("sagecache.store.remote._LOOK_AGAIN", 1e-9)
    with bucket() as place:
        url = f"{place}/anew/geo"
        content.write(url)
        reader = StoreReader(url)
        reader.read(*keys_of(content)[0])
        set_aside(url)
        other(content, "another teacher").write(url)
        assert assert_right_or_refused(reader, content) == 0


def test_arrays_that_targets_do_not_fit_are_refused(content, store):
    reader, keys = StoreReader(store), keys_of(content)[:2]
    good = reader.allocate(2)
    frozen = np.zeros_like(good["depth"])
    frozen.flags.writeable = False
    for out, told in [
        ({"depth": np.zeros_like(good["depth"], np.float16)}, "'depth' is float16"),
        ({"depth": good["depth"][:1]}, "not uint16"),
        ({"depth": frozen}, "not writeable"),
        ({"mask": good["mask"].transpose(0, 2, 1).copy().transpose(0, 2, 1)}, "not contiguous"),
        ({"dpeth": good["depth"]}, "has no 'dpeth'"),
    ]:
        with pytest.raises(SagecacheError, match=told):
            reader.read_many(keys, out=out)
    assert not frozen.any()


def test_damage_of_a_small_array_names_the_shard_and_its_instances(content, store):
    keys = keys_of(content)
    for name, wanted in (("depth_range/c/1/0", keys[4]), ("status/c/1", keys[4])):
        path = store / "targets.zarr" / name
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        first = "image_id {}, instance {}".format(*content.plan.ids[4].tolist())
        with pytest.raises(SagecacheError, match=f"shard 1, {first} to image_id .* Delete this file and run"):
            StoreReader(store).read(*wanted)
        path.write_bytes(data)
