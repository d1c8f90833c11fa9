import json
import shutil

import pytest
from toy_store import tree

from sagecache.errors import SagecacheError
from sagecache.precompute import parts
from sagecache.precompute.parts import PartsWriter, made_from, set_parts_aside
from sagecache.store.lock import FolderLock

IDENTITY = {"detector": {"name": "toy", "score": 0.3}, "part_size": 2}


def work(result, count=3, identity=IDENTITY, stop_after=None):
    """Make what is missing; stop_after: leave without finishing after that many parts."""
    with PartsWriter(result, identity, count) as writer:
        missing = writer.missing()
        for number in missing[:stop_after]:
            failed = [{"image_id": number, "reason": "no"}] if number == 1 else []
            writer.commit(number, [{"image_id": 10 * number + k} for k in range(2)], failed)
        if stop_after is None:
            writer.finish()
        return missing


def test_parts_are_joined_in_order_and_leave_a_result_and_its_meta_file(tmp_path):
    result = tmp_path / "detections.json"
    assert work(result) == [0, 1, 2]
    assert [record["image_id"] for record in json.loads(result.read_bytes())] == [0, 1, 10, 11, 20, 21]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detections.json", "detections.meta.json"]
    with PartsWriter(result, IDENTITY, 3) as writer:
        assert writer.failed == [{"image_id": 1, "reason": "no"}]


def test_what_a_result_was_made_from_is_read_back_and_a_foreign_one_refused(tmp_path):
    work(tmp_path / "a.json")
    assert made_from(tmp_path / "a.json") == IDENTITY
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(SagecacheError, match="b.json.*not made by sagecache"):
        made_from(tmp_path / "b.json")


def test_resuming_makes_the_missing_parts_and_the_same_bytes(tmp_path):
    work(tmp_path / "a.json")
    assert work(tmp_path / "b.json", stop_after=2) == [0, 1, 2]
    assert not (tmp_path / "b.json").exists()
    assert work(tmp_path / "b.json") == [2]
    assert work(tmp_path / "b.json") == []
    for kind in (".json", ".meta.json"):
        assert (tmp_path / f"a{kind}").read_bytes() == (tmp_path / f"b{kind}").read_bytes()


def test_no_records_are_an_empty_list(tmp_path):
    with PartsWriter(tmp_path / "a.json", IDENTITY, 1) as writer:
        writer.commit(0, [], [])
        writer.finish()
    assert json.loads((tmp_path / "a.json").read_bytes()) == []


@pytest.mark.parametrize("stop_after", [1, None])
def test_another_detector_is_refused_and_named(tmp_path, stop_after):
    work(tmp_path / "a.json", stop_after=stop_after)
    with pytest.raises(SagecacheError, match="detector.score: 0.3 -> 0.5.*--force"):
        work(tmp_path / "a.json", identity={**IDENTITY, "detector": {"name": "toy", "score": 0.5}})


def test_a_foreign_or_edited_file_is_never_replaced(tmp_path):
    result = tmp_path / "a.json"
    result.write_text("[1]")
    with pytest.raises(SagecacheError, match="not made by sagecache"):
        work(result)
    result.unlink()
    work(result)
    result.write_text("[1]")
    with pytest.raises(SagecacheError, match="changed after it was made"):
        work(result)
    assert result.read_text() == "[1]"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"identity": {}}', '{"identity": 5, "sha256": "", "failed": 3}']
)
def test_a_damaged_meta_file_is_named_with_its_way_out(tmp_path, text):
    result = tmp_path / "a.json"
    work(result)
    (tmp_path / "a.meta.json").write_text(text)
    with pytest.raises(SagecacheError, match="a.meta.json: the file is cut or damaged.*--force"):
        work(result)
    set_parts_aside(result)
    assert work(result) == [0, 1, 2]


def test_a_damaged_part_is_named(tmp_path):
    work(tmp_path / "a.json", stop_after=3)
    with PartsWriter(tmp_path / "a.json", IDENTITY, 3) as writer:
        (tmp_path / "a.parts" / "part-000001.json").write_text("{")
        with pytest.raises(SagecacheError, match="part-000001.json: the file is cut.*--force"):
            writer.finish()


def test_a_finished_result_is_read_without_a_lock(tmp_path, monkeypatch):
    work(tmp_path / "a.json")
    before = tree(tmp_path)
    monkeypatch.setattr(parts, "FolderLock", lambda *args, **options: pytest.fail("took a lock"))
    assert work(tmp_path / "a.json") == [] and tree(tmp_path) == before


def test_parts_left_by_a_kill_in_the_last_moment_are_cleared(tmp_path):
    work(tmp_path / "a.json")
    (tmp_path / "a.parts").mkdir()
    (tmp_path / "a.parts" / "part-000000.json").write_text("{}")
    assert work(tmp_path / "a.json") == [] and not (tmp_path / "a.parts").exists()


def test_the_lock_is_held_until_the_parts_are_gone(tmp_path, monkeypatch):
    remove = shutil.rmtree

    def remove_while_another_looks(folder):
        with pytest.raises(SagecacheError, match="another process is writing"):
            FolderLock(folder, shared=False)
        remove(folder)

    monkeypatch.setattr(parts.shutil, "rmtree", remove_while_another_looks)
    work(tmp_path / "a.json")
    assert not (tmp_path / "a.parts").exists()


def test_two_writers_do_not_meet(tmp_path):
    with PartsWriter(tmp_path / "a.json", IDENTITY, 3):
        with pytest.raises(SagecacheError, match="another process is writing"):
            PartsWriter(tmp_path / "a.json", IDENTITY, 3)


def test_setting_aside_keeps_everything_and_never_overwrites(tmp_path):
    result = tmp_path / "a.json"
    assert set_parts_aside(result) is None
    work(result)
    first = set_parts_aside(result)
    assert sorted(p.name for p in first.iterdir()) == ["a.json", "a.meta.json"]
    work(result, stop_after=1)
    second = set_parts_aside(result)
    assert sorted(p.name for p in second.iterdir()) == ["a.parts"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [first.name, second.name]
