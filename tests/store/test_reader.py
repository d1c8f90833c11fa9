import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_store import expected, make_content, memory_folder, python, read_sum, same

from sagecache.errors import SagecacheError
from sagecache.store.reader import Failure, StoreReader
from sagecache.store.spec import SETTINGS, UNREADABLE


def good_rows(content):
    return [row for row in range(len(content.plan)) if row not in content.failed]


def key(content, row):
    return tuple(content.plan.ids[row].tolist())


def open_tensorstore(path):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, open=True, read=True).result()


def test_targets_are_what_the_encoders_made(store, content):
    reader = StoreReader(store)
    for row in good_rows(content):
        found, wanted = reader.read(*key(content, row)), expected(content, row)
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert np.array_equal(found[name], values) and found[name].dtype == values.dtype, name


contents = st.fixed_dictionaries(
    {
        "count": st.integers(1, 12),
        "size": st.tuples(st.integers(1, 9), st.integers(1, 9)),
        "shard_size": st.integers(1, 7),
        "seed": st.integers(0, 99),
        "outputs": st.lists(st.sampled_from(["depth", "normal", "mask"]), min_size=1, unique=True).map(tuple),
        "failed": st.lists(st.integers(0, 11), max_size=2).map(tuple),
        "setting": st.sampled_from(list(SETTINGS)),
    }
)


@settings(max_examples=15, deadline=None)
@given(arguments=contents)
def test_zarr_and_tensorstore_read_the_same_from_any_store(arguments):
    with memory_folder() as folder:
        content = make_content(**arguments)
        assert_zarr_and_tensorstore_agree(content, content.write(Path(folder) / "geo"))


def assert_zarr_and_tensorstore_agree(content, root):
    reader, group = StoreReader(root), zarr.open_group(str(root / "targets.zarr"), mode="r")
    rows = good_rows(content)
    batch = reader.read_many([key(content, row) for row in rows])
    levels = {"depth_range"} if any(f.encoding == "instance_levels" for f in content.fields) else set()
    assert set(batch) == {f.name for f in content.fields} | {"status", "target_from_image"} | levels
    for name, values in batch.items():
        by_zarr = group[name][:]
        by_tensorstore = open_tensorstore(root / "targets.zarr" / name).read().result()
        assert by_zarr.dtype == by_tensorstore.dtype == values.dtype
        assert same(by_zarr, by_tensorstore)
        assert same(by_zarr[rows], values)
    assert np.array_equal(group["ids"][:], reader.ids)
    assert np.array_equal(group["status"][:], reader.status)


def test_unknown_failed_and_unfinished_instances_raise_and_say_what_to_do(store, content):
    reader = StoreReader(store)
    failed, unknown = key(content, 5), (key(content, 5)[0], 77)
    with pytest.raises(
        SagecacheError, match=f"image_id {failed[0]}, instance {failed[1]}: the image could not"
    ):
        reader.read(*failed)
    with pytest.raises(SagecacheError, match="not in the store's plan. Run 'sagecache precompute geo"):
        reader.read(*unknown)
    with pytest.raises(SagecacheError, match="not in the store's plan"):
        reader.read(10**9, 0)
    for foreign in ((5.7, 0), ("5", "0"), (2**70, 0)):
        with pytest.raises(SagecacheError, match="pairs of whole numbers"):
            reader.read(*foreign)
    assert reader.failures() == [Failure(*failed, UNREADABLE)]
    assert reader.failures()[0].reason == "the image could not be read"
    assert failed not in reader and unknown not in reader and key(content, 4) in reader


def test_an_unfinished_store_is_refused_unless_asked_for(content, tmp_path):
    root = tmp_path / "geo"
    with content.open(root) as writer:
        content.commit(writer, 1)
    with pytest.raises(SagecacheError, match="not complete.*Run 'sagecache precompute geo --split x' again"):
        StoreReader(root).read(*key(content, 4))
    reader = StoreReader(root, partial=True)
    assert not reader.complete
    assert reader.status.tolist() == [0] * 4 + [1, 3, 1, 1] + [0] * 2
    reader.read(*key(content, 4))
    with pytest.raises(SagecacheError, match="not computed. Run 'sagecache precompute geo --split x'"):
        reader.read(*key(content, 0))


def test_a_shard_without_a_journal_line_does_not_count(content, tmp_path):
    root = tmp_path / "geo"
    with content.open(root) as writer:
        content.commit(writer, 0)
    for journal in root.glob("journal*"):
        journal.unlink()
    assert (root / "targets.zarr/depth/c/0/0/0").exists()
    with pytest.raises(SagecacheError, match="not computed"):
        StoreReader(root, partial=True).read(*key(content, 0))


def test_no_store_says_how_to_make_one(tmp_path):
    with pytest.raises(SagecacheError, match="no target store.*sagecache precompute geo"):
        len(StoreReader(tmp_path / "nothing"))


def test_damage_is_told_with_file_instance_and_remedy(store, content):
    path = store / "targets.zarr/depth/c/1/0/0"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    reader, row = StoreReader(store), 4
    with pytest.raises(
        SagecacheError, match=f"image_id {key(content, row)[0]}.*Delete this file and run"
    ) as error:
        reader.read(*key(content, row))
    assert error.value.file == str(path)
    path.unlink()  # the advice holds
    with pytest.raises(SagecacheError, match="the shard's file is missing. Run 'sagecache precompute"):
        StoreReader(store).read(*key(content, row))
    with content.open(store) as writer:
        assert writer.missing() == [1]


def test_reading_into_given_arrays_fills_them(store, content):
    reader, keys = StoreReader(store), [key(content, row) for row in (9, 0, 4, 0)]
    out = reader.allocate(4)
    same = {name: values.__array_interface__["data"] for name, values in out.items()}
    for values in out.values():
        values.fill(1)
    batch = reader.read_many(keys, out)
    for name, values in batch.items():
        assert values.__array_interface__["data"] == same[name]
        assert np.array_equal(values, np.stack([reader.read(*k)[name] for k in keys]))


def test_a_reader_opens_nothing_before_it_is_used_and_pickles_as_its_path(store, content):
    StoreReader("/nowhere/at/all")
    reader = StoreReader(store, max_open_files=3)
    reader.read(*key(content, 0))
    blob = pickle.dumps(reader)
    assert len(blob) < 2000  # with what the store is known by, and no ids
    again = pickle.loads(blob)
    assert again._opened is None
    assert np.array_equal(again.read(*key(content, 9))["depth"], reader.read(*key(content, 9))["depth"])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_used_reader_works_in_other_processes(store, content, method):
    reader, keys = StoreReader(store), [key(content, row) for row in good_rows(content)]
    total = sum(int(reader.read(*k)["depth"].astype(int).sum()) for k in keys)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=read_sum, args=(reader, keys, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [total, total]
    for worker in workers:
        worker.join()
    reader.read(*keys[0])


def test_forks_while_a_thread_reads_do_not_hang(store, content):
    reader, keys, stop = (
        StoreReader(store, max_open_files=1),
        [key(content, r) for r in (0, 9)],
        threading.Event(),
    )

    def keep_reading():
        while not stop.is_set():
            reader.read_many(keys)

    thread = threading.Thread(target=keep_reading)
    thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(10):
            queue = context.SimpleQueue()
            worker = context.Process(target=read_sum, args=(reader, keys, queue))
            worker.start()
            worker.join(30)
            assert worker.exitcode == 0
    finally:
        stop.set()
        thread.join()


def test_open_files_stay_below_the_bound(tmp_path):
    content = make_content(12, shard_size=1)
    reader = StoreReader(content.write(tmp_path / "geo"), max_open_files=5)
    reader.read(*key(content, 0))
    for row in range(12):
        reader.read(*key(content, row))
        ours = [
            p
            for p in map(_target, os.listdir("/proc/self/fd"))
            if str(tmp_path / "geo" / "targets.zarr") in p
        ]
        assert len(ours) <= 5


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return ""


def test_the_bytes_of_an_instance_can_be_found_by_hand(store, content):
    reader = StoreReader(store)
    row = 6
    for name, (path, offset, length) in reader.locate(*key(content, row)).items():
        assert Path(path).is_relative_to(store / "targets.zarr" / name)
        assert Path(path).read_bytes()[offset : offset + length] == content.row(row).chunks[name]


def test_a_store_may_be_moved(store, content, tmp_path):
    before = StoreReader(store).read(*key(content, 7))
    store.rename(tmp_path / "moved")
    after = StoreReader(tmp_path / "moved").read(*key(content, 7))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_reading_imports_neither_zarr_nor_torch(store, content):
    code = (
        "import sys; from sagecache.store import StoreReader\n"
        f"StoreReader({str(store)!r}).read{key(content, 0)}\n"
        "assert not {'zarr', 'torch', 'tensorstore'} & set(sys.modules), 'heavy import'"
    )
    with python("-c", code) as process:
        assert process.wait(60) == 0


def test_what_the_maker_noted_can_be_asked_for(store):
    reader = StoreReader(store)
    assert reader.fields == ("depth", "mask", "normal") and reader.size == (6, 8) and len(reader) == 10
    assert reader.fingerprint["teacher"]["weights"] == "aa" and len(reader.fingerprint_sha256) == 64
    assert reader.attributes["split"] == "x" and reader.complete
    assert reader.field_attributes("depth")["kind"] == "metric"
    with pytest.raises(ValueError, match="read-only"):
        reader.ids[0, 0] = 1


def test_a_lost_shard_is_told_when_the_rest_of_the_batch_is_not_in_memory(store, content, monkeypatch):
    reader = StoreReader(store)
    (store / "targets.zarr/depth/c/1/0/0").unlink()
    monkeypatch.setattr("sagecache.store.pools.FilePool._in_memory", lambda self, path, offset: False)
    with pytest.raises(SagecacheError, match=f"instance {key(content, 4)[1]}: the shard's file is missing"):
        reader.read_many([key(content, 0), key(content, 4)])


def test_a_mask_beside_depth_costs_no_read_and_alone_is_its_own(store, content):
    keys = [key(content, row) for row in good_rows(content)]
    reader = StoreReader(store)
    alone = {"mask": reader.allocate(len(keys))["mask"]}
    both = StoreReader(store).read_many(keys)
    assert np.array_equal(reader.read_many(keys, out=alone)["mask"], both["mask"])
    (store / "targets.zarr/mask/c/1/0/0").unlink()
    assert np.array_equal(StoreReader(store).read_many(keys)["mask"], both["mask"])
    with pytest.raises(SagecacheError, match="mask/c/1/0/0.*the shard's file is missing"):
        StoreReader(store).read_many(keys, out=alone)
