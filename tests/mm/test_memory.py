"""Which rung comes next for which recipe, and that a training which runs out of memory names it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dots_network import BrightDotsHead, bright_project, train

from sagecache.errors import SagecacheError
from sagecache.mm import run
from sagecache.mm.memory import ladder, memory_advice, takes
from sagecache.mm.registry import MODELS
from sagecache.project.overrides import parse_overrides
from sagecache.project.recipe import Recipe
from sagecache.strict import build

MODEL = dict(
    backbone=dict(type="PoseNet"),
    head=dict(decoder=dict(input_size=(192, 256), heatmap_size=(48, 64))),
)
RESNET = dict(backbone=dict(type="ResNet", depth=50))


def recipe(labeled=16, unlabeled=32, strong=1, **more) -> Recipe:
    page = dict(
        data=dict(unlabeled="unlabeled"),
        batch=dict(labeled=labeled, unlabeled=unlabeled),
        views=dict(num_strong=strong),
        semi=dict(terms=dict(consistency=dict())),
        train_cfg=dict(max_iters=450),
    )
    return build(Recipe, page | more, "page.py")


def rungs(of: Recipe, model: dict = MODEL, amp: bool = False) -> dict:
    return {rung.name: rung for rung in ladder(replace(of, amp=amp), model)}


def words(rung) -> dict:
    """What an advice says to type, as the command line would read it."""
    return parse_overrides(word for word in rung.advice.split("(")[0].split())


def test_the_rungs_stand_in_the_order_of_what_they_cost():
    order = ["accumulation", "bfloat16", "checkpointing", "resolution", "views", "teachers"]
    assert list(rungs(recipe())) == order


@pytest.mark.parametrize(
    "labeled, unlabeled, counts, expected",
    [
        (16, 32, 1, {"batch.labeled": 8, "batch.unlabeled": 16, "optim_wrapper.accumulative_counts": 2}),
        (3, 32, 2, {"batch.labeled": 2, "batch.unlabeled": 16, "optim_wrapper.accumulative_counts": 4}),
        (16, 0, 1, {"batch.labeled": 8, "optim_wrapper.accumulative_counts": 2}),
        (2, 4, 4, None),
        (1, 1, 8, None),
    ],
)
def test_accumulation_keeps_the_images_of_an_optimiser_step(labeled, unlabeled, counts, expected):
    rung = rungs(recipe(labeled, unlabeled, optim_wrapper=dict(accumulative_counts=counts)))["accumulation"]
    assert rung.used == (f"optim_wrapper.accumulative_counts={counts}" if counts > 1 else None)
    if expected is None:
        assert rung.advice is None
    else:
        assert words(rung) == expected | {"train_cfg.max_iters": 900}


def test_accumulation_keeps_what_counts_batches():
    semi = dict(terms=dict(consistency=dict()), pseudo_labels=dict(warm_up=100), ramp_up=40)
    asked = words(rungs(recipe(semi=semi))["accumulation"])
    assert asked["semi.pseudo_labels.warm_up"] == 200 and "semi.ramp_up" not in asked


def test_checkpointing_is_offered_to_backbones_that_take_it():
    assert takes(MODELS.get("ResNet"), "with_cp") and takes(MODELS.get("HRNet"), "with_cp")
    assert takes(MODELS.get("ResNetV1d"), "with_cp")  # by **kwargs to its base
    assert not takes(MODELS.get("PoseNet"), "with_cp") and not takes(None, "with_cp")
    assert words(rungs(recipe(), RESNET)["checkpointing"]) == {"model.backbone.with_cp": True}
    assert rungs(recipe())["checkpointing"].advice is None
    on = rungs(recipe(), dict(backbone=dict(type="ResNet", with_cp=True)))["checkpointing"]
    assert (on.used, on.advice) == ("model.backbone.with_cp", None)


@pytest.mark.parametrize(
    "size, maps, expected",
    [
        ((192, 256), (48, 64), "input_size=(96, 128), heatmap_size=(24, 32)"),
        ((288, 384), (72, 96), "input_size=(192, 256), heatmap_size=(48, 64)"),
        ((768, 1024), (192, 256), "input_size=(576, 768), heatmap_size=(144, 192)"),
        ((96, 128), (24, 32), None),
    ],
)
def test_the_next_resolution_can_be_divided(size, maps, expected):
    head = dict(decoder=dict(input_size=size, heatmap_size=maps))
    advice = rungs(recipe(), dict(backbone={}, head=head))["resolution"].advice
    assert (advice is None) if expected is None else f"in model.py {expected} (" in advice
    if expected:
        vit = rungs(recipe(), dict(backbone=dict(img_size=size[::-1]), head=head))["resolution"].advice
        assert "img_size=(" in vit


def rtmpose(size: tuple[int, int], sigma) -> dict:
    features = tuple(side // 32 for side in size)
    codec = dict(type="SimCCLabel", input_size=size, sigma=sigma, simcc_split_ratio=2.0)
    return dict(backbone={}, head=dict(input_size=size, in_featuremap_size=features, decoder=codec))


def test_simcc_students_get_a_smaller_input_with_what_goes_along():
    advice = rungs(recipe(), rtmpose((288, 384), (6.0, 6.93)))["resolution"].advice
    # mmpose's own page for 192 x 256
    assert "input_size=(192, 256), in_featuremap_size=(6, 8), sigma=(4.9, 5.66)" in advice
    assert "the codec and the head alike" in advice
    advice = rungs(recipe(), rtmpose((192, 256), 6))["resolution"].advice
    assert "input_size=(96, 128), in_featuremap_size=(3, 4), sigma=4.24" in advice
    assert rungs(recipe(), rtmpose((96, 128), 6))["resolution"].advice is None
    without = dict(head=dict(decoder=dict(type="SimCCLabel")))
    assert rungs(recipe(), without)["resolution"].advice is None


def test_views_go_one_by_one():
    assert words(rungs(recipe(strong=3))["views"]) == {"views.num_strong": 2}
    assert rungs(recipe(strong=1))["views"].advice is None
    assert rungs(recipe(strong=3, unlabeled=0))["views"].advice is None  # not computed


def test_two_teachers_become_one_whose_keys_are_taken(tmp_path):
    project = bright_project(tmp_path / "dots")
    dual = {"semi.teacher.mode": "dual", "semi.teacher.appearance.decay": 0.9, "views.appearance.colour": 0.2}
    dual |= {"semi.teacher.appearance.alternate": True}
    rung = rungs(project.recipe("stage1-full", dual)[0])["teachers"]
    after, _ = project.recipe("stage1-full", dual | words(rung))  # refused if one key were left
    assert after.semi.teacher.mode == "single_two_view"
    assert rungs(after)["teachers"].advice is None and rungs(recipe())["teachers"].advice is None


def raised(error: Exception, of: Recipe, model: dict = MODEL, amp: bool = False) -> SagecacheError:
    with pytest.raises(SagecacheError) as caught, memory_advice(replace(of, amp=amp), model):
        raise error
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_what_was_climbed_is_named_and_the_next_rung_follows(error):
    error_of = raised(error, recipe())
    assert error_of.message.startswith("out of device memory") and "In use already" not in error_of.message
    assert error_of.fix.startswith("Next: batch.labeled=8 batch.unlabeled=16 optim_wrapper.accumulative_c")
    small = dict(labeled=2, unlabeled=4, optim_wrapper=dict(accumulative_counts=8))
    assert raised(error, recipe(**small)).fix.startswith("Next: --amp")
    last = raised(error, recipe(**small), RESNET | dict(head=MODEL["head"]), amp=True)
    assert "In use already: optim_wrapper.accumulative_counts=8, --amp" in last.message
    assert last.fix.startswith("Next: model.backbone.with_cp=True")
    assert raised(error, recipe(**small, strong=2), {}, amp=True).fix.startswith("Next: views.num_strong=1")
    assert raised(error, recipe(**small), {}, amp=True).fix == (
        "Take a smaller backbone, or a device with more memory."
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 6.00 MiB for an array"),
        RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid 71) is killed by signal: Bus error. It is possible that …"),
    ],
)
def test_memory_of_the_machine_is_that_of_its_loaders_first(error):
    told = raised(error, recipe(batch=dict(labeled=16, unlabeled=32, workers=4)))
    assert told.message.startswith("out of host memory")
    assert told.fix == "Next: data.image_cache_mb=256, of each loader process."
    bare = dict(data=dict(unlabeled="unlabeled", image_cache_mb=0))
    fewer = raised(error, recipe(batch=dict(labeled=16, unlabeled=32, workers=4), **bare))
    assert fewer.fix.startswith("Next: batch.workers=3")
    assert raised(error, recipe(batch=dict(labeled=16, workers=1), **bare)).fix.startswith("Next: batch.lab")


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)), memory_advice(recipe(), MODEL):
        raise error


def test_a_training_that_runs_out_of_memory_ends_with_advice(tmp_path, monkeypatch):
    project = bright_project(tmp_path / "dots")

    def out_of_memory(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(BrightDotsHead, "loss", out_of_memory, raising=False)
    options = run.TrainOptions(overrides={"batch.labeled": 12, "data.val": None})
    with pytest.raises(SagecacheError, match="Tried to allocate 20.00 MiB. Next: batch.labeled=6 optim_wr"):
        train(project, "stage0", options, lambda *words: None)
