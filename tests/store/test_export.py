"""Exports against the toy store's own maps, read with numpy, pyarrow, PIL and json."""

import builtins
import json

import numpy as np
import pytest
from PIL import Image
from toy_store import make_content, tree

from sagecache.errors import SagecacheError
from sagecache.store import StoreReader
from sagecache.store import export as module
from sagecache.store.codec import depth_error_bound
from sagecache.store.export import FORMATS, export


@pytest.fixture(params=["fast", "lossless"])
def made(request, tmp_path):
    content = make_content(9, setting=request.param, failed=(4,))
    return content, StoreReader(content.write(tmp_path / "geo"))


def keys(reader) -> list[tuple[int, int]]:
    return [tuple(key) for key in reader.ids.tolist() if tuple(key) in reader]


def check(content, reader, found: dict) -> None:
    """What was exported of an instance is what was encoded, within the codec's stated error."""
    key = int(found["image_id"]), int(found["instance"])
    row = content.plan.ids.tolist().index(list(key))
    maps = content.maps[row]
    mask, stored = maps["mask"][0], reader.read(*key)
    assert np.array_equal(found["mask"], mask)
    assert np.array_equal(np.isnan(found["depth"]), ~mask)
    assert np.array_equal(np.isnan(found["normal"]), np.broadcast_to(~mask, (3, 8, 6)))
    bound = depth_error_bound(stored["depth_range"]) if "depth_range" in stored else 0
    assert np.abs(found["depth"] - maps["depth"][0])[mask].max() <= bound
    true = maps["normal"] / np.linalg.norm(maps["normal"], axis=0)
    given = found["normal"] / np.linalg.norm(found["normal"], axis=0)
    assert np.degrees(np.arccos((true * given).sum(0)[mask].clip(-1, 1))).max() < 1
    assert np.array_equal(found["bbox"], content.plan.bbox[row])
    assert np.array_equal(found["target_from_image"], content.plan.target_from_image[row])


def test_npz_holds_what_was_encoded_one_file_an_instance(made, tmp_path):
    content, reader = made
    seen = []
    assert export(reader, keys(reader), tmp_path / "out", "npz", progress=lambda *p: seen.append(p)) is None
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 8 and seen == [(k, 8) for k in range(1, 9)]
    for path in files:
        with np.load(path) as found:
            assert path.stem == f"{found['image_id']}_{found['instance']}"
            assert found["depth"].dtype == found["normal"].dtype == np.float32
            check(content, reader, found)


def test_parquet_holds_the_same_in_files_of_bounded_size(made, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the Arrow export needs the package pyarrow")
    content, reader = made
    monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(module, "FILE_BYTES", 4000)
    export(reader, keys(reader), tmp_path / "out", "arrow")
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == [f"targets-{k:05d}.parquet" for k in range(len(files))]
    assert len(files) > 1
    rows = []
    for path in files:
        table = parquet.read_table(path)
        about = json.loads(table.schema.metadata[b"sagecache"])
        assert about["shapes"]["normal"] == [3, 8, 6] and about["fields"]["depth"]["kind"] == "metric"
        rows += [
            {name: np.reshape(value, about["shapes"].get(name, ())) for name, value in row.items()}
            for row in table.to_pylist()
        ]
    assert [(int(row["image_id"]), int(row["instance"])) for row in rows] == keys(reader)
    for row in rows:
        check(content, reader, row)


def test_pictures_say_in_json_how_to_read_them(made, tmp_path):
    content, reader = made
    export(reader, keys(reader), tmp_path / "out", "images")
    assert len(list((tmp_path / "out").iterdir())) == 4 * 8
    for path in (tmp_path / "out").glob("*.json"):
        about = json.loads(path.read_text())
        row = content.plan.ids.tolist().index([about["image_id"], about["instance"]])
        maps = content.maps[row]
        depth, normal, mask = (
            np.array(Image.open(path.with_name(f"{path.stem}_{name}.png")))
            for name in ("depth", "normal", "mask")
        )
        on = maps["mask"][0]
        assert np.array_equal(mask, np.where(on, 255, 0)) and np.array_equal(depth > 0, on)
        assert not normal[~on].any() and about["fields"]["depth"] == {"kind": "metric", "unit": "m"}
        values = about["depth"]["lo"] + (depth[on].astype(float) - 1) * about["depth"]["step"]
        assert np.abs(values - maps["depth"][0][on]).max() < 1e-3 * np.ptp(maps["depth"][0][on])
        true = (maps["normal"] / np.linalg.norm(maps["normal"], axis=0))[:, on]
        given = normal[on].T / 127.5 - 1
        assert np.abs(given - true).max() < 0.03


@pytest.mark.parametrize("format", ["npz", "images"])
def test_a_folder_that_is_not_empty_is_refused_or_set_aside(format, store, tmp_path):
    reader, out = StoreReader(store), tmp_path / "out"
    out.mkdir()
    export(reader, keys(reader)[:1], out, format)  # empty is as good as none
    (out / "mine.txt").write_text("mine")
    before = tree(out)
    with pytest.raises(SagecacheError, match="out: it is there and not empty.*--force"):
        export(reader, keys(reader), out, format)
    assert tree(out) == before
    replaced = export(reader, keys(reader), out, format, force=True)
    assert tree(replaced) == before and len(tree(out)) > len(before) and not (out / "mine.txt").exists()


def test_what_goes_wrong_on_the_way_leaves_nothing(store, tmp_path):
    reader = StoreReader(store)
    data = bytearray((store / "targets.zarr/depth/c/1/0/0").read_bytes())
    data[3] ^= 1
    (store / "targets.zarr/depth/c/1/0/0").write_bytes(data)
    with pytest.raises(SagecacheError, match="depth/c/1/0/0"):
        export(reader, keys(reader), tmp_path / "out", "npz")
    assert [path.name for path in tmp_path.iterdir()] == ["geo"]


def test_a_store_of_depth_alone_gives_depth_alone(tmp_path):
    content = make_content(3, outputs=("depth",))
    reader = StoreReader(content.write(tmp_path / "geo"))
    export(reader, keys(reader), tmp_path / "out", "npz")
    (first, *_) = sorted((tmp_path / "out").iterdir())
    with np.load(first) as found:
        assert set(found) == {"depth", "bbox", "target_from_image", "image_id", "instance"}
        assert np.isfinite(found["depth"]).all()


def test_without_pyarrow_the_package_is_named(store, tmp_path, monkeypatch):
    known = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    reader = StoreReader(store)
    with pytest.raises(SagecacheError, match=r"pyarrow.*pip install 'sagecache\[arrow\]'"):
        export(reader, keys(reader), tmp_path / "out", "arrow")
    assert set(FORMATS) == {"npz", "arrow", "images"} and [p.name for p in tmp_path.iterdir()] == ["geo"]
