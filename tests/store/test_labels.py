import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorstore

from sagecache.errors import SagecacheError
from sagecache.store.labels import PSEUDO_LABELS, read_labels, write_labels


def arrays(count: int = 5, joints: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pose = rng.uniform(0, 100, (2, count, joints, 2)).astype(np.float32)
    share = rng.uniform(0, 1, (2, count, joints)).astype(np.float32)
    return dict(
        ids=np.stack([np.arange(count), np.zeros(count)], 1).astype(np.int64),
        keypoints=pose[0],
        corrected=pose[1],
        confidence=share[0],
        weights=share[1],
        places=share[1],
        fate=rng.integers(0, 9, (count, joints)),
        plausibility=share[0, :, 0],
        teacher_a=share[0, :, 0] > 0.5,
    )


def test_what_was_written_is_read_and_by_another_reader_too(tmp_path):
    written, about = arrays(), dict(recipe="sage-pose", iteration=450, fates={"kept": 0})
    write_labels(tmp_path / "labels" / "iter_450.zarr", written, about)
    read, provenance = read_labels(tmp_path / "labels" / "iter_450.zarr")
    assert provenance == about and read.keys() == written.keys()
    for name, values in written.items():
        np.testing.assert_array_equal(read[name], values)
        path = tmp_path / "labels" / "iter_450.zarr" / name
        other = tensorstore.open(dict(driver="zarr3", kvstore=dict(driver="file", path=str(path)))).result()
        np.testing.assert_array_equal(other.read().result(), values)
        assert json.loads((path / "zarr.json").read_text())["attributes"]["meaning"] == PSEUDO_LABELS[name]


def test_a_second_refresh_of_the_same_moment_replaces_the_first(tmp_path):
    for seed in (0, 1):
        write_labels(tmp_path / "one.zarr", arrays(seed=seed), dict(seed=seed))
    read, provenance = read_labels(tmp_path / "one.zarr")
    assert provenance == dict(seed=1) and [one.name for one in tmp_path.iterdir()] == ["one.zarr"]
    np.testing.assert_array_equal(read["keypoints"], arrays(seed=1)["keypoints"])


@pytest.mark.parametrize(
    "change",
    [lambda a: a.pop("fate"), lambda a: a.update(more=a["ids"]), lambda a: a.update(ids=a["ids"][:2])],
)
def test_other_arrays_are_refused(tmp_path, change):
    values = arrays()
    change(values)
    with pytest.raises(ValueError, match="pseudo_labels are arrays"):
        write_labels(tmp_path / "one.zarr", values, {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(SagecacheError, match="can't be read") as caught:
        read_labels(tmp_path / "none.zarr")
    assert "none.zarr" in str(caught.value) and "--resume" in caught.value.fix
    write_labels(tmp_path / "one.zarr", arrays(), {})
    (tmp_path / "one.zarr" / "fate" / "zarr.json").unlink()
    with pytest.raises(SagecacheError, match="can't be read"):
        read_labels(tmp_path / "one.zarr")


WRITER = """
import sys; sys.path.insert(0, {tests!r})
import numpy as np
from test_labels import arrays
from sagecache.store.labels import write_labels
for number in range(10_000):
    write_labels({root!r}, arrays(200, 17, seed=number), dict(seed=number))
"""


def test_a_kill_leaves_a_whole_group_or_none(tmp_path):
    from pathlib import Path

    root = tmp_path / "one.zarr"
    code = WRITER.format(tests=str(Path(__file__).parent), root=str(root))
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code])
        while not root.exists():
            time.sleep(0.02)
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if root.exists():  # between two names of a replaced one there is none
            read, provenance = read_labels(root)
            np.testing.assert_array_equal(
                read["keypoints"], arrays(200, 17, seed=provenance["seed"])["keypoints"]
            )
