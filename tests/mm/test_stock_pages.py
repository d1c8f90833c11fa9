"""Pages as mmpose ships them: ViTPose without mmpretrain, RTMPose without mmdet."""

from importlib.util import find_spec
from pathlib import Path

import mmpose
import pytest
import torch
from mmengine.config import Config

from sagecache.mm.registry import build_student
from sagecache.mm.stock_pages import known_types

STOCK = Path(mmpose.__file__).parent / ".mim" / "configs" / "body_2d_keypoint"
PAGES = {
    "topdown_heatmap/coco/td-hm_ViTPose-small_8xb64-210e_coco-256x192.py": (
        "VisionTransformer",
        (1, 17, 64, 48),
    ),
    "topdown_heatmap/coco/td-hm_ViTPose-base-simple_8xb64-210e_coco-256x192.py": (
        "VisionTransformer",
        (1, 17, 64, 48),
    ),
    "rtmpose/coco/rtmpose-t_8xb256-420e_coco-256x192.py": ("CSPNeXt", (1, 17, 384)),
    "topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py": ("ResNet", (1, 17, 64, 48)),
}


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast:FutureWarning")  # RTMPose's head asks for it
@pytest.mark.parametrize("page", PAGES)
def test_a_stock_page_builds_and_answers(page):
    """On torch's meta device, whose shapes are enough; mmpretrain and mmdet are not installed here."""
    assert find_spec("mmdet") is None and find_spec("mmpretrain") is None
    model = Config.fromfile(STOCK / page).model.to_dict()
    with torch.device("meta"):
        student = build_student(model, initialise=False).eval()
    backbone, shape = PAGES[page]
    assert type(student.backbone).__name__ == backbone
    answer = student(torch.empty(1, 3, 256, 192, device="meta"), None, mode="tensor")
    assert (answer[0] if isinstance(answer, tuple) else answer).shape == shape


def test_types_that_are_not_here_stay_what_they_are():
    for backbone in (dict(type="mmpretrain.SwinTransformer"), dict(type="ResNet", depth=50)):
        model = dict(type="TopdownPoseEstimator", backbone=backbone, test_cfg=dict(flip_test=True))
        assert known_types(model) == model
    scoped = dict(neck=dict(type="CSPNeXtPAFPN", _scope_="mmdet"))
    assert known_types(scoped) == scoped
