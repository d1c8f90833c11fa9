"""The weights that a training starts from, and what its estimator is built of."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dots_network import bright_project, save_checkpoint
from safetensors.torch import save_file

from sagecache.errors import SagecacheError
from sagecache.mm import build
from sagecache.mm.checkpoints import load_network
from sagecache.mm.inputs import weights_digest
from sagecache.mm.registry import build_student
from sagecache.models.weights import weights_path
from sagecache.project import Project
from sagecache.project.runs import FinishedRun, mark_finished, note_start


@pytest.fixture
def project(tmp_path) -> Project:
    return bright_project(tmp_path / "dots")


def start(project: Project, load_from: str | None):
    return build.start_checkpoint(project, replace(project.recipe("stage0")[0], load_from=load_from))


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
    total = project.recipe("stage0")[0].train_cfg.max_iters
    save_checkpoint(project, work_dir / "iter_2.pth", student=(1.0, 1.0), ema_teacher=(1.0, 1.0))
    page, other = project.recipe("stage0"), project.recipe("stage0", {"ema_decay": 0.5})
    short = f"'stage0', which was trained for 2 of its {total} iterations"
    for done, made_of, told in (
        (2, page, short),
        (total, other, "with other settings than its page's"),
        (total, page, ""),
    ):
        caplog.clear()
        note_start(work_dir, *made_of)
        mark_finished(work_dir, FinishedRun(done, "iter_2.pth"))
        build.warn_of_start(project, *project.recipe("stage1-full"))
        assert start(project, "stage0") == work_dir / "iter_2.pth"
        assert told in caplog.text and bool(told) == bool(caplog.text)


def test_a_start_that_is_nowhere_names_the_nearest_recipe(project):
    with pytest.raises(SagecacheError, match="load_from 'stage1-ful' is neither.*did you mean 'stage1-full'"):
        start(project, "stage1-ful")


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_none_in_quotes_is_told_how_it_is_written(project, word):
    with pytest.raises(SagecacheError, match="Write None: load_from=None.*Known: None, demo, "):
        start(project, word)


def test_the_committed_student_in_another_network_is_the_recipe_s_fault(project):
    page = project.folder / "stage0.py"
    page.write_text(page.read_text() + 'load_from = "demo"\n')
    recipe, model = project.recipe("stage0")
    with pytest.raises(SagecacheError, match="^recipe stage0.*: load_from = 'demo' is the demo's") as caught:
        build.build_estimator(project, recipe, model)
    for told in ("Set it to None", "or to a checkpoint of your model", "it has no name in common"):
        assert told in caught.value.fix
    own = save_checkpoint(project, project.folder / "own.pth")
    with pytest.raises(SagecacheError, match="^.*own.pth: the checkpoint"):  # any other file is its own
        build.build_estimator(Project.demo(), replace(recipe, load_from=str(own)), Project.demo().model)


def test_a_student_that_knows_nothing_is_told_of_once(project, caplog):
    recipe, model = project.recipe("stage0")
    weights = dict(type="Pretrained", checkpoint="backbone.pth")
    for load_from, init_cfg, told in (
        (None, None, True),
        (None, dict(type="Normal"), True),
        (None, [dict(type="Normal"), weights], False),
        ("demo", None, False),
    ):
        caplog.clear()
        own = model | dict(backbone=dict(model["backbone"], init_cfg=init_cfg))
        build.warn_of_start(project, replace(recipe, load_from=load_from), own)
        assert ("starts from random weights" in caplog.text) == told


def test_student_and_teacher_start_from_the_teacher_of_the_checkpoint(project):
    path = save_checkpoint(project, project.folder / "a.pth", student=(9.0, 9.0), ema_teacher=(0.5, 0.25))
    recipe, model = project.recipe("stage0", dict(load_from=str(path)))
    estimator = build.build_estimator(project, recipe, model)
    for network in (estimator.student, estimator.ema_teacher):
        assert network.head.shift.tolist() == [0.5, 0.25]
    assert estimator.labeler is None and not estimator.terms


def test_channels_last_changes_the_layout_and_not_what_is_computed():
    images = torch.randint(0, 256, (2, 3, 128, 96), generator=torch.Generator().manual_seed(0)).byte()
    maps = {}
    for flag in (False, True):
        recipe, model = Project.open(None).recipe("stage0", {"channels_last": flag})
        estimator = build.build_estimator(Project.open(None), recipe, model).eval()
        for network in (estimator.student, estimator.ema_teacher):
            weight = network.backbone.stage4.conv1.weight
            assert weight.is_contiguous(memory_format=torch.channels_last) == flag
        with torch.no_grad():
            features = estimator.student.extract_feat(estimator.normalise(images))
        maps[flag] = estimator.student.head(features)
    torch.testing.assert_close(maps[True], maps[False], rtol=1e-3, atol=1e-3)


def test_load_from_may_be_a_folder_of_hugging_face_in_bfloat16(project):
    folder = project.folder / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    state = build_student(project.model).state_dict()
    halves = {name: value.bfloat16() if value.is_floating_point() else value for name, value in state.items()}
    save_file(halves, folder / "model.safetensors")
    path = start(project, "weights")
    assert path == folder and len(weights_digest(path)) == 64
    student = build_student(project.model)
    load_network(student, path)
    name = next(iter(halves))
    assert torch.equal(student.state_dict()[name], halves[name].float())
