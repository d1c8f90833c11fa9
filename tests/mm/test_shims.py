"""Each repair against what it repairs, and that it steps aside where nothing is broken."""

import inspect
import pickle

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sagecache.errors import SagecacheError
from sagecache.mm import shims
from sagecache.mm.compat import activate


@pytest.fixture(scope="module", autouse=True)
def mmpose():
    activate()


def apply(name: str):
    return next(shim for shim in shims.SHIMS if shim.name == name).apply()


class Opens:
    """Unpickles by calling ``function``: what a hostile checkpoint does."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


# -- torch.load ----------------------------------------------------------------------------------------


def test_a_message_hub_survives_a_safe_load(tmp_path):
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([0.5, 0.25, 0.125], [1, 1, 1])
    torch.save(
        {"message_hub": {"loss": history, "step": np.float64(3.0)}, "half": np.float16(1)}, tmp_path / "c"
    )
    hub = torch.load(tmp_path / "c", weights_only=True)["message_hub"]
    assert hub["loss"].mean(2) == pytest.approx(0.1875)  # the method table came along
    assert hub["loss"].data[0].tolist() == [0.5, 0.25, 0.125] and hub["step"] == 3.0


def test_a_hostile_checkpoint_stays_refused(tmp_path):
    from mmengine.logging import HistoryBuffer

    evil = tmp_path / "evil"
    attacks = [
        (exec, f"open({str(evil)!r}, 'w')"),
        (getattr, HistoryBuffer, "__init__"),
        (getattr, np.ndarray, "tofile"),
        (np.load, str(evil)),
    ]
    for function, *args in attacks:
        torch.save({"x": Opens(function, *args)}, tmp_path / "c")
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            torch.load(tmp_path / "c", weights_only=True)
    assert not evil.exists()


# -- autocast on CPU -----------------------------------------------------------------------------------


def test_amp_steps_like_plain_autocast():
    from mmengine.optim import build_optim_wrapper

    torch.manual_seed(0)
    nets = [torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(16, 8)

    config = dict(type="AmpOptimWrapper", dtype="bfloat16", optimizer=dict(type="SGD", lr=0.5))
    wrapper = build_optim_wrapper(nets[0], config)
    with wrapper.optim_context(nets[0]):
        output = nets[0](x)
    assert output.dtype is torch.bfloat16
    wrapper.update_params(output.float().square().mean())

    with torch.autocast("cpu", torch.bfloat16):
        loss = nets[1](x).float().square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in nets[1].parameters():
            parameter -= 0.5 * parameter.grad
    torch.testing.assert_close(nets[0].weight, nets[1].weight)
    wrapper.load_state_dict(wrapper.state_dict())


def test_heads_bring_bfloat16_to_numpy():
    from mmpose.models.heads.heatmap_heads import heatmap_head

    x = torch.tensor([[0.5, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    assert heatmap_head.to_numpy(x).tolist() == x.tolist()
    assert [row.tolist() for row in heatmap_head.to_numpy(list(x))] == x.tolist()
    assert heatmap_head.to_numpy(x.double()).dtype == np.float64  # what numpy knows stays as it is


# -- packages that are not there -----------------------------------------------------------------------


def test_a_stock_config_builds(tmp_path):
    """By ``_base_ = 'mmpose::…'``: the lookup that needs pkg_resources."""
    from mmengine.config import Config
    from mmpose.registry import MODELS

    page = tmp_path / "stock.py"
    base = "body_2d_keypoint/topdown_heatmap/coco/td-hm_mobilenetv2_8xb64-210e_coco-256x192.py"
    page.write_text(f"_base_ = 'mmpose::{base}'\n")
    model = Config.fromfile(page).model
    model.backbone.pop("init_cfg")  # names a weight on the network
    net = MODELS.build({**model, "_scope_": "mmpose"}).eval()
    with torch.no_grad():
        assert net.head(net.extract_feat(torch.zeros(1, 3, 64, 64))).shape == (1, 17, 16, 16)


def test_xtcocotools_counts_pixels():
    from xtcocotools import mask

    region = np.zeros((9, 7), np.uint8, order="F")
    region[2:6, 1:4] = 1
    assert mask.area(mask.encode(region)) == region.sum()


def test_an_operator_of_mmcv_says_what_to_install():
    from mmcv.ops import nms

    if apply("mmcv._ext") is None:
        pytest.skip("the full mmcv is installed")
    with pytest.raises(SagecacheError, match="full mmcv"):
        nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]]), torch.tensor([1.0, 0.5]), 0.5)


def test_pictures_of_tensors():
    from mmpose.visualization import simcc_vis

    grey = torch.tensor([[0.0, 0.2], [0.6, 1.0]])
    assert np.asarray(simcc_vis.ToPILImage()(grey)).tolist() == [[0, 51], [153, 255]]
    colour = simcc_vis.ToPILImage()(torch.stack([grey, 1 - grey, grey]))
    assert isinstance(colour, Image.Image)
    assert np.asarray(colour)[0, 0].tolist() == [0, 255, 0]


def test_the_opencv_visualizer_draws_a_circle_of_an_array_radius():
    from mmpose.visualization.opencv_backend_visualizer import OpencvBackendVisualizer

    blank = np.zeros((21, 21, 3), np.uint8)
    visualizer = OpencvBackendVisualizer(name="circle", backend="opencv", vis_backends=None)
    visualizer.set_image(blank.copy())
    visualizer.draw_circles(np.array([10, 8]), radius=np.array([3]), face_colors=(10, 20, 30))
    expected = cv2.circle(blank.copy(), (10, 8), 3, (10, 20, 30), -1)
    assert np.array_equal(visualizer.get_image(), expected)


# -- stepping aside ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mmcv._ext", "mmdet.utils", "torchvision.transforms"])
def test_an_installed_package_gets_no_stand_in(monkeypatch, name):
    monkeypatch.setattr(shims, "absent", lambda package: False)
    assert apply(name) is None


def test_patches_step_aside_where_nothing_is_broken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert apply("AmpOptimWrapper") is None
    assert apply("to_numpy") is None  # patched by activate(): bfloat16 works already

    def load(f, weights_only=False): ...

    assert inspect.signature(load).parameters["weights_only"].default is False
    monkeypatch.setattr(torch, "load", load)
    assert apply("torch.load") is None
