"""Optimiser and schedule of a recipe."""

from __future__ import annotations

import importlib
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.mm import optimisers
from sagecache.mm.compat import activate
from sagecache.models.vit import VisionTransformer

activate()  # mmengine's AMP wrapper asks for a GPU otherwise
ADAMW = dict(optimizer=dict(type="AdamW", lr=0.01, weight_decay=0.02))


class Backboned(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.backbone, self.head = parts["backbone"], parts["head"]


class Estimator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.ema_teacher = nn.Linear(3, 2), nn.Linear(3, 2)


def test_the_optimiser_holds_the_parameters_of_the_student_and_no_others():
    estimator = Estimator()
    wrapper = optimisers.build_optimizer(estimator.student, ADAMW, amp=False)
    held = [id(p) for group in wrapper.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in estimator.student.parameters())
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in wrapper.optimizer.param_groups} == {0.01}


def test_what_a_term_learns_beside_the_student_is_learned_at_the_optimiser_s_rate():
    student = nn.ModuleDict(dict(backbone=nn.Linear(3, 2)))
    frozen = nn.Linear(1, 1).requires_grad_(False)
    terms = nn.ModuleDict(dict(geometry=nn.Linear(2, 1), diffusion=frozen))
    config = ADAMW | dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
    groups = optimisers.build_optimizer(student, config, amp=False, terms=terms).optimizer.param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rate[id(p)] for p in terms["geometry"].parameters()] == [0.01] * 2
    assert len(rate) == 4 and not {id(p) for p in frozen.parameters()} & rate.keys()
    assert groups[-1]["weight_decay"] == 0.02


def test_a_term_s_layer_goes_with_layer_decay():
    """Its groups carry names, and torch takes groups with names or without, not both."""
    page = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    student = nn.ModuleDict(dict(backbone=VisionTransformer(page, (32, 32)), head=nn.Linear(2, 1)))
    config = ADAMW | dict(
        constructor="LayerDecayOptimWrapperConstructor", paramwise_cfg=dict(layer_decay_rate=0.5)
    )
    terms = nn.ModuleDict(dict(geometry=nn.Linear(2, 1)))
    groups = optimisers.build_optimizer(
        Backboned(student), config, amp=False, terms=terms
    ).optimizer.param_groups
    assert groups[-1]["param_names"] == ["terms.geometry.weight", "terms.geometry.bias"]
    assert groups[-1]["lr"] == 0.01 > groups[0]["lr"]


def test_names_of_the_student_take_their_own_options():
    """As layer decay needs it: the names start at the student, not at the estimator."""
    student = nn.ModuleDict(dict(backbone=nn.Linear(3, 2), head=nn.Linear(2, 2)))
    config = ADAMW | dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
    wrapper = optimisers.build_optimizer(student, config, amp=False)
    rate = {id(p): group["lr"] for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert [rate[id(p)] for p in student["backbone"].parameters()] == pytest.approx([0.001] * 2)
    assert [rate[id(p)] for p in student["head"].parameters()] == [0.01] * 2


def test_amp_computes_in_bfloat16():
    layer = nn.Linear(3, 2)
    for amp, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        wrapper = optimisers.build_optimizer(layer, ADAMW, amp=amp)
        with wrapper.optim_context(layer):
            assert layer(torch.ones(1, 3)).dtype == dtype


def test_amp_scales_no_loss_on_any_device(monkeypatch):
    """mmengine's wrapper as on a GPU, where nothing but the options switches its scaler off."""
    seen = []
    module = importlib.import_module("mmengine.optim.optimizer.amp_optimizer_wrapper")
    monkeypatch.setattr(module, "GradScaler", lambda **options: seen.append(options))
    optimisers.build_optimizer(nn.Linear(3, 2), ADAMW, amp=True)
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
        optimisers.build_optimizer(nn.Linear(2, 2), config, amp=False)


def test_a_schedule_goes_by_iteration_and_ends_with_the_training():
    given = [
        dict(type="LinearLR", end=30),
        dict(type="CosineAnnealingLR", begin=30),
        dict(type="ConstantLR", by_epoch=True),
    ]
    assert optimisers.schedule(given, 500) == [
        dict(type="LinearLR", by_epoch=False, end=30),
        dict(type="CosineAnnealingLR", by_epoch=False, begin=30, end=500),
        dict(type="ConstantLR", by_epoch=True, end=500),
    ]
    assert given[1] == dict(type="CosineAnnealingLR", begin=30)
    assert optimisers.schedule(dict(type="LinearLR"), 7) == [dict(type="LinearLR", by_epoch=False, end=7)]
    assert optimisers.schedule(None, 5) is None and optimisers.schedule([], 5) is None


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
        optimisers.schedule([scheduler], 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("counts", "silent"), [(8, True), (1, False)])
def test_no_other_warning_of_a_schedule_is_silenced(counts, silent):
    early = "Detected call of `scheduler.step()` before `optimizer.step()`. In PyTorch 1.1.0 and later, …"
    with optimisers.schedule_of_micro_steps(dict(accumulative_counts=counts)):
        with nullcontext() if silent else pytest.warns(UserWarning):
            warnings.warn(early, stacklevel=1)
        with pytest.warns(UserWarning):
            warnings.warn("Seems like `optimizer.step()` has been overridden", stacklevel=1)
    with pytest.warns(UserWarning):
        warnings.warn(early, stacklevel=1)
