"""A split that grows: what a store holds stays as it is, what is new goes behind, whatever is killed when."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import expected, make_content, memory_folder, tree

from sagecache.errors import SagecacheError
from sagecache.store import growth
from sagecache.store.ids import IdIndex, first_repeated
from sagecache.store.reader import StoreReader
from sagecache.store.spec import StorePlan
from sagecache.store.verification import verify

FIRST = [1, 4, 5, 6, 9]  # of ten instances, the sixth failed; a tail of one row in shards of four


@pytest.fixture
def small(content):
    return content.only(FIRST)


def assert_holds(root, content):
    reader = StoreReader(root)
    for row in range(len(content.plan)):
        key = tuple(content.plan.ids[row].tolist())
        if row in content.failed:
            with pytest.raises(SagecacheError, match="could not be read"):
                reader.read(*key)
            continue
        found = reader.read(*key)
        for name, values in expected(content, row).items():
            assert np.array_equal(found[name], values), name


def test_new_instances_stand_behind_and_every_id_has_its_own_targets(content, small, tmp_path):
    root = small.write(tmp_path / "geo")
    assert_holds(root, small)
    content.write(root)
    assert_holds(root, content)
    fresh = [row for row in range(10) if row not in FIRST]
    assert StoreReader(root).ids.tolist() == content.plan.ids[FIRST + fresh].tolist()
    assert not (root / "growing.npz").exists() and StoreReader(root).complete


def test_only_new_rows_are_asked_for_and_whole_shards_are_not_touched(content, small, tmp_path):
    root = small.write(tmp_path / "geo")
    shard = root / "targets.zarr/depth/c/0/0/0"
    before, bytes_before = shard.stat().st_mtime_ns, shard.read_bytes()
    with content.open(root) as store:
        assert store.missing() == [1, 2]
        assert [list(store.todo(k)) for k in store.missing()] == [[5, 6, 7], [8, 9]]
        for k in store.missing():
            content.commit(store, k)
        store.finish()
    assert shard.stat().st_mtime_ns == before and shard.read_bytes() == bytes_before


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(9)),
    cuts=st.lists(st.integers(1, 8), max_size=3),
    shard_size=st.integers(1, 6),
)
def test_a_store_grown_in_any_steps_is_read_alike_by_zarr_and_tensorstore(order, cuts, shard_size):
    content = make_content(9, shard_size=shard_size, failed=(2,))
    with memory_folder() as folder:
        root = Path(folder) / "geo"
        for end in [*sorted(set(cuts)), 9]:
            content.only(sorted(order[:end])).write(root)
        assert_holds(root, content)
        reader, group = StoreReader(root), zarr.open_group(str(root / "targets.zarr"), mode="r")
        assert np.array_equal(group["ids"][:], reader.ids)
        good = np.flatnonzero(reader.status == 1)
        batch = reader.read_many([tuple(pair) for pair in reader.ids[good].tolist()])
        for name, values in batch.items():
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{root}/targets.zarr/{name}"}}
            other = tensorstore.open(spec, open=True, read=True).result().read().result()
            assert np.array_equal(group[name][:][good], values) and np.array_equal(other[good], values)


def test_instances_that_left_the_split_stay_in_the_store(content, small, tmp_path):
    root = content.write(tmp_path / "geo")
    before = tree(root)
    small.write(root)
    assert tree(root) == before


@pytest.mark.parametrize(
    "name, what", [("bbox", "box"), ("image_sha256", "image"), ("target_from_image", "crop")]
)
def test_another_box_image_or_crop_of_a_known_instance_is_refused_by_id(content, small, tmp_path, name, what):
    root = small.write(tmp_path / "geo")
    before = tree(root)
    arrays = {
        key: getattr(content.plan, key).copy() for key in ("ids", "bbox", "image_sha256", "target_from_image")
    }
    arrays[name][[4, 6]] += 1
    with pytest.raises(SagecacheError, match=f"2 instances have another {what}.*--force") as error:
        content.open(root, plan=StorePlan(size=content.plan.size, **arrays))
    assert error.value.record == "image_id {}, instance {}".format(*content.plan.ids[4])
    assert tree(root) == before


def test_a_damaged_tail_is_made_again_whole(content, small, tmp_path):
    root = small.write(tmp_path / "geo")
    path = root / "targets.zarr/depth/c/1/0/0"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with content.open(root) as store:
        assert list(store.todo(1)) == [4, 5, 6, 7]
    content.write(root)
    assert_holds(root, content)


def grow_and_die(call: int, content, root: Path) -> None:
    """Grow, and be killed just before the call-th fsync, rename or removal."""
    count = 0

    def counted(function):
        def wrapper(*arguments, **options):
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapper

    os.fsync, os.replace, os.unlink = counted(os.fsync), counted(os.replace), counted(os.unlink)
    content.write(root)
    os._exit(0)


def test_growth_killed_at_any_write_ends_with_the_same_bytes(content, small):
    with memory_folder() as folder:
        whole = content.write(small.write(Path(folder) / "whole"))
        call, finished = 0, False
        while not finished:
            call += 1
            root = small.write(Path(folder) / f"killed-{call}")
            process = os.fork()
            if process == 0:
                grow_and_die(call, content, root)
            finished = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
            content.write(root)
            assert tree(root) == tree(whole), call
        assert call > 30


def test_a_damaged_note_is_told_with_what_may_be_deleted_and_what_goes_on(content, small, tmp_path):
    root = small.write(tmp_path / "geo")
    before, whole = tree(root), tree(content.write(small.write(tmp_path / "whole")))
    growth.begin(root, content.plan)  # and killed before anything else changed
    path = root / "growing.npz"
    sound, told = path.read_bytes(), 0
    damages = [
        sound[:k] + bytes([sound[k] ^ mask]) + sound[k + 1 :] for mask in (16, 255) for k in range(len(sound))
    ]
    for damaged in [b"", b"PK", sound[:5], sound[: len(sound) // 2], *damages]:
        path.write_bytes(damaged)
        try:
            found = growth.begun(root)
        except SagecacheError as error:
            told += 1
            text = str(error)
            assert (
                error.file == path
                and "Delete growing.npz and run 'sagecache precompute geo --split x'" in text
            )
            continue
        assert same_plan(found, content.plan)  # a byte of the archive that says nothing
    assert told > len(damages) / 2
    path.write_bytes(sound[:-9])
    assert [problem.file for problem in verify(root)] == ["growing.npz"]
    with pytest.raises(SagecacheError, match="Delete growing.npz"):
        content.open(root)
    path.unlink()
    assert tree(root) == before
    assert tree(content.write(root)) == whole


def same_plan(one, other):
    arrays = ("ids", "bbox", "image_sha256", "target_from_image")
    return one.size == other.size and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


@pytest.mark.parametrize("half", ["ids", "bbox"])
def test_a_plan_half_rewritten_is_damage_not_a_raw_error(content, small, tmp_path, half):
    """What is left where the note of a growth was deleted too late."""
    root, other = small.write(tmp_path / "geo"), content.write(small.write(tmp_path / "whole"))
    for name in ("manifest.json", f"targets.zarr/{half}/zarr.json", f"targets.zarr/{half}/c/0/0"):
        (root / name).write_bytes((other / name).read_bytes())
    with pytest.raises(SagecacheError, match="plan.*--force"):
        content.open(root)


ids = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12)


@given(ids=ids, wanted=ids)
def test_ids_are_found_in_any_order(ids, wanted):
    rows = np.array(list(dict.fromkeys(ids)), np.int64)
    found = IdIndex(rows).find(np.array(wanted, np.int64))
    places = {tuple(pair): row for row, pair in enumerate(rows.tolist())}
    assert found.tolist() == [places.get(pair, -1) for pair in wanted]


@given(ids=ids)
def test_a_repeated_id_is_found(ids):
    repeated = first_repeated(np.array(ids, np.int64))
    assert (repeated is None) == (len(set(ids)) == len(ids))
    assert repeated is None or ids.count(repeated) > 1
