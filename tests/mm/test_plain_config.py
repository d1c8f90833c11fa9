"""Config pages for plain mmpose: they read back, name stock types, and keep the project's crops."""

from mmengine.config import Config

from sagecache.mm.plain_config import foreign_types, mmpose_config
from sagecache.project import Project, embedded_project


def page(tmp_path, project):
    (tmp_path / "page.py").write_text(mmpose_config(project))
    return Config.fromfile(tmp_path / "page.py")


def test_a_page_reads_back_as_it_was_meant(tmp_path):
    project = Project.open(embedded_project().parent / "nk_sapiens")
    config = page(tmp_path, project)
    assert config.model.backbone.type == "mmpretrain.VisionTransformer"
    assert config.model.backbone.arch.embed_dims == 1280 and "with_cp" not in config.model.backbone
    assert config.model.head.to_dict() == dict(project.model["head"])
    crop, affine = config.test_dataloader.dataset.pipeline[1:3]
    assert crop.padding == project.data.evaluation.padding and affine.use_udp is True
    assert tuple(affine.input_size) == (576, 768)
    names = [one["name"] for one in config.test_dataloader.dataset.metainfo.keypoint_info.values()]
    assert names == list(project.skeleton.names)


def test_types_that_only_we_have_are_named():
    model = Project.open(embedded_project()).model
    assert foreign_types(model) == ["PoseNet", "SoftmaxHeatmapHead", "SpatialCrossEntropyLoss"]
    assert foreign_types(dict(backbone=dict(type="ResNet"))) == []
