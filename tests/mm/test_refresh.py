"""Labels of a whole split, made anew every few epochs: what is written, learned from, and gone on with."""

from __future__ import annotations

import json
import shutil
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dots_network import bright_project, train

from sagecache.cli.jobs import stats_job
from sagecache.errors import SagecacheError
from sagecache.mm import refresh, run
from sagecache.mm.estimator import SemiPoseEstimator
from sagecache.mm.gallery import look
from sagecache.mm.refresh import stored_labels, stored_votes
from sagecache.precompute.runner import run_stats
from sagecache.project import Project
from sagecache.project.trained import trained_run
from sagecache.semi.filtering import KeypointFilter
from sagecache.semi.refresh import LabelTable
from sagecache.store.labels import read_labels
from sagecache.structures import PseudoLabels

WORDS = {
    "semi.refresh": 1,
    "semi.terms.diffusion.weight": 0,
    "semi.terms.cmgc_depth.weight": 0,
    "semi.terms.cmgc_normal.weight": 0,
    "semi.gate.teacher_b": "none",
    "train_cfg.checkpoint_interval": 3,
    "data.val": None,
    "load_from": None,
}


@pytest.fixture
def project(tmp_path) -> Project:
    project = bright_project(tmp_path / "dots")
    run_stats(stats_job(project))
    return project


def work(project: Project, folder, **options):
    words = WORDS | options.pop("words", {})
    options = run.TrainOptions(overrides=words, work_dir=folder, **options)
    return train(project, "stage1-full", options, lambda *words: None)


def test_labels_are_made_anew_each_epoch_and_a_resumed_run_learns_from_the_same(project, tmp_path):
    """Two steps are an epoch of the six persons; iteration 3 lies within the second one."""
    whole = work(project, tmp_path / "whole", max_iters=4)
    made = sorted(path.name for path in (tmp_path / "whole" / "pseudo_labels").iterdir())
    assert made == ["iter_0.zarr", "iter_2.zarr"]
    first, about = read_labels(tmp_path / "whole" / "pseudo_labels" / "iter_0.zarr")
    instances = project.instances("unlabeled")
    assert first["ids"].tolist() == [list(one.key) for one in instances]
    assert first["keypoints"].shape == (len(instances), 17, 2) and first["confidence"].min() > 0.5
    assert (about["recipe"], about["iteration"]) == ("stage1-full", 0) and about["fates"]["kept"] == 0
    second, later = read_labels(tmp_path / "whole" / "pseudo_labels" / "iter_2.zarr")
    assert later["ema_teacher_sha256"] != about["ema_teacher_sha256"]
    assert not np.array_equal(second["keypoints"], first["keypoints"])

    cut = tmp_path / "cut"
    work(project, cut, max_iters=3)
    before = read_labels(cut / "pseudo_labels" / "iter_2.zarr")[0]
    resumed = work(project, cut, max_iters=4, resume=True)
    np.testing.assert_array_equal(
        read_labels(cut / "pseudo_labels" / "iter_2.zarr")[0]["keypoints"], before["keypoints"]
    )
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_steps_learn_from_the_table_and_ask_no_teacher(project, tmp_path, monkeypatch):
    asked, looked = [], []
    estimator = SemiPoseEstimator
    of_now, look_up = estimator.pseudo_labels, LabelTable.look_up
    monkeypatch.setattr(
        estimator, "pseudo_labels", lambda *a: (asked.append(len(a[1]["weak"])), of_now(*a))[1]
    )
    monkeypatch.setattr(LabelTable, "look_up", lambda *a: (looked.append(a[1].tolist()), look_up(*a))[1])
    work(project, tmp_path / "run", max_iters=2)
    assert asked == [6]  # all persons at once
    assert len(looked) == 2 and sorted(sum(looked, [])) == list(range(6))


@pytest.mark.parametrize("iterations, made", [(4, 2), (3, 2), (2, 0)])
def test_labels_to_look_at_are_those_that_the_last_step_learned_from(project, tmp_path, iterations, made):
    folder = tmp_path / "run"
    work(project, folder, max_iters=iterations)
    gallery = look(project, trained_run(project, "stage1-full", folder), 4)
    assert gallery.stored == made and len(gallery.judged) == 4
    arrays, _ = read_labels(folder / "pseudo_labels" / f"iter_{made}.zarr")
    row = {tuple(key): i for i, key in enumerate(arrays["ids"].tolist())}
    for one in gallery.judged:
        np.testing.assert_array_equal(one.keypoints, arrays["keypoints"][row[one.instance.key]])
        np.testing.assert_array_equal(one.weights, arrays["weights"][row[one.instance.key]])


def test_labels_of_another_moment_or_of_other_persons_are_not_shown(project, tmp_path):
    folder = tmp_path / "run"
    work(project, folder, max_iters=4)
    one = trained_run(project, "stage1-full", folder)
    persons = project.instances("unlabeled")
    assert stored_labels(folder, 4, persons[::-1]).iteration == 2
    assert stored_labels(folder, 5, persons) is None  # the refresh at 4 is not there
    assert stored_labels(folder, 4, [*persons, *project.instances("val")]) is None
    shutil.rmtree(folder / "pseudo_labels")
    assert look(project, one, 4).stored is None


def test_a_dynamic_threshold_is_that_of_all_persons(project, tmp_path, monkeypatch):
    """Two persons a batch, and the first ones of a training are judged by as much as the last."""
    monkeypatch.setattr(refresh, "BATCH", 2)
    words = {"semi.pseudo_labels.rule": "adaptive", "semi.pseudo_labels.beta": 0.0}
    last = work(project, tmp_path / "run", words=words, max_iters=1)
    arrays, _ = read_labels(tmp_path / "run" / "pseudo_labels" / "iter_0.zarr")
    state = torch.load(last, weights_only=True)["state_dict"]
    mean = state["labeler.keypoint_filter.statistics.mean"].numpy()
    np.testing.assert_allclose(mean, arrays["confidence"].mean(0), atol=1e-6)
    np.testing.assert_array_equal(arrays["weights"] > 0, arrays["confidence"] > mean.clip(0.1, 0.9))


class _Views(torch.utils.data.Dataset):
    """Nothing but numbers: of person i every joint is i hundredths sure."""

    def __init__(self, count: int) -> None:
        self.instances = [SimpleNamespace(key=(index, 0)) for index in range(count)]

    def __len__(self) -> int:
        return len(self.instances)

    def views(self, draw) -> dict[str, np.ndarray]:
        return dict(index=np.int64(draw.index), confidence=np.full(3, draw.index / 100, np.float32))


class _Model(torch.nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.table, self.ema_teacher = LabelTable(count, 3), torch.nn.Linear(1, 1)
        self.labeler = torch.nn.Module()
        self.labeler.keypoint_filter = KeypointFilter(3, rule="adaptive", limits=(0.0, 1.0), beta=0.0)
        self.data_preprocessor = SimpleNamespace(cast_data=lambda data: data)

    def pseudo_labels(self, views: dict) -> PseudoLabels:
        confidence = views["confidence"]
        weights, pose = self.labeler.keypoint_filter(confidence).weight, torch.zeros(*confidence.shape, 2)
        person = confidence[:, 0]
        return PseudoLabels(
            pose, pose, confidence, person, person > 0, weights, weights.long(), weights, pose
        )


def _one_of_two(rank: int, port: int, count: int, folder, queue) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    refresh.BATCH, model = 4, _Model(count)
    hook = refresh.RefreshHook(_Views(count), 1, folder, dict(seed=0))
    hook._refresh(SimpleNamespace(model=model, iter=0))
    queue.put((rank, model.table.weights.tolist(), model.labeler.keypoint_filter.statistics.mean.tolist()))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("count", [9, 1])
def test_processes_with_unequal_numbers_of_batches_refresh_together(tmp_path, count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = [(rank, port, count, tmp_path / "labels", queue) for rank in range(2)]
    processes = [context.Process(target=_one_of_two, args=one) for one in arguments]
    for process in processes:
        process.start()
    found = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    mean = (count - 1) / 200
    for _, weights, statistics in found:
        assert statistics == pytest.approx([mean] * 3)
        assert weights == [[float(index / 100 > mean)] * 3 for index in range(count)]


def test_labels_of_other_instances_are_refused(project, tmp_path):
    work(project, tmp_path / "cut", max_iters=3)
    annotations = project.path(project.split("unlabeled").annotations)
    content = json.loads(annotations.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 204]
    annotations.write_text(json.dumps(content))
    with pytest.raises(SagecacheError, match="is of other instances"):
        work(project, tmp_path / "cut", max_iters=4, resume=True)


def test_maps_cannot_be_learned_from_a_table_of_poses(project):
    words = WORDS | {"semi.terms.consistency.target": "heatmap"}
    with pytest.raises(SagecacheError, match="keeps poses and no heatmaps"):
        project.recipe("stage1-full", words)


def test_votes_are_taken_once_before_the_first_step_and_read_by_a_resumed_run(project, tmp_path, caplog):
    words = {"semi.swaps.front": 0.2, "semi.terms.sides.weight": 1.0, "semi.refresh": 0}
    whole = work(project, tmp_path / "whole", words=words, max_iters=4)
    arrays, about = read_labels(tmp_path / "whole" / "pseudo_labels" / "facing.zarr", kind="facing")
    assert arrays["ids"].tolist() == [list(one.key) for one in project.instances("unlabeled")]
    assert np.abs(arrays["votes"]).max() <= 1 and about["iteration"] == 0
    asked = [*project.instances("unlabeled")[3:0:-1], *project.instances("val")[:1]]
    found = stored_votes(tmp_path / "whole", asked)
    assert found[:3].tolist() == arrays["votes"][3:0:-1].tolist() and found[3].isnan()
    assert stored_votes(tmp_path / "none", asked) is None and "right are not checked" in caplog.text
    cut = tmp_path / "cut"
    work(project, cut, words=words, max_iters=3)
    resumed = work(project, cut, words=words, max_iters=4, resume=True)
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_takes_minutes_is_told_by_fifths():
    said, count = [], 7 * refresh.BATCH
    crops = refresh._WeakViews(_Views(count), 0, 0, lambda *told: said.append(told))
    seen = [index for views in crops.batches(_Model(count), "labels") for index in views["index"].tolist()]
    assert seen == list(range(count))
    assert said == [(0, 0, f"labels: {share} %") for share in (0, 20, 40, 60, 80)]
