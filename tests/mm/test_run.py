"""What a training is put together from: first weights, optimiser, schedule, streams; and a short run."""

from __future__ import annotations

import importlib
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from dots_network import bright_project, save_checkpoint, train
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.mm import run
from sagecache.models.weights import weights_path
from sagecache.project import Project
from sagecache.project.runs import FinishedRun, mark_finished, recipe_digest

ADAMW = dict(optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.02))


@pytest.fixture
def project(tmp_path) -> Project:
    return bright_project(tmp_path / "dots")


def test_instances_left_out_are_told_apart_and_the_command_is_named(project):
    targets = SimpleNamespace(attributes=dict(command="sagecache precompute geo --split unlabeled"))
    views = SimpleNamespace(skipped=3, not_computed=2, targets=targets)
    command = f"sagecache --project {project.folder} precompute geo --split unlabeled"
    assert run._left_out(project, "unlabeled", views) == (
        "3 unlabeled instances without targets left out: 1 failed or show nobody, "
        f"2 not computed yet (run: {command})"
    )
    views.skipped, views.not_computed = 1, 0
    assert run._left_out(project, "unlabeled", views) == (
        "1 unlabeled instance without targets left out: 1 failed or show nobody"
    )


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


def test_validations_are_logged_at_their_step(project):
    words = {"train_cfg.val_interval": 2}
    trained = train(project, "stage0", run.TrainOptions(overrides=words), lambda *words: None)
    (log,) = trained.parent.glob("2*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if "keypoints/AP" in row] == [2, 4]
