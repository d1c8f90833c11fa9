import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from toy_store import make_content, memory_folder, python, tree

from sagecache.errors import SagecacheError
from sagecache.store import writer as writer_module
from sagecache.store.reader import StoreReader
from sagecache.store.spec import NOT_DONE, OK, StorePlan
from sagecache.store.writer import pending, set_aside


def test_a_finished_store_holds_no_leftovers(store):
    assert sorted(p.name for p in store.iterdir()) == [
        "complete.json",
        "index.npy",
        "journal.jsonl",
        "manifest.json",
        "targets.zarr",
    ]


def test_nothing_of_this_run_is_in_the_bytes(store, content, tmp_path):
    again = content.write(tmp_path / "elsewhere" / "other name")
    assert tree(again) == tree(store)


def test_opening_a_finished_store_again_changes_nothing(store, content):
    before = tree(store)
    with content.open(store) as writer:
        assert writer.missing() == []
        writer.finish()
    assert tree(store) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"fingerprint": {"teacher": {"name": "toy", "weights": "bb"}, "padding": 1.25}},
            "teacher.weights: aa -> bb",
        ),
        ({"fingerprint": {"teacher": {"name": "toy", "weights": "aa"}}}, "padding: 1.25 -> absent"),
        ({"shard_size": 5}, "shard_size: 4 -> 5"),
    ],
)
def test_another_store_is_refused_naming_the_part_and_what_force_does(store, content, change, named):
    before = tree(store)
    with pytest.raises(SagecacheError, match=named) as error:
        content.open(store, **change)
    assert "--force" in str(error.value) and "nothing is deleted" in str(error.value)
    assert tree(store) == before


def test_another_plan_is_refused_naming_what_differs_in_it(store, content):
    moved = content.plan.bbox.copy()
    moved[3, 0] += 1e-9
    parts = {
        name: getattr(content.plan, name) for name in ("ids", "image_sha256", "target_from_image", "size")
    }
    with pytest.raises(SagecacheError, match="1 instances have another box") as error:
        content.open(store, plan=StorePlan(bbox=moved, **parts))
    assert error.value.record == "image_id {}, instance {}".format(*content.plan.ids[3])
    with pytest.raises(SagecacheError, match=r"\(plan.size: \[6, 8\] -> \[7, 8\]\)"):
        make_content(size=(7, 8)).open(store)


def test_attributes_are_those_of_the_first_run(store, content):
    with content.open(store, attributes={"split": "renamed"}):
        pass
    assert StoreReader(store).attributes["split"] == "x"


def test_a_folder_with_something_else_is_refused(content, tmp_path):
    (tmp_path / "geo").mkdir()
    (tmp_path / "geo" / "thesis.tex").touch()
    with pytest.raises(SagecacheError, match="holds no store .thesis.tex"):
        content.open(tmp_path / "geo")
    assert [p.name for p in (tmp_path / "geo").iterdir()] == ["thesis.tex"]


def test_a_newer_format_is_refused(store, content):
    manifest = json.loads((store / "manifest.json").read_bytes())
    (store / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(SagecacheError, match="format 2, this sagecache knows format 1"):
        content.open(store)


def test_a_store_is_not_finished_while_shards_are_missing(content, tmp_path):
    with content.open(tmp_path / "geo") as writer:
        content.commit(writer, 2)
        assert writer.missing() == [0, 1]
        with pytest.raises(SagecacheError, match="2 of 3 shards are missing, the first is shard 0"):
            writer.finish()
    assert not (tmp_path / "geo" / "complete.json").exists()


def test_a_shard_needs_exactly_its_rows_and_all_of_them_finished(content, tmp_path):
    with content.open(tmp_path / "geo") as writer:
        rows = [content.row(row) for row in writer.rows(2)]
        assert len(rows) == 2
        with pytest.raises(ValueError, match="needs 4 finished rows, got 2"):
            writer.commit(0, rows)
        object.__setattr__(rows[0], "status", NOT_DONE)
        with pytest.raises(ValueError, match="finished rows"):
            writer.commit(2, rows)


def test_lost_and_shortened_shards_are_made_again_and_damaged_ones_on_request(store, content):
    before = tree(store)
    group = store / "targets.zarr"
    (group / "mask/c/0/0/0").unlink()
    os.truncate(group / "depth/c/1/0/0", 30)
    damaged = bytearray((group / "normal/c/2/0/0/0").read_bytes())
    damaged[5] ^= 4
    (group / "normal/c/2/0/0/0").write_bytes(damaged)
    with content.open(store) as writer:
        assert writer.missing() == [0, 1]
        assert writer.missing(verify=True) == [0, 1, 2]
        for shard in writer.missing(verify=True):
            content.commit(writer, shard)
        writer.finish()
    assert tree(store) == before


def test_damaged_plan_and_metadata_are_mended_from_the_same_plan(store, content):
    before = tree(store)
    (store / "targets.zarr/depth/zarr.json").unlink()
    (store / "targets.zarr/ids/c/0/0").write_bytes(b"junk")
    with content.open(store):
        pass
    assert tree(store) == before


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"fingerprint_sha256": "', b'"fingerprint_sha256":\t"'),
        (b'"instances": 10', b'"instances": 90'),
        (b'"targets.zarr/depth/zarr.json"', b'"targets.zarr/depth/zarr.jsoo"'),
    ],
)
def test_a_damaged_manifest_is_remade_as_it_was_sealed(store, content, old, new):
    before, path = tree(store), store / "manifest.json"
    path.write_bytes(path.read_bytes().replace(old, new))
    assert tree(store) != before
    content.write(store)
    assert tree(store) == before


def test_a_manifest_that_can_not_be_remade_is_not_sealed(store, content):
    """Nobody but the manifest knows what the first run noted."""
    path = store / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"split": "x"', b'"split": "y"'))
    before = tree(store)
    with pytest.raises(SagecacheError, match="not the one that the store was completed with.*--force"):
        content.open(store)
    assert tree(store) == before


def test_a_damaged_seal_is_written_anew(store, content):
    before, path = tree(store), store / "complete.json"
    sound = path.read_bytes()
    for key in (b"manifest_sha256", b"instances"):
        place = sound.index(key) + len(key) + 6
        path.write_bytes(sound[:place] + b"0" + sound[place + 1 :])
        content.write(store)
        assert tree(store) == before


def test_pending_says_what_a_run_would_make_and_writes_nothing(content, tmp_path):
    arguments = (content.plan, content.fields, {"a": 1}, content.shard_size)
    assert pending(tmp_path / "geo", *arguments) == 10
    assert list(tmp_path.iterdir()) == []
    with content.open(tmp_path / "geo", fingerprint={"a": 1}) as writer:
        content.commit(writer, 1)
    before = tree(tmp_path)
    assert pending(tmp_path / "geo", *arguments) == 6
    with pytest.raises(SagecacheError, match="fingerprint.a: 1 -> 2"):
        pending(tmp_path / "geo", content.plan, content.fields, {"a": 2}, content.shard_size)
    assert tree(tmp_path) == before


def test_force_sets_the_old_store_aside_whole(store, content):
    before = tree(store)
    first = set_aside(store)
    assert not store.exists() and tree(first) == before
    content.write(store)
    second = set_aside(store)
    assert first != second and tree(first) == tree(second)
    assert set_aside(store) is None


@pytest.mark.parametrize("damage", ["cut", "gone", "newer"])
def test_a_damaged_store_can_be_set_aside_too(store, damage):
    manifest = store / "manifest.json"
    if damage == "gone":
        manifest.unlink()
    else:
        manifest.write_bytes(manifest.read_bytes()[:40] if damage == "cut" else b'{"format": 99}')
    moved = set_aside(store)
    assert moved.name == f"{store.name}.replaced-unknown" and (moved / "targets.zarr").is_dir()
    assert not store.exists()


def test_a_folder_that_is_no_store_stays_where_it_is(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    assert set_aside(tmp_path) is None and (tmp_path / "holiday.jpg").is_file()


def test_no_store_is_set_aside_under_a_writers_feet(store, content):
    with content.open(store), pytest.raises(SagecacheError, match="another process is writing"):
        set_aside(store)
    assert store.exists()


def test_no_writer_comes_in_while_a_store_is_set_aside(store, content, monkeypatch):
    move, before = writer_module.move_folder, tree(store)

    def tried(folder, target):
        with pytest.raises(SagecacheError, match="another process is writing"):
            content.open(folder)
        move(folder, target)

    monkeypatch.setattr(writer_module, "move_folder", tried)
    assert tree(set_aside(store)) == before and not store.exists()


def test_a_writer_that_waited_for_it_makes_a_store_of_its_own(store, content, monkeypatch):
    move, before, waits = writer_module.move_folder, tree(store), threading.Event()
    with ThreadPoolExecutor(1) as threads:

        def write():
            with content.open(store, waiting=waits.set) as writer:
                for shard in writer.missing():
                    content.commit(writer, shard)
                writer.finish()

        def waited_for(folder, target):
            nonlocal written
            written = threads.submit(write)
            assert waits.wait(10)
            move(folder, target)

        written = None
        monkeypatch.setattr(writer_module, "move_folder", waited_for)
        aside = set_aside(store)
        written.result(60)
    assert tree(aside) == tree(store) == before


HALF = """
import sys
from pathlib import Path
from toy_store import make_content
content = make_content(failed=(5,), shard_size=2)
with content.open(Path(sys.argv[1]), shared=True) as store:
    for shard in store.missing():
        if shard % 2 == int(sys.argv[2]):
            content.commit(store, shard)
    print("done", flush=True)
    sys.stdin.readline()
    if not store.missing():
        store.finish()
"""


def test_two_processes_that_share_the_shards_write_the_store_of_one(tmp_path):
    whole = make_content(failed=(5,), shard_size=2).write(tmp_path / "whole")
    with (
        python("-c", HALF, tmp_path / "shared", "0") as one,
        python("-c", HALF, tmp_path / "shared", "1") as two,
    ):
        assert [writer.stdout.readline() for writer in (one, two)] == ["done\n", "done\n"]
        for writer in (one, two):
            writer.stdin.write("go\n")
            writer.stdin.flush()
        assert [writer.wait(60) for writer in (one, two)] == [0, 0]
    assert tree(tmp_path / "shared") == tree(whole)


class KilledWriters(RuleBasedStateMachine):
    """Random work, deaths and damage; whatever happens, the finished folder is that of an undisturbed run."""

    def __init__(self):
        super().__init__()
        self.folder = memory_folder()
        self.base = Path(self.folder.name)
        self.content = make_content(7, size=(3, 4), shard_size=2, failed=(1,))
        self.expected = tree(self.content.write(self.base / "whole"))
        self.root, self.writer = self.base / "killed", None

    @rule()
    @precondition(lambda self: self.writer is None)
    def open(self):
        self.writer = self.content.open(self.root)

    @rule(pick=st.integers(0, 99))
    @precondition(lambda self: self.writer is not None)
    def commit(self, pick):
        missing = self.writer.missing()
        if missing:
            self.content.commit(self.writer, missing[pick % len(missing)])

    @rule(cut=st.integers(0, 60))
    @precondition(lambda self: self.writer is not None)
    def die(self, cut):
        """What kill -9 leaves: open descriptors closed by the kernel, a half-written file, a torn line."""
        os.close(self.writer._lock._descriptor)
        self.writer._journal.close()
        self.writer = None
        half = self.root / "targets.zarr/depth/c/1/0/.0.deadbeef.sagecache-tmp"
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"half a shard")
        for journal in self.root.glob("journal-*.jsonl"):
            os.truncate(journal, max(0, journal.stat().st_size - cut))

    @rule(pick=st.integers(0, 99), how=st.sampled_from(["remove", "cut"]))
    @precondition(lambda self: self.writer is None and self.root.exists())
    def damage(self, pick, how):
        shards = sorted(p for p in self.root.glob("targets.zarr/*/c/**/*") if p.is_file())
        if shards:
            path = shards[pick % len(shards)]
            path.unlink() if how == "remove" else os.truncate(path, path.stat().st_size // 2)

    @invariant()
    def what_can_be_read_is_right(self):
        if self.writer is None:
            return
        reader, known = StoreReader(self.root, partial=True), StoreReader(self.base / "whole")
        for row, status in enumerate(reader.status):
            if status == OK:
                ours, theirs = (r.read(*reader.ids[row].tolist()) for r in (reader, known))
                assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)

    def teardown(self):
        if self.writer is not None:
            self.writer.close()
        with self.content.open(self.root) as writer:
            for shard in writer.missing():
                self.content.commit(writer, shard)
            writer.finish()
        assert tree(self.root) == self.expected
        self.folder.cleanup()


TestKilledWriters = KilledWriters.TestCase
TestKilledWriters.settings = settings(max_examples=8, stateful_step_count=10, deadline=None)
