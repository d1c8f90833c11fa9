"""A config page for plain mmpose: the model under mmpose's own names, crops at our evaluation's places.

Their pixels are mmpose's, which `sagecache eval` sees with ``evaluation.sampling = 'mmpose'``. With the page
mmpose.apis.init_model and inference_topdown run a checkpoint of `sagecache export` where sagecache is not
installed. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pprint import pformat
from typing import Any

from sagecache.mm.codecs import codec_of
from sagecache.mm.stock_pages import STOCK_VIT
from sagecache.models.vit import arch_of
from sagecache.project import Project

OURS = ("PoseNet", "SoftmaxHeatmapHead", "SpatialCrossEntropyLoss")  # types that plain mmpose doesn't have


def foreign_types(model: Mapping[str, Any]) -> list[str]:
    """Types of a model page that mmpose doesn't have: with one of them no config of its own can build it."""
    return sorted({name for name in _types(model) if name in OURS})


def mmpose_config(project: Project) -> str:
    """A config page with which plain mmpose builds the model, crops where evaluation does, and predicts."""
    model = _plain(project.model)
    backbone = model["backbone"]
    if backbone["type"] in ("VisionTransformer", STOCK_VIT):
        model["backbone"] = _stock_vit(backbone)
    codec = codec_of(project.model)
    pipeline = [
        dict(type="LoadImage"),
        dict(type="GetBBoxCenterScale", padding=project.data.evaluation.padding),
        dict(
            type="TopdownAffine", input_size=tuple(codec["input_size"]), use_udp=codec["type"] == "UDPHeatmap"
        ),
        dict(type="PackPoseInputs"),
    ]
    parts = dict(
        default_scope="mmpose",
        model=model,
        test_dataloader=dict(dataset=dict(metainfo=_dataset_info(project), pipeline=pipeline)),
    )
    lines = [f"{name} = {pformat(value, width=100, sort_dicts=False)}" for name, value in parts.items()]
    return "\n\n".join(lines) + "\n"


def _stock_vit(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Our ViT as mmpretrain's, whose names the weights have; without what only training needs."""
    size, norm = backbone.get("img_size", 224), backbone.get("norm_cfg")
    return dict(
        type=STOCK_VIT,
        arch=dict(vars(arch_of(backbone.get("arch", "base")))),
        img_size=tuple(size) if isinstance(size, (list, tuple)) else size,
        patch_size=backbone.get("patch_size", 16),
        qkv_bias=True,
        with_cls_token=False,
        out_type="featmap",
        patch_cfg=dict(backbone.get("patch_cfg") or {}),
        **(dict(norm_cfg=dict(norm)) if norm else {}),
    )


def _dataset_info(project: Project) -> dict[str, Any]:
    """mmpose's metainfo of the project's skeleton, written out."""
    body = project.skeleton
    swaps = {i: "" if j == i else body.names[j] for i, j in enumerate(body.flip_indices.tolist())}
    return dict(
        dataset_name=body.name,
        keypoint_info={
            i: dict(name=name, id=i, color=[255, 255, 255], type="", swap=swaps[i])
            for i, name in enumerate(body.names)
        },
        skeleton_info={
            i: dict(link=(body.names[a], body.names[b]), id=i, color=[255, 255, 255])
            for i, (a, b) in enumerate(body.edges.tolist())
        },
        joint_weights=[1.0] * len(body.names),
        sigmas=[float(value) for value in body.sigmas],
    )


def _plain(value: Any) -> Any:
    """mmengine's dictionaries as dict, all the way down."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return type(value)(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _types(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if "type" in config:
            yield str(config["type"])
        for value in config.values():
            yield from _types(value)
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from _types(value)
