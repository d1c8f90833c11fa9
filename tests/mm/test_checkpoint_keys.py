"""What is said of names and shapes that don't fit, by made-up files of a small network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.mm.checkpoint_keys import backbone_alone, mismatch
from sagecache.mm.checkpoints import load_network
from sagecache.models.public_weights import unwrapped


class Network(nn.Module):
    """A backbone with position embeddings and two layers, a head with a layer before the last."""

    def __init__(self, joints: int = 17, width: int = 4, cells: int = 6) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(dict(first=nn.Linear(3, width), second=nn.Linear(width, width)))
        self.backbone.register_parameter("pos_embed", nn.Parameter(torch.randn(1, cells, width)))
        layers = dict(deconv_layers=nn.Linear(width, 5), final_layer=nn.Conv2d(5, joints, 1))
        self.head = nn.ModuleDict(layers)


def state(prefix: str = "", **options) -> dict[str, torch.Tensor]:
    return {prefix + key: value + 1 for key, value in Network(**options).state_dict().items()}


def only(part: str, content: dict) -> dict:
    return {key: value for key, value in content.items() if key.startswith(part)}


def save(folder, content: dict):
    path = folder / "file.pth"
    torch.save({"state_dict": content}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_words_of_wrappers_are_taken_off(tmp_path, prefix):
    content, network = state(prefix), Network()
    load_network(network, save(tmp_path, content))
    for key, value in network.state_dict().items():
        assert torch.equal(value, content[prefix + key])


def test_a_wrapped_run_of_ours_still_has_its_two_networks(tmp_path):
    content = {
        f"module.{name}.{key}": value for name in ("student", "ema_teacher") for key, value in state().items()
    }
    content["module.student.backbone.first.bias"] = torch.full((4,), 7.0)
    network = Network()
    load_network(network, save(tmp_path, content), "student")
    assert (network.backbone.first.bias == 7).all()


def test_a_word_before_some_names_only_stays():
    assert unwrapped({"module.a": torch.ones(1), "b": torch.ones(1)}).keys() == {"module.a", "b"}
    assert unwrapped({}) == {}


BACKBONE = only("backbone.", state())
PLAIN = {key.removeprefix("backbone."): value for key, value in BACKBONE.items()}
CLASSIFIER = {"head.fc.weight": torch.ones(1000, 4), "head.fc.bias": torch.ones(1000)}


@pytest.mark.parametrize(
    "content", [BACKBONE, PLAIN, BACKBONE | CLASSIFIER, {"module." + k: v for k, v in PLAIN.items()}]
)
def test_a_whole_backbone_starts_a_training_and_the_head_starts_from_scratch(tmp_path, caplog, content):
    path, network = save(tmp_path, content), Network()
    before = {key: value.clone() for key, value in only("head.", network.state_dict()).items()}
    load_network(network, path, as_start=True)
    after = network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in BACKBONE.items())
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert caplog.messages == [f"{path} is a backbone alone: head starts from scratch"]
    with pytest.raises(SagecacheError, match="a backbone alone, with no head.*load_from of a recipe"):
        load_network(Network(), path)  # to evaluate a head of random numbers would be a lie


@pytest.mark.parametrize("joints, name", [(133, "133 (COCO-WholeBody)"), (19, "19")])
def test_a_head_of_other_keypoints_starts_a_training_without_its_last_layer(tmp_path, caplog, joints, name):
    content, network = state(joints=joints), Network()
    path, before = save(tmp_path, content), {key: one.clone() for key, one in network.state_dict().items()}
    load_network(network, path, as_start=True)
    for key, value in network.state_dict().items():
        own = key.startswith("head.final_layer")
        assert torch.equal(value, before[key] if own else content[key]), key
    assert caplog.messages == [
        f"{path} draws {name} keypoints, not 17 (COCO): the last layer starts from scratch"
    ]
    for other in (content | {"head.other.weight": torch.ones(2)}, state(joints=joints, width=5)):
        with pytest.raises(SagecacheError, match="its head draws"):  # something else differs too
            load_network(Network(), save(tmp_path, other), as_start=True)


def without(content: dict, key: str) -> dict:
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    "content",
    [
        without(BACKBONE, "backbone.second.bias"),
        BACKBONE | {"backbone.third.weight": torch.ones(4)},
        only("backbone.", state(width=5)),
        only("backbone.", state(cells=9)),
        BACKBONE | {"decoder.weight": torch.ones(3)},
    ],
)
def test_half_a_backbone_or_another_is_refused_even_then(tmp_path, content):
    assert backbone_alone(content, Network().state_dict()) is None
    with pytest.raises(SagecacheError, match="file.pth: the checkpoint (lacks|has)"):
        load_network(Network(), save(tmp_path, content), as_start=True)


OTHER_WIDTH = only("backbone.", state(width=5)) | only("head.", state())
WHOLEBODY = r"its head draws 133 \(COCO-WholeBody\) keypoints, this network's 17 \(COCO\)"
SAPIENS = r"308 \(Sapiens' whole body\) keypoints"
EMBEDDINGS = "position embeddings are of another input size"


@pytest.mark.parametrize(
    "content, told, fix",
    [
        (state(joints=133), WHOLEBODY, "Take a checkpoint of 17"),
        (state(joints=308), SAPIENS, "As load_from of a recipe"),
        (state(joints=19), "draws 19 keypoints", "Take a checkpoint of 17"),
        (state(cells=9), EMBEDDINGS, "img_size in model.py"),
        (OTHER_WIDTH, "another one, or of another width or depth", "model.py must describe"),
        (BACKBONE | {"head.final.weight": torch.ones(2)}, "its head is built otherwise", "Copy the head"),
        ({"encoder.weight": torch.ones(2)}, "none of its names begins with 'backbone.'", "backbone.…, neck"),
        ({"backbone.blocks.0.weight": torch.ones(2)}, "no name in common", "checkpoint of that network"),
        (without(state(), "backbone.first.bias"), r"lacks 1 keys \(backbone.first.bias\)", "model.py must"),
    ],
)
def test_a_gap_is_told_with_its_likeliest_reason(tmp_path, content, told, fix):
    with pytest.raises(SagecacheError, match=told) as caught:
        load_network(Network(), save(tmp_path, content))
    assert fix in caught.value.fix and "\n" not in str(caught.value)


def test_what_fits_is_no_mismatch():
    assert mismatch(state(), Network().state_dict()) is None


def test_a_last_layer_without_dimensions_is_misshapen():
    told, _ = mismatch(state() | {"head.final_layer.bias": torch.tensor(1.0)}, state())
    assert "head.final_layer.bias () instead of (17,)" in told
