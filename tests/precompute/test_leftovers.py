import os
from pathlib import Path

import pytest
from bucket import bucket
from toy_store import make_content, tree

from sagecache.errors import SagecacheError
from sagecache.precompute.leftovers import (
    REASONS,
    Places,
    find_leftovers,
    folder_bytes,
    kind_of,
    remove,
)
from sagecache.store.files import open_root
from sagecache.store.lock import FolderLock
from sagecache.store.writer import set_aside


@pytest.fixture
def cache(tmp_path) -> Path:
    """A cache of one split with one of each kind of leftover, and what must stay."""
    cache = tmp_path / "cache"
    content, split = make_content(4), cache / "val"
    content.write(split / "geo")
    set_aside(split / "geo")
    for name in ("geo", "geo-first3", "geo-of-detections-first3", "geometry", "geo-notes"):
        content.write(split / name)
    half = split / "geo/targets.zarr/depth/c/0/0/.0.12345678.sagecache-tmp"
    half.write_bytes(b"half")
    for name in ("detections.json", "detections.meta.json", "detections-first3.json", "notes.json"):
        (split / name).write_text("[]")
    (split / "detections.json.replaced").mkdir()
    (split / "detections.json.replaced" / "detections.json").write_text("[1]")
    (split / ".geo-first9.0123abcd.sagecache-tmp").mkdir()
    (cache / "skeleton_stats.json").write_text("{}")
    (cache / "skeleton_stats.json.replaced-2").mkdir()
    for name in ("0123456789abcdef", "fedcba9876543210", "photos"):
        (cache / "shards" / name).mkdir(parents=True)
        (cache / "shards" / name / "depth-c-0-0-0").write_bytes(b"x" * 10)
    return cache


def places(cache: Path, **changes) -> Places:
    usual = dict(stores={"val": cache / "val" / "geo"}, shards=cache / "shards")
    return Places(cache, **{**usual, "states": frozenset(["0123456789abcdef"]), **changes})


def names(cache: Path, found) -> dict[str, str]:
    return {one.path.relative_to(cache).as_posix(): one.reason for one in found}


def test_what_may_go_is_told_with_its_reason_and_what_is_in_use_is_not(cache):
    found = find_leftovers(places(cache))
    (aside,) = (cache / "val").glob("geo.replaced-*")
    assert names(cache, found) == {
        f"val/{aside.name}": REASONS["set aside"],
        "val/geo-first3": REASONS["trial"],
        "val/geo-of-detections-first3": REASONS["trial"],
        "val/geo/targets.zarr/depth/c/0/0/.0.12345678.sagecache-tmp": REASONS["half"],
        "val/.geo-first9.0123abcd.sagecache-tmp": REASONS["half"],
        "val/detections-first3.json": REASONS["trial"],
        "val/detections.json.replaced": REASONS["set aside"],
        "skeleton_stats.json.replaced-2": REASONS["set aside"],
        "shards/0123456789abcdef": REASONS["kept"],
        "shards/fedcba9876543210": REASONS["stale"],
    }
    for one in found:
        below = [one.path] if one.path.is_file() else one.path.rglob("*")
        assert one.bytes == sum(path.stat().st_size for path in below if path.is_file())
        assert one.held == ""


def test_removing_takes_just_that_and_looking_takes_nothing(cache):
    before = tree(cache)
    found = find_leftovers(places(cache))
    assert tree(cache) == before
    for one in found:
        remove(one)
    gone = [one.path.relative_to(cache).as_posix() for one in found]
    assert tree(cache) == {
        name: digest
        for name, digest in before.items()
        if not any(name == one or name.startswith(f"{one}/") for one in gone)
    }
    assert find_leftovers(places(cache)) == [] and not list(cache.rglob("*.sagecache-tmp"))
    assert (cache / "val/geo/complete.json").is_file() and (cache / "shards/photos").is_dir()


def test_what_a_writer_holds_is_told_and_stays(cache):
    trial, current = cache / "val/geo-first3", cache / "val/geo"
    for held, other in ((trial, current), (current, trial)):
        lock = FolderLock(held, shared=True)
        found = {one.path: one for one in find_leftovers(places(cache))}
        kept = [one for one in found.values() if one.held]
        assert [one.owner for one in kept] == [held] and kept[0].held == "a writer is at work"
        with pytest.raises(SagecacheError, match="another process is writing here"):
            remove(kept[0])
        assert kept[0].path.exists() and all(one.owner != other or not one.held for one in found.values())
        lock.release()
    assert not any(one.held for one in find_leftovers(places(cache)))


def test_links_are_not_followed_and_nothing_outside_is_touched(cache, tmp_path):
    outside = make_content(4).write(tmp_path / "elsewhere" / "geo-first8")
    before = tree(outside)
    (cache / "val" / "geo-first8").symlink_to(outside)
    (cache / "test").symlink_to(tmp_path / "elsewhere")
    (cache / "shards" / "aaaaaaaaaaaaaaaa").symlink_to(outside)
    inner = cache / "val" / "geo-first3" / "targets.zarr" / "away"
    inner.symlink_to(outside)
    stores = {name: cache / name / "geo" for name in ("val", "test")}
    found = find_leftovers(places(cache, stores=stores))
    assert not {"geo-first8", "aaaaaaaaaaaaaaaa"} & {one.path.name for one in found}
    for one in found:
        remove(one)
    assert tree(outside) == before and not os.path.lexists(inner)


def test_boxes_that_a_split_reads_stay_whatever_their_name(cache):
    needed = frozenset([cache / "val" / "detections-first3.json"])
    assert "val/detections-first3.json" not in names(cache, find_leftovers(places(cache, needed=needed)))
    needed = frozenset([cache / "val" / "detections.json.replaced" / "detections.json"])
    assert "val/detections.json.replaced" not in names(cache, find_leftovers(places(cache, needed=needed)))


def test_stores_in_a_bucket_may_go_unless_they_might_be_in_the_making(tmp_path):
    content = make_content(6)
    with bucket() as url:
        base = open_root(f"{url}/targets") / "val"
        for name in ("geo", "geo-first3", "geo.replaced-0123abcd"):
            content.write(base / name)
        with content.open(base / "geo-first4") as store:
            content.commit(store, 0)
        found = find_leftovers(places(tmp_path, stores={"val": base / "geo"}))
        assert {one.path.name: bool(one.held) for one in found} == {
            "geo-first3": False,
            "geo-first4": True,
            "geo.replaced-0123abcd": False,
        }
        for one in found:
            assert one.bytes == folder_bytes(one.path) > 1000
            if not one.held:
                remove(one)
        left = find_leftovers(places(tmp_path, stores={"val": base / "geo"}))
        assert [one.path.name for one in left] == ["geo-first4"]
        assert (base / "geo" / "complete.json").exists()


@pytest.mark.parametrize(
    "name, kind",
    [
        ("geo", "current"),
        ("geo-first20", "trial"),
        ("geo-of-detections-first2", "trial"),
        ("geo.replaced-0123abcd", "set aside"),
        ("geo.replaced-0123abcd-2", "set aside"),
        ("geo-first20.replaced-unknown", "set aside"),
        ("geo-firstborn", "other"),
        ("geo2", "other"),
        ("geo.replaced", "other"),
    ],
)
def test_a_name_says_what_a_store_is(name, kind):
    assert kind_of(name, "geo") == kind


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert find_leftovers(places(tmp_path / "nowhere")) == [] and folder_bytes(tmp_path / "nowhere") == 0
