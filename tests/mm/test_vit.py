"""The ViT in mmpose: stock pages, whole public checkpoints of students, sizes, layer decay, freezing."""

import pytest
import torch
from public_networks import HEADS, LAYERS, WIDTH, vit_state

from sagecache.errors import SagecacheError
from sagecache.mm.checkpoints import load_network
from sagecache.mm.optimisers import build_optimizer
from sagecache.mm.registry import build_student
from sagecache.mm.vit import VisionTransformer
from sagecache.models.public_weights import to_hugging_face

ARCH = dict(embed_dims=WIDTH, num_layers=LAYERS, num_heads=HEADS, feedforward_channels=4 * WIDTH)


def page(size=(48, 64), deconvs=(8, 8), **backbone):
    """mmpose's page of ViTPose, small; size (width, height)."""
    factor = 4 if deconvs else 1
    heatmap = tuple(side // 16 * factor for side in size)
    codec = dict(type="UDPHeatmap", input_size=size, heatmap_size=heatmap, sigma=1)
    return dict(
        type="TopdownPoseEstimator",
        data_preprocessor=dict(type="PoseDataPreprocessor", mean=[0.0] * 3, std=[1.0] * 3, bgr_to_rgb=True),
        backbone=dict(
            type="mmpretrain.VisionTransformer",
            arch=ARCH,
            img_size=size[::-1],
            patch_size=16,
            qkv_bias=True,
            with_cls_token=False,
            out_type="featmap",
            patch_cfg=dict(padding=2),
            **backbone,
        ),
        head=dict(
            type="HeatmapHead",
            in_channels=WIDTH,
            out_channels=17,
            deconv_out_channels=deconvs,
            deconv_kernel_sizes=(4,) * len(deconvs),
            loss=dict(type="KeypointMSELoss", use_target_weight=True),
            decoder=codec,
        ),
    )


def classic(transformers, size=(48, 64)):
    """A whole VitPose of transformers, with batch norms that have seen something."""
    torch.manual_seed(0)
    backbone = transformers.VitPoseBackboneConfig(
        image_size=size[::-1],
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        layer_norm_eps=1e-6,
        initializer_range=0.2,
        out_indices=[LAYERS],
    )
    config = transformers.VitPoseConfig(
        backbone_config=backbone, num_labels=17, use_simple_decoder=False, initializer_range=0.2
    )
    network = transformers.VitPoseForPoseEstimation(config)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@torch.no_grad()
def test_a_whole_vitpose_of_hugging_face_draws_the_same_maps(tmp_path, caplog):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = classic(transformers)
    theirs.save_pretrained(tmp_path / "vitpose")
    student = build_student(page(deconvs=(256, 256))).eval()
    load_network(student, tmp_path / "vitpose")
    images = torch.randn(2, 3, 64, 48)
    want = theirs(pixel_values=images).heatmaps
    error = (student(images, None, mode="tensor") - want).abs().max()
    assert error < 1e-5 * want.abs().max()
    assert "all 43 tensors fit; Hugging Face's names changed" in caplog.text


def whole(grid, seed=0):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(17, WIDTH, 1, 1, generator=draw)
    return vit_state(grid) | {"head.final_layer.weight": weight, "head.final_layer.bias": torch.zeros(17)}


@torch.no_grad()
@pytest.mark.parametrize("layout", ["mmpose", "hugging_face", "pretraining"])
def test_every_layout_starts_the_same_student(tmp_path, layout):
    state = whole((4, 3))
    wanted = build_student(page(deconvs=()))
    wanted.load_state_dict(state)
    if layout == "hugging_face":
        state = to_hugging_face(state)
    if layout == "pretraining":  # the backbone alone, with a class token
        state = {name.removeprefix("backbone."): value for name, value in state.items() if "head" not in name}
        state |= {"cls_token": torch.zeros(1, 1, WIDTH)}
        state["pos_embed"] = torch.cat([torch.ones(1, 1, WIDTH), state["pos_embed"]], 1)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    student = build_student(page(deconvs=()))
    load_network(student, tmp_path / "w.pth", as_start=True)
    images = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(student.backbone(images), wanted.backbone(images))


def test_another_input_size_gets_its_positions(tmp_path, caplog):
    torch.save({"state_dict": whole((4, 3))}, tmp_path / "w.pth")
    student = build_student(page(size=(96, 128), deconvs=()))
    load_network(student, tmp_path / "w.pth")
    assert "position embeddings resized from 4x3 to 8x6" in caplog.text
    torch.save(
        {"state_dict": whole((4, 3)) | {"backbone.pos_embed": torch.zeros(1, 11, WIDTH)}},
        tmp_path / "odd.pth",
    )
    with pytest.raises(SagecacheError, match="odd.pth: 11 position embeddings"):
        load_network(student, tmp_path / "odd.pth")


def test_init_cfg_reads_a_backbone_strictly(tmp_path):
    torch.save({"state_dict": whole((4, 3))}, tmp_path / "w.pth")
    student = build_student(
        page(deconvs=(), init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "w.pth")))
    )
    for name, value in vit_state((4, 3)).items():
        torch.testing.assert_close(student.state_dict()[name], value)
    short = {k: v for k, v in whole((4, 3)).items() if "layers.1.attn" not in k}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(SagecacheError, match="short.pth: the checkpoint lacks 4 keys"):
        build_student(
            page(deconvs=(), init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "short.pth")))
        )


@pytest.mark.parametrize("arch", ["sapiens_0.3b", "base"])
def test_named_sizes_build(arch):
    with torch.device("meta"):
        net = VisionTransformer(arch, img_size=(64, 48), patch_cfg=dict(padding=2))
    assert net.grid == (4, 3)


def test_layer_decay_works_inside_our_training(capsys):
    """AdamW's rate of block n of 2 is .75^(3 - n); the head has it whole, biases and norms no decay."""
    student = build_student(page(deconvs=()))
    config = dict(
        optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1),
        constructor="LayerDecayOptimWrapperConstructor",
        paramwise_cfg=dict(layer_decay_rate=0.75),
    )
    wrapper = build_optimizer(student, config, amp=False)
    assert capsys.readouterr().out == ""
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    rates = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in wrapper.optimizer.param_groups
        for p in group["params"]
    }
    assert rates["backbone.pos_embed"] == pytest.approx((0.75**3, 0))
    assert rates["backbone.patch_embed.projection.weight"] == pytest.approx((0.75**3, 0.1))
    assert rates["backbone.layers.0.attn.qkv.weight"] == pytest.approx((0.75**2, 0.1))
    assert rates["backbone.layers.1.attn.qkv.bias"] == pytest.approx((0.75, 0))
    assert rates["head.final_layer.weight"] == pytest.approx((1, 0.1))
    assert len(rates) == len(names)


def test_layer_decay_of_other_networks_is_refused():
    config = dict(optimizer=dict(type="AdamW", lr=1.0), constructor="LayerDecayOptimWrapperConstructor")
    wrong = dict(config, paramwise_cfg=dict(num_layers=12, layer_decay_rate=0.75))
    with pytest.raises(SagecacheError, match="num_layers is 12, the backbone has 2 blocks"):
        build_optimizer(build_student(page(deconvs=())), wrong, amp=False)
    with pytest.raises(SagecacheError, match="needs optimizer.weight_decay"):
        build_optimizer(build_student(page(deconvs=())), config, amp=False)
    with pytest.raises(SagecacheError, match="this backbone is a Conv2d"):
        student = torch.nn.Module()
        student.backbone = torch.nn.Conv2d(1, 1, 1)
        build_optimizer(student, config, amp=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (dict(with_cls_token=True), "with_cls_token=True is not built here"),
        (dict(norm_layer="BN"), "unknown keyword 'norm_layer'"),
        (dict(patch_cfg=dict(padding=2, stride=8)), "patch_cfg of a ViT has stride"),
        (dict(init_cfg=dict(type="Kaiming")), "init_cfg is"),
        (dict(arch="sapiens_3b"), "unknown arch 'sapiens_3b'"),
    ],
)
def test_networks_that_are_not_built_here_are_told(change, told):
    model = page(deconvs=())
    model["backbone"] |= change
    with pytest.raises(SagecacheError, match=told):
        build_student(model)
