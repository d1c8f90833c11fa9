"""What a training is put together from: first weights, optimiser, schedule, streams; and a short run."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dots import write_dots_project
from dots_network import DotsHead, save_checkpoint
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.mm import run
from sagecache.mm.registry import MODELS
from sagecache.models.weights import weights_path
from sagecache.project import Project
from sagecache.project.runs import FinishedRun, mark_finished, recipe_digest
from sagecache.store.lock import FolderLock

ADAMW = dict(optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.02))


@MODELS.register_module(force=True)
class BrightDotsHead(DotsHead):
    """The same with something to learn: how far its peaks are from where they should be."""

    def __init__(self, decoder: dict) -> None:
        super().__init__(decoder)
        del self.shift
        self.shift = nn.Parameter(torch.tensor([1.0, -1.0]))
        del self.final_layer  # it would wait for a gradient that never comes


@pytest.fixture
def project(tmp_path) -> Project:
    folder = write_dots_project(tmp_path / "dots")
    page = folder / "model.py"
    page.write_text(page.read_text().replace("DotsHead", "BrightDotsHead"))
    return Project.open(folder)


# -- optimiser and schedule ----------------------------------------------------------------------------


class Estimator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.ema_teacher = nn.Linear(3, 2), nn.Linear(3, 2)


def test_the_optimiser_holds_the_parameters_of_the_student_and_no_others():
    estimator = Estimator()
    wrapper = run.build_optimizer(estimator.student, ADAMW, amp=False)
    held = [id(p) for group in wrapper.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in estimator.student.parameters())
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in wrapper.optimizer.param_groups} == {0.01}


def test_names_of_the_student_take_their_own_options():
    """As layer decay needs it: the names start at the student, not at the estimator."""
    student = nn.ModuleDict(dict(backbone=nn.Linear(3, 2), head=nn.Linear(2, 2)))
    config = ADAMW | dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
    wrapper = run.build_optimizer(student, config, amp=False)
    rate = {id(p): group["lr"] for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert [rate[id(p)] for p in student["backbone"].parameters()] == pytest.approx([0.001] * 2)
    assert [rate[id(p)] for p in student["head"].parameters()] == [0.01] * 2


def test_amp_computes_in_bfloat16():
    layer = nn.Linear(3, 2)
    for amp, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        wrapper = run.build_optimizer(layer, ADAMW, amp=amp)
        with wrapper.optim_context(layer):
            assert layer(torch.ones(1, 3)).dtype == dtype


def test_amp_scales_no_loss_on_any_device(monkeypatch):
    """mmengine's wrapper as on a GPU, where nothing but the options switches its scaler off."""
    seen = []
    module = importlib.import_module("mmengine.optim.optimizer.amp_optimizer_wrapper")
    monkeypatch.setattr(module, "GradScaler", lambda **options: seen.append(options))
    run.build_optimizer(nn.Linear(3, 2), ADAMW, amp=True)
    assert seen == [dict(enabled=False)]


@pytest.mark.parametrize(
    "config, told",
    [
        ({}, "no optimiser.*optim_wrapper = dict"),
        (dict(optimizer=dict(type="AdamX", lr=1.0)), "AdamX"),
        (dict(optimizer=dict(type="AdamW", rate=1.0)), "rate"),
        (dict(optimizer=dict(type="AdamW", lr=-1.0)), "-1.0"),
    ],
)
def test_an_optimiser_that_cannot_be_built_is_told_in_one_line(config, told):
    with pytest.raises(SagecacheError, match=told):
        run.build_optimizer(nn.Linear(2, 2), config, amp=False)


def test_a_schedule_goes_by_iteration_and_ends_with_the_training():
    given = [
        dict(type="LinearLR", end=30),
        dict(type="CosineAnnealingLR", begin=30),
        dict(type="ConstantLR", by_epoch=True),
    ]
    assert run._schedule(given, 500) == [
        dict(type="LinearLR", by_epoch=False, end=30),
        dict(type="CosineAnnealingLR", by_epoch=False, begin=30, end=500),
        dict(type="ConstantLR", by_epoch=True, end=500),
    ]
    assert given[1] == dict(type="CosineAnnealingLR", begin=30)
    assert run._schedule(dict(type="LinearLR"), 7) == [dict(type="LinearLR", by_epoch=False, end=7)]
    assert run._schedule(None, 5) is None and run._schedule([], 5) is None


@pytest.mark.parametrize(
    "scheduler, told",
    [
        (dict(type="CosinLR"), "param_scheduler can't be built.*CosinLR"),
        (dict(type="LinearLR", start=0.1), "start"),
        ("CosineAnnealingLR", "recipe: param_scheduler is .*Set a list of dict"),
        (dict(type="LinearLR", start_factor=3.0), "[Ss]tart"),
    ],
)
def test_a_schedule_that_cannot_be_built_is_told_in_one_line(scheduler, told):
    with pytest.raises(SagecacheError, match=told) as caught:
        run._schedule([scheduler], 10)
    assert "\n" not in str(caught.value)


def test_log_writers_are_fresh_for_each_run(project):
    """mmengine writes the run's folder into the dicts that it gets."""
    recipe = replace(project.recipe("stage0")[0], vis_backends=[dict(type="LocalVisBackend")])
    first = run._backends(recipe)
    first[0]["save_dir"] = "elsewhere"
    assert run._backends(recipe) == recipe.vis_backends == [dict(type="LocalVisBackend")]
    plain = run._backends(project.recipe("stage0")[0])
    assert plain and plain is not run._backends(project.recipe("stage0")[0])


def train(project: Project, name: str, options: run.TrainOptions, report) -> Path:
    """run.train in a second of its own: mmengine names a run by its second, and warns of a second one."""
    time.sleep(1 - time.time() % 1)
    return run.train(project, name, options, report)


# -- weights to start with -----------------------------------------------------------------------------


def start(project: Project, load_from: str | None):
    return run.start_checkpoint(project, replace(project.recipe("stage0")[0], load_from=load_from))


def test_load_from_is_the_committed_student_a_recipe_or_a_file(project):
    assert start(project, None) is None
    assert start(project, "demo") == weights_path("student") and weights_path("student").is_file()
    own = save_checkpoint(project, project.folder / "nets" / "pretrained.pth")
    assert start(project, "nets/pretrained.pth") == own
    for name in ("iter_4.pth", "best_keypoints_PCK_iter_2.pth"):  # the best counts, else the last
        save_checkpoint(project, project.folder / "work_dirs" / "stage1_full" / name)
        assert start(project, "stage1-full").name == name


def test_a_recipe_that_is_not_trained_yet_is_named_with_its_command(project):
    with pytest.raises(
        SagecacheError, match="'stage1-full' is not trained yet.*sagecache --project .* train stage1-full"
    ):
        start(project, "stage1-full")


def test_a_base_of_a_trial_run_is_warned_of(project, caplog):
    work_dir = project.work_dir("stage0")
    work_dir.mkdir(parents=True)
    (work_dir / "iter_2.pth").touch()
    total = project.recipe("stage0")[0].train_cfg.max_iters
    page = recipe_digest(*project.recipe("stage0"))
    other = recipe_digest(*project.recipe("stage0", {"ema_decay": 0.5}))
    short = f"'stage0', which was trained for 2 of its {total} iterations"
    for done, made_of, told in (
        (2, page, short),
        (total, other, "with other settings than its page's"),
        (total, page, ""),
    ):
        caplog.clear()
        mark_finished(work_dir, FinishedRun(done, "iter_2.pth", made_of))
        assert start(project, "stage0") == work_dir / "iter_2.pth"
        assert told in caplog.text and bool(told) == bool(caplog.text)


def test_a_start_that_is_nowhere_names_the_nearest_recipe(project):
    with pytest.raises(SagecacheError, match="load_from 'stage1-ful' is neither.*did you mean 'stage1-full'"):
        start(project, "stage1-ful")


def test_student_and_teacher_start_from_the_teacher_of_the_checkpoint(project):
    path = save_checkpoint(project, project.folder / "a.pth", student=(9.0, 9.0), ema_teacher=(0.5, 0.25))
    recipe, model = project.recipe("stage0", dict(load_from=str(path)))
    estimator = run.build_estimator(project, recipe, model)
    for network in (estimator.student, estimator.ema_teacher):
        assert network.head.shift.tolist() == [0.5, 0.25]
    assert estimator.labeler is None and not estimator.terms


def test_channels_last_changes_the_layout_and_not_what_is_computed():
    images = torch.randint(0, 256, (2, 3, 128, 96), generator=torch.Generator().manual_seed(0)).byte()
    maps = {}
    for flag in (False, True):
        recipe, model = Project.open(None).recipe("stage0", {"channels_last": flag})
        estimator = run.build_estimator(Project.open(None), recipe, model).eval()
        for network in (estimator.student, estimator.ema_teacher):
            weight = network.backbone.stage4.conv1.weight
            assert weight.is_contiguous(memory_format=torch.channels_last) == flag
        with torch.no_grad():
            features = estimator.student.extract_feat(estimator.normalise(images))
        maps[flag] = estimator.student.head(features)
    torch.testing.assert_close(maps[True], maps[False], rtol=1e-3, atol=1e-3)


# -- streams -------------------------------------------------------------------------------------------


def test_a_step_holds_as_many_of_each_stream_as_the_recipe_says(project):
    recipe, model = project.recipe("stage1-full")
    loader = run.train_loader(project, recipe, model, seed=0)
    for batch in itertools.islice(loader, 3):
        assert batch["labeled"]["image"].shape == (2, 3, 128, 96)
        assert batch["unlabeled"]["strong"].shape == (3, 1, 3, 128, 96)
        assert set(batch["labeled"]["image_id"].tolist()) <= {101, 102, 103}
        assert set(batch["unlabeled"]["image_id"].tolist()) <= {201, 202, 203, 204}
    # six unlabeled persons, three a step; five labeled ones, two a step
    assert len(loader) == 3


def test_without_a_share_of_unlabeled_images_there_is_no_such_stream(project):
    recipe, model = project.recipe("stage1-full", {"batch.unlabeled": 0})
    (batch,) = itertools.islice(run.train_loader(project, recipe, model, seed=0), 1)
    assert set(batch) == {"labeled"}


def test_labels_come_with_their_own_boxes(project):
    """Detected persons have no keypoints to learn from."""
    page = project.folder / "data.py"
    page.write_text(page.read_text() + "\nsplits['labeled']['boxes'] = 'detect'\n")
    project = Project.open(project.folder)
    recipe, model = project.recipe("stage0")
    (batch,) = itertools.islice(run.train_loader(project, recipe, model, seed=0), 1)
    assert batch["labeled"]["bbox"][:, 2:].tolist() == [[120.0, 146.0]] * 2


def test_the_seed_decides_the_batches(project):
    recipe, model = project.recipe("stage0")

    def images(seed):
        return next(iter(run.train_loader(project, recipe, model, seed)))["labeled"]["image"]

    assert torch.equal(images(1), images(1)) and not torch.equal(images(1), images(2))


# -- a short run ---------------------------------------------------------------------------------------


def test_training_learns_logs_validates_and_returns_the_best_checkpoint(project):
    """All there is to learn is where the peaks are: the shift must go to zero."""
    seen = []
    options = run.TrainOptions(overrides={"optim_wrapper.optimizer.lr": 400.0, "ema_decay": 0.5})
    best = train(project, "stage0", options, lambda done, total, message="": seen.append((done, total)))
    assert best.parent == project.folder / "work_dirs" / "stage0" and best.name.startswith("best_")
    assert seen[-1] == (4, 4)
    state = torch.load(best, weights_only=True)["state_dict"]
    assert state["student.head.shift"].norm() < 0.5 * 2**0.5
    (log,) = best.parent.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    (validated,) = [row for row in rows if "keypoints/AP" in row]
    assert validated["keypoints/PCK@0.1"] == 1.0
    assert project.checkpoint("stage0") == best


def test_a_recipe_without_train_cfg_says_so(project):
    page = project.folder / "bare.py"
    page.write_text('optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01))\n')
    with pytest.raises(SagecacheError, match="recipe bare: the recipe has no train_cfg"):
        train(project, "bare", run.TrainOptions(), lambda *words: None)


def test_a_seed_too_large_for_the_generator_is_refused(project):
    words = {"data.val": None, "seed": 10**9 + 1}
    with pytest.raises(SagecacheError, match=r"seed is 1000000001, it must be in \[0, 1000000000\]"):
        train(project, "stage0", run.TrainOptions(overrides=words), lambda *words: None)
    options = run.TrainOptions(overrides=words | {"seed": 10**9}, max_iters=1)  # the largest works
    assert train(project, "stage0", options, lambda *words: None).name == "iter_1.pth"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"default_hooks.mine": 1}, "'default_hooks.mine' should be a dict, got 1"),
        ({"custom_hooks": 3}, "'custom_hooks' should be a list, got 3"),
        ({"custom_hooks": [{"type": "NoSuchHook"}]}, "stage0: mmengine refuses it: .*NoSuchHook"),
        ({"vis_backends": [{"type": "NoSuchBackend"}]}, "stage0: mmengine refuses it: .*NoSuchBackend"),
    ],
)
def test_what_mmengine_cannot_build_is_one_clear_error(project, words, told):
    with pytest.raises(SagecacheError, match=told):
        train(project, "stage0", run.TrainOptions(overrides=words), lambda *words: None)


def test_a_cut_checkpoint_resumes_from_the_one_before(project, caplog):
    """With the seed of the run, and up to the same end."""
    words = {"train_cfg.checkpoint_interval": 1, "data.val": None}
    first = run.TrainOptions(overrides=words, seed=7)
    last = train(project, "stage0", first, lambda *words: None)
    whole = torch.load(last, weights_only=True)["state_dict"]
    last.write_bytes(last.read_bytes()[:500])
    again = train(project, "stage0", run.TrainOptions(overrides=words, resume=True), lambda *words: None)
    assert again == last and "iter_4.pth can't be read" in caplog.text
    resumed = torch.load(last, weights_only=True)["state_dict"]
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)
    assert "nothing left to do" not in caplog.text
    train(project, "stage0", run.TrainOptions(overrides=words, resume=True), lambda *words: None)
    assert "nothing left to do" in caplog.text and "at iteration 4 of 4" in caplog.text


def test_a_fresh_run_that_fails_at_once_leaves_the_run_before_where_it_was(project):
    first = train(project, "stage0", run.TrainOptions(overrides={"data.val": None}), lambda *words: None)

    def fails(*words):
        raise SagecacheError("loss is nan")

    with pytest.raises(SagecacheError, match="nan"):
        train(project, "stage0", run.TrainOptions(overrides={"train_cfg.log_interval": 1}), fails)
    assert project.checkpoint("stage0") == first and first.is_file()
    assert not (first.parent / "previous-1").exists()


def test_a_copied_work_dir_is_resumed_from_its_own_files_and_the_original_keeps_its_best(project, tmp_path):
    """mmengine keeps absolute paths, and deletes the former best checkpoint for a better one."""
    words = {"train_cfg.checkpoint_interval": 2, "train_cfg.val_interval": 2}
    first = train(project, "stage0", run.TrainOptions(overrides=words, max_iters=2), lambda *words: None)
    assert first.name.startswith("best_")
    copy = tmp_path / "copied" / "stage0"
    shutil.copytree(first.parent, copy)
    state = torch.load(copy / "iter_2.pth", weights_only=True)
    state["message_hub"]["runtime_info"]["best_score"] = -1.0  # whatever comes next is better
    torch.save(state, copy / "iter_2.pth")
    before = {path.name for path in first.parent.glob("*.pth")}
    words["train_cfg.val_interval"] = 4  # the resumed one does not validate its second step again
    options = run.TrainOptions(overrides=words, work_dir=copy, resume=True, max_iters=4)
    second = train(project, "stage0", options, lambda *words: None)
    assert second.parent == copy and second.is_file() and second.name != first.name
    assert {path.name for path in first.parent.glob("*.pth")} == before
    assert not (copy / first.name).exists()  # the copy's own former best


def test_a_run_of_another_recipe_is_not_gone_on_with(project):
    """mmengine would take the learning rate from the file, and the page would be certified."""
    trained = train(project, "stage0", run.TrainOptions(overrides={"data.val": None}), lambda *words: None)
    before = {path: path.stat().st_mtime_ns for path in trained.parent.glob("*.*")}
    other = {"data.val": None, "optim_wrapper.optimizer.lr": 1e-9, "model.head.in_channels": 5}
    with pytest.raises(SagecacheError, match=r"of another recipe \(model.head.in_channels: .* -> 5; .*lr: "):
        train(project, "stage0", run.TrainOptions(overrides=other, resume=True), lambda *words: None)
    assert {path: path.stat().st_mtime_ns for path in trained.parent.glob("*.*")} == before
    with pytest.raises(SagecacheError, match=r"train_cfg.max_iters: 4 -> 9"):  # the schedule would be another
        words = {"data.val": None, "train_cfg.max_iters": 9}
        train(project, "stage0", run.TrainOptions(overrides=words, resume=True), lambda *words: None)
    words = {"data.val": None, "train_cfg.log_interval": 1, "batch.workers": 0}
    options = run.TrainOptions(overrides=words, resume=True, max_iters=5)
    assert train(project, "stage0", options, lambda *words: None).name == "iter_5.pth"


def test_an_infinite_number_in_a_recipe_hinders_no_resume(project):
    words = {"data.val": None, "optim_wrapper.clip_grad": {"max_norm": math.inf}}
    train(project, "stage0", run.TrainOptions(overrides=words, max_iters=1), lambda *words: None)
    options = run.TrainOptions(overrides=words, max_iters=2, resume=True)
    assert train(project, "stage0", options, lambda *words: None).name == "iter_2.pth"


def test_each_process_of_a_validation_has_its_share_before_the_group_is_joined(
    project, monkeypatch, tmp_path
):
    """On GPUs mmengine joins only within the Runner."""
    recipe, seen = project.recipe("stage0")[0], []
    for rank in ("0", "1"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        seen.append(list(run._validation(project, recipe, tmp_path)["val_dataloader"].sampler))
    assert len(seen[0]) == len(seen[1]) == -(-len(project.instances("val")) // 2)
    assert set(seen[0]) | set(seen[1]) == set(range(len(project.instances("val"))))


def test_two_trainings_never_share_a_folder(project):
    project.work_dir("stage0").mkdir(parents=True)
    lock = FolderLock(project.work_dir("stage0"), shared=False)
    try:
        with pytest.raises(SagecacheError, match="another process is writing here"):
            train(project, "stage0", run.TrainOptions(), lambda *words: None)
    finally:
        lock.release()
    train(project, "stage0", run.TrainOptions(max_iters=1), lambda *words: None)
    assert not (project.work_dir("stage0") / ".lock").exists()


@pytest.mark.parametrize(
    "steps, scores, best",
    [
        (4, [0.5, KeyboardInterrupt(), 0.5, 0.3], 2),  # killed in the first of two validations
        (3, [0.2, 0.2, KeyboardInterrupt(), 0.5], 3),  # in the one at the end, which is at no interval
    ],
)
def test_a_run_killed_in_a_validation_makes_up_for_it(project, monkeypatch, steps, scores, best):
    """A checkpoint is written before its validation: the resumed run chooses as the undisturbed one."""
    words = {"train_cfg.checkpoint_interval": 1 if steps == 3 else 2, "train_cfg.val_interval": 2}
    scores = iter(scores)

    def measured(metric, results):
        score = next(scores)
        if isinstance(score, BaseException):
            raise score
        return {"PCK@0.05": score}

    monkeypatch.setattr(run.KeypointMetric, "compute_metrics", measured)
    train(project, "stage0", run.TrainOptions(overrides=words, max_iters=2), lambda *words: None)
    options = dict(overrides=words, max_iters=steps)
    with pytest.raises(KeyboardInterrupt):
        train(project, "stage0", run.TrainOptions(**options), lambda *words: None)
    again = train(project, "stage0", run.TrainOptions(**options, resume=True), lambda *words: None)
    assert again.name == f"best_keypoints_PCK@0.05_iter_{best}.pth" and next(scores, None) is None


def test_validations_are_logged_at_their_step(project):
    words = {"train_cfg.val_interval": 2}
    trained = train(project, "stage0", run.TrainOptions(overrides=words), lambda *words: None)
    (log,) = trained.parent.glob("2*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "keypoints/AP" in row] == [2, 4]


def test_without_tensorboard_there_are_no_curves_and_training_goes_on(project, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    train(project, "stage0", run.TrainOptions(max_iters=1), lambda *words: None)
    assert not list(project.work_dir("stage0").rglob("events.out*"))


def test_a_fresh_run_that_is_killed_early_is_never_resumed_from_the_run_before(project):
    words = {"train_cfg.checkpoint_interval": 2, "data.val": None}

    def again_with(report=lambda *words: None, **options):
        return train(project, "stage0", run.TrainOptions(overrides=words, **options), report)

    def killed(*words):
        raise KeyboardInterrupt

    first = again_with(seed=7)
    with pytest.raises(KeyboardInterrupt):
        again_with(killed, seed=8)
    kept = {path.name for path in (first.parent / "previous-1").iterdir()}
    assert kept == {"iter_2.pth", "iter_4.pth", "last_checkpoint", "finished.json", "recipe.json"}
    assert run.newest_readable(first.parent) is None and project.checkpoint("stage0") is None
    steps = []
    again = again_with(lambda done, total, message="": steps.append(done), seed=8, resume=True)
    assert steps[0] == 1 and again == first
    assert torch.load(again, weights_only=True)["meta"]["seed"] == 8
    assert not (first.parent / "previous-2").exists()
