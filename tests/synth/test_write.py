import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from sagecache.errors import SagecacheError
from sagecache.store.lock import FolderLock
from sagecache.synth import write
from sagecache.synth.looks import LOOKS
from sagecache.synth.render import render
from sagecache.synth.write import image_rng, read_geometry, write_split

SIZE = (64, 48)
COUNT = 5
ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from sagecache.synth.looks import LOOKS
from sagecache.synth.write import write_split
if __name__ == "__main__":
    write_split(Path(sys.argv[1]), LOOKS["target"], 5, 9, workers=1, start_id=11, size=(64, 48))
"""


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split") / "two"
    calls = []
    write_split(
        folder,
        LOOKS["target"],
        COUNT,
        9,
        workers=2,
        start_id=11,
        size=SIZE,
        progress=lambda *args: calls.append(args),
    )
    assert calls[0] == (0, COUNT) and calls[-1] == (COUNT, COUNT)
    return folder


def test_pycocotools_reads_it(split):
    coco = COCO(str(split / "annotations.json"))
    assert sorted(coco.imgs) == list(range(11, 11 + COUNT))
    assert min(coco.anns) == 1 and len(coco.anns) >= COUNT - 1
    category = coco.loadCats([1])[0]
    assert len(category["keypoints"]) == 17 and category["keypoints"][5] == "left_shoulder"
    assert [6, 7] in [sorted(edge) for edge in category["skeleton"]]  # shoulders, counted from 1
    for annotation in coco.anns.values():
        visible = np.array(annotation["keypoints"]).reshape(17, 3)[:, 2]
        assert annotation["num_keypoints"] == (visible > 0).sum() and annotation["iscrowd"] == 0
        assert annotation["area"] <= annotation["bbox"][2] * annotation["bbox"][3]
    for record in coco.imgs.values():
        assert record["file_name"] == f"{record['id']:012d}.jpg" and record["look"] == "target"
        image = cv2.imread(str(split / "images" / record["file_name"]))
        assert image.shape == (48, 64, 3) == (record["height"], record["width"], 3)
        assert len(record["kinds"]) == len(coco.getAnnIds(imgIds=[record["id"]]))


def test_geometry_survives_its_files(split, body):
    records = json.loads((split / "annotations.json").read_text())["images"]
    for index in (0, 3):
        truth = render(body, image_rng(LOOKS["target"], 9, index), LOOKS["target"], SIZE)
        depth, normals, instances = read_geometry(split, records[index])
        near = truth.depth < records[index]["depth_offset"] + 65535 * records[index]["depth_scale"]
        assert near[truth.instances >= 0].all() and near.mean() > 0.5
        np.testing.assert_allclose(depth[near], truth.depth[near], atol=records[index]["depth_scale"])
        cosine = (normals * truth.normals).sum(-1)
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.6  # 8 bits
        np.testing.assert_array_equal(instances, truth.instances)
        image = cv2.imread(str(split / "images" / records[index]["file_name"]))[..., ::-1]
        assert np.abs(image.astype(int) - truth.image).mean() < 4  # JPEG, RGB order kept


def test_one_worker_a_kill_and_a_resume_give_the_same_bytes(split, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)], env=environment, start_new_session=True
    )
    parts = folder / ".parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("0*.json"))) < 1 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "annotations.json").exists(), "killed too late to test anything"
    assert 1 <= len(list(parts.glob("0*.json"))) < COUNT
    time.sleep(0.3)  # the orphaned worker notices and ends
    (folder / "images" / ".000000000012.jpg.1").write_bytes(b"half a picture")
    subprocess.run([sys.executable, str(script), str(folder)], env=environment, check=True)
    assert files(folder) == files(split)


def test_a_complete_split_is_kept_and_another_is_refused(split, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in split.rglob("*")}
    (split / ".parts").mkdir()  # of a run that was killed in its last moment
    write_split(split, LOOKS["target"], COUNT, 9, workers=1, start_id=11, size=SIZE)
    assert before == {path: path.stat().st_mtime_ns for path in split.rglob("*")}
    with pytest.raises(SagecacheError, match="differs in look, seed"):
        write_split(split, LOOKS["source"], COUNT, 10, workers=1, start_id=11, size=SIZE)
    monkeypatch.setattr(write, "RENDERER", write.RENDERER + 1)  # newer code, which would draw otherwise
    with pytest.raises(SagecacheError, match="differs in renderer"):
        write_split(split, LOOKS["target"], COUNT, 9, workers=1, start_id=11, size=SIZE)


def test_annotations_that_nobody_rendered_are_never_taken_for_a_split(tmp_path):
    for text in ("{", "[]", "{}", '{"info": null}'):
        (tmp_path / "annotations.json").write_text(text)
        with pytest.raises(SagecacheError, match="annotations.json: these annotations were not rendered"):
            write_split(tmp_path, LOOKS["target"], 1, 9, workers=1, size=SIZE)
        assert (tmp_path / "annotations.json").read_text() == text


def test_two_renderings_of_one_folder_do_not_meet(tmp_path):
    (tmp_path / "images").mkdir()
    half = tmp_path / "images" / ".000000000001.jpg.1"
    half.write_bytes(b"half a picture of the first")
    first = FolderLock(tmp_path, shared=False)
    with pytest.raises(SagecacheError, match="another process is writing"):
        write_split(tmp_path, LOOKS["target"], 1, 9, workers=1, size=SIZE)
    first.release()
    assert half.read_bytes() == b"half a picture of the first"


def test_missing_geometry_names_the_file(tmp_path):
    with pytest.raises(SagecacheError, match="000000000007_depth.png"):
        read_geometry(tmp_path, {"id": 7})
