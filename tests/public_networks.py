"""Small networks of public architectures, saved as their publishers save them, for tests of loaders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

WIDTH, LAYERS, HEADS = 64, 2, 1  # heads of 64 channels, as Sapiens'


def vit_state(grid: tuple[int, int], seed: int = 0) -> dict[str, Tensor]:
    """A backbone under Sapiens' published names, written out by hand."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=draw)

    state = {
        "backbone.pos_embed": random(1, grid[0] * grid[1], WIDTH),
        "backbone.patch_embed.projection.weight": random(WIDTH, 3, 16, 16) / 8,
        "backbone.patch_embed.projection.bias": random(WIDTH),
        "backbone.ln1.weight": 1 + random(WIDTH),
        "backbone.ln1.bias": random(WIDTH),
    }
    for layer in range(LAYERS):
        name = f"backbone.layers.{layer}"
        for part, shape in {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "ffn.layers.0.0": (4 * WIDTH, WIDTH),
            "ffn.layers.1": (WIDTH, 4 * WIDTH),
        }.items():
            state |= {f"{name}.{part}.weight": random(*shape), f"{name}.{part}.bias": random(shape[0])}
        for part in ("ln1", "ln2"):
            state |= {f"{name}.{part}.weight": 1 + random(WIDTH), f"{name}.{part}.bias": random(WIDTH)}
    return state


def sapiens_state(grid: tuple[int, int], deconvs: int, convs: int, channels: int) -> dict[str, Tensor]:
    """A whole checkpoint of Sapiens v1's dense networks; heads 8 wide, numbered in threes as published."""
    draw = torch.Generator().manual_seed(1)
    state, width = vit_state(grid), WIDTH
    for index in range(deconvs):
        state[f"decode_head.deconv_layers.{3 * index}.weight"] = 0.3 * torch.randn(
            width, 8, 4, 4, generator=draw
        )
        width = 8
    for index in range(convs):
        name = f"decode_head.conv_layers.{3 * index}"
        state[f"{name}.weight"] = 0.5 * torch.randn(8, width, 1, 1, generator=draw)
        state[f"{name}.bias"] = torch.randn(8, generator=draw)
    state["decode_head.conv_seg.weight"] = torch.randn(channels, 8, 1, 1, generator=draw)
    state["decode_head.conv_seg.bias"] = torch.randn(channels, generator=draw)
    return state


def save_folder(network, folder: Path, **preprocessor: object) -> Path:
    """save_pretrained, and a preprocessor_config.json."""
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def depth_anything(transformers, kind: str = "relative", seed: int = 0):
    """Depth-Anything v2's architecture, tiny: Dinov2 of patches of 14, a DPT neck and head."""
    torch.manual_seed(seed)
    backbone = transformers.Dinov2Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )
    return transformers.DepthAnythingForDepthEstimation(config).eval()


def dpt(transformers, seed: int = 0):
    """DPT with a plain ViT, as MiDaS 3's: disparities, of square images alone."""
    torch.manual_seed(seed)
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return transformers.DPTForDepthEstimation(config).eval()


def zoedepth(transformers, seed: int = 0):
    """ZoeDepth with one head: metres."""
    torch.manual_seed(seed)
    backbone = transformers.BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        use_relative_position_bias=True,
        reshape_hidden_states=False,
        out_indices=[1, 2, 3, 4],
    )
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=4,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[dict(n_bins=8, min_depth=0.001, max_depth=10.0, name="nyu")],
    )
    return transformers.ZoeDepthForDepthEstimation(config).eval()


def sapiens2(transformers, task: str, channels: int = 3, seed: int = 0):
    """Sapiens2 of one task: 'NormalEstimation', 'PointmapEstimation', 'SemanticSegmentation'."""
    torch.manual_seed(seed)
    config = transformers.Sapiens2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        image_size=(64, 48),
        patch_size=16,
        num_labels=channels,
        head_config=dict(
            upsample_out_channels=[8, 8],
            conv_out_channels=[8],
            **(
                dict(scale_conv_out_channels=[8], scale_final_hidden_sizes=[4, 4])
                if task == "PointmapEstimation"
                else {}
            ),
        ),
    )
    return getattr(transformers, f"Sapiens2For{task}")(config).eval()


def yolos(transformers, seed: int = 0):
    torch.manual_seed(seed)
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[64, 64],
        patch_size=16,
        num_detection_tokens=12,
        id2label={0: "chair", 1: "person", 2: "dog"},
        label2id={"chair": 0, "person": 1, "dog": 2},
    )
    network = transformers.YolosForObjectDetection(config)
    torch.nn.init.normal_(network.vit.embeddings.detection_tokens)  # fresh ones are all the same
    for head in (network.class_labels_classifier, network.bbox_predictor):
        for name, parameter in head.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3 * name.endswith("weight"))
    return network.eval()


def detr(transformers, seed: int = 0):
    """DETR on a ResNet of its own, not timm's."""
    torch.manual_seed(seed)
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 32, 64],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage4"],
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=12,
        id2label={0: "chair", 1: "person", 2: "dog"},
        label2id={"chair": 0, "person": 1, "dog": 2},
    )
    network = transformers.DetrForObjectDetection(config)
    torch.nn.init.normal_(network.model.query_position_embeddings.weight, std=3)
    torch.nn.init.normal_(network.class_labels_classifier.weight)
    return network.eval()


def rt_detr(transformers, kind: str = "RTDetr", seed: int = 0):
    """'RTDetr' or 'RTDetrV2' on its ResNet, or 'DFine' on an HGNet."""
    torch.manual_seed(seed)
    stages = ["stage2", "stage3", "stage4"]
    more = {}
    if kind == "DFine":
        backbone = transformers.HGNetV2Config(
            hidden_sizes=[8, 8, 8, 8],
            stem_channels=[3, 8, 8],
            stage_in_channels=[8, 8, 8, 8],
            stage_mid_channels=[8, 8, 8, 8],
            stage_out_channels=[8, 8, 8, 8],
            stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            out_features=stages,
        )
        more = dict(decoder_n_points=[2, 2, 2])
    else:
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 8, 8],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=stages,
        )
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 8, 8],
        feat_strides=[8, 16, 32],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=12,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        hidden_expansion=0.5,
        id2label={0: "person", 1: "dog"},
        label2id={"person": 0, "dog": 1},
        **more,
    )
    return getattr(transformers, f"{kind}ForObjectDetection")(config).eval()


def glpn(transformers, seed: int = 0):
    """GLPN: metres, of pictures between 0 and 1."""
    torch.manual_seed(seed)
    config = transformers.GLPNConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=8,
        num_attention_heads=[1, 1, 2, 2],
    )
    return transformers.GLPNForDepthEstimation(config).eval()
