"""Scripted models through the adapter: conventions, masks, errors, fingerprints, the exported network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scripted import SIZE, Red, build
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.models.convnet import GeometryNet
from sagecache.store.fingerprint import diff
from sagecache.teachers.demo import DemoGeometry
from sagecache.teachers.registry import build_teacher
from sagecache.teachers.torchscript import load_torchscript, outputs_by_channels, returned_shapes
from tools.export_torchscript import export

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class UpNormals(nn.Module):
    """Normals of (up, towards the viewer) in OpenGL axes, not unit length."""

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x[:, :1])
        return torch.cat([zero, zero + 3.0, zero + 4.0], 1)


class Both(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :1], torch.cat([0 * x[:, :1], 0 * x[:, :1], -1 - 0 * x[:, :1]], 1)


class Segments(nn.Module):
    """Three classes: background wins where red is 0."""

    def forward(self, x: Tensor) -> Tensor:
        red = x[:, :1]
        return torch.cat([torch.where(red == 0, 9.0, 0.0), torch.where(red == 0, 0.0, 9.0), 0 * red], 1)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 2.0, dtype=torch.bfloat16))

    def forward(self, x):
        return torch.nn.functional.linear(x[:, :1, :, :, None], self.weight[None])[..., 0]


class Fails(nn.Module):
    def forward(self, x):
        return x.view(-1, 7, 5)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x[:, :1], 2)[:, 0]


def test_input_is_rgb_minus_mean_over_std(save, crops):
    teacher = build(files=dict(depth=save(Red())), mean=(10.0, 0.0, 0.0), std=(2.0, 1.0, 1.0))
    expected = (torch.from_numpy(crops[..., 0]).float()[:, None] - 10) / 2
    torch.testing.assert_close(teacher(crops)["depth"], expected)


def test_defaults_are_those_of_sapiens_lite(save):
    spec = build_teacher(dict(type="torchscript", files=dict(depth=save(Red())))).spec
    assert (spec.input_size, spec.depth_kind, spec.mask_from) == ((768, 1024), "affine", "everything")


def test_normals_are_converted_and_made_unit(save, crops):
    teacher = build(files=dict(normal=save(UpNormals())), normal_axes="opengl")
    expected = torch.tensor([0.0, -0.6, -0.8]).view(1, 3, 1, 1).expand(2, 3, 16, 12)
    torch.testing.assert_close(teacher(crops)["normal"], expected)


def test_one_file_with_a_tuple_and_depth_towards_the_camera(save, crops):
    teacher = build(path=save(Both()), outputs=["depth", "normal"], towards=True)
    out = teacher(crops)
    assert teacher.spec.outputs == ("depth", "normal", "mask")
    torch.testing.assert_close(out["depth"], -torch.from_numpy(crops[..., 0]).float()[:, None])
    assert (out["normal"][:, 2] == -1).all() and (out["mask"] == 1).all()


def test_maps_are_resized_to_map_size_and_three_dimensions_will_do(save, crops):
    out = build(files=dict(depth=save(Half())), map_size=(3, 4))(crops)["depth"]
    assert out.shape == (2, 1, 4, 3)
    expected = torch.from_numpy(crops[..., 0]).float().view(2, 1, 4, 4, 3, 4).mean((3, 5))
    # Away from the edge in crop 0 a smooth resize and block means agree.
    torch.testing.assert_close(out[0, 0, 2:], expected[0, 0, 2:])


def test_mask_from_classes_and_from_a_depth_range(save, crops):
    red = torch.from_numpy(crops[..., 0])[:, None]
    files = dict(depth=save(Red(), "d"), mask=save(Segments(), "m"))
    mask = build(files=files, mask="network")(crops)["mask"]
    assert ((mask > 0.5) == (red > 0)).all()
    ranged = build(files=dict(depth=files["depth"]), mask="threshold", mask_range=(30.0, 150.0))(crops)[
        "mask"
    ]
    assert ((ranged == 1) == ((red >= 30) & (red <= 150))).all()


def test_a_crop_that_gives_nan_stays_nan_and_others_do_not(save, crops):
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1] / (x.amax((1, 2, 3), keepdim=True) - 200.0) * 0.0

    out = build(files=dict(depth=save(Broken())))(crops)["depth"]
    assert not out[0].isfinite().any() and out[1].isfinite().all()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (lambda save: dict(files=dict(normal=save(Red()))), r"output 'normal' is \(2, 1, 16, 12\)"),
        (lambda save: dict(path=save(Both()), outputs=("depth",)), "returns 2 maps"),
        (lambda save: dict(files=dict(depth="missing.pt2")), "missing.pt2: TorchScript file not found"),
        (lambda save: dict(), "either 'files' or 'path'"),
        (lambda save: dict(path=save(Both())), "needs 'outputs'"),
        (lambda save: dict(files=dict(depth=save(Red())), outputs=("depth",)), "'files' names its own"),
        (lambda save: dict(path=save(Both()), outputs=("depth", "depth")), "names one twice"),
        (lambda save: dict(files=dict(depth=save(Red())), std=(0.0, 1.0, 1.0)), "std is 0.0, it must be pos"),
        (lambda save: dict(files=dict(depth=save(Red())), device="gpu"), "unknown device 'gpu'"),
        (
            lambda save: dict(files=dict(depth=save(Red())), mask="threshold", mask_range=(5.0, -5.0)),
            "it goes from low to high",
        ),
        (
            lambda save: dict(files=dict(depth=save(Fails()))),
            r"model.pt2: the network failed on a batch \(2, 3",
        ),
        (lambda save: dict(files=dict(dept=save(Red()))), "did you mean 'depth'"),
        (lambda save: dict(files=dict(depth=save(Red())), mask="network"), "mask is 'network'"),
        (lambda save: dict(files=dict(depth=save(Red())), mask="threshold"), "mask_range"),
        (lambda save: dict(files=dict(depth=save(Red())), normal_axes="opencl"), "did you mean 'open"),
        (lambda save: dict(files=dict(depth=save(Red())), men=(1, 2, 3)), "[Dd]id you mean 'mean'"),
    ],
)
def test_mistakes_are_told(save, crops, config, told):
    with pytest.raises(SagecacheError, match=told):
        build(**config(save))(crops)


def test_a_network_of_half_precision_gets_its_own_type(save, crops):
    out = build(files=dict(depth=save(Scaled())))(crops)["depth"]
    expected = 2 * torch.from_numpy(crops[..., 0]).float()[:, None]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=0, rtol=0.01)


class Tenths(nn.Module):
    """Depth: the red channel times a weight that bfloat16 does not have."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * self.weight


def test_bfloat16_gives_other_numbers_and_another_fingerprint(save, crops):
    files = {"depth": save(Tenths())}
    exported, halved = build(files=files), build(files=files, precision="bfloat16")
    crops = np.random.default_rng(0).integers(0, 256, crops.shape, np.uint8)
    exact, coarse = exported(crops)["depth"], halved(crops)["depth"]
    assert coarse.dtype == torch.float32
    assert 0 < (coarse - exact).abs().max() <= exact.abs().max() * 2**-6
    assert torch.equal(coarse, coarse.to(torch.bfloat16).float())
    assert diff(exported.fingerprint(), halved.fingerprint()) == [
        ("preprocessing.precision", "as_exported", "bfloat16")
    ]


def test_a_gpu_that_is_not_there_is_told_as_such(save, crops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    path = save(Red())
    for load in (
        lambda: build(files=dict(depth=path), device="cuda")(crops),
        lambda: load_torchscript(Path(path), "cuda"),
    ):
        with pytest.raises(SagecacheError, match="device 'cuda' is asked for, and torch sees none"):
            load()


def test_a_file_that_is_no_torchscript_is_named(tmp_path, crops):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a program")
    with pytest.raises(SagecacheError, match="weights.pth: not a readable TorchScript file"):
        build(files=dict(depth=str(path)))(crops)


def test_parameters_that_are_not_finite_are_told_and_buffers_may_be(save, crops):
    class Masked(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([scale]))
            self.register_buffer("mask", torch.tensor([-torch.inf]))

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :1] * self.scale

    build(files=dict(depth=save(Masked(1.0))))(crops)
    with pytest.raises(SagecacheError, match="model.pt2.*scale: its values are not all finite"):
        build(files=dict(depth=save(Masked(torch.nan))))(crops)


def test_fingerprint_follows_bytes_and_settings_but_not_the_path(save, tmp_path):
    first = save(Red(), "a.pt2")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "other.pt2").write_bytes((tmp_path / "a.pt2").read_bytes())
    base = build(files=dict(depth=first)).fingerprint()
    assert build(files=dict(depth=str(moved / "other.pt2"))).fingerprint() == base
    assert build(files=dict(depth=save(Half(), "b.pt2"))).fingerprint() != base
    assert build(files=dict(depth=first), mean=(1.0, 0.0, 0.0)).fingerprint() != base
    assert build(files=dict(depth=first), towards=True).fingerprint() != base


def test_the_exported_demo_network_gives_the_native_targets(tmp_path):
    torch.manual_seed(1)
    net = GeometryNet().eval()
    teacher = build_teacher(export(net, tmp_path))
    native = DemoGeometry(flip_test=False, net=net, weights_hash="x")
    coarse = np.random.default_rng(0).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    crops = coarse.repeat(32, axis=1).repeat(32, axis=2)
    ours, theirs = native(crops), teacher(crops)
    assert teacher.spec.outputs == native.spec.outputs and teacher.spec.map_size == native.spec.map_size
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=1e-4)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, list[int]]:
        return x[:, 0], [1]


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] == 16:
            raise ValueError("not that size")
        return x


def test_what_a_file_returns_is_told_by_its_shapes(save):
    def shapes(module):
        path = Path(save(module))
        return returned_shapes(load_torchscript(path, "cpu"), path, (12, 16))

    assert shapes(Red()) == ((1, 1, 16, 12),) and shapes(Scaled()) == ((1, 1, 16, 12),)
    assert shapes(Both()) == ((1, 1, 16, 12), (1, 3, 16, 12)) and shapes(Pair()) == ((1, 16, 12), "list")
    with pytest.raises(SagecacheError, match="not that size.*--size"):
        shapes(Raises())


def test_an_error_that_a_script_raises_itself_is_told(save, crops):
    teacher = build_teacher(dict(type="torchscript", files=dict(depth=save(Raises())), **SIZE))
    with pytest.raises(SagecacheError, match="model.pt2: the network failed on a batch .*not that size"):
        teacher(crops)


def test_outputs_are_guessed_where_there_is_no_doubt():
    depth, normal, classes = (1, 1, 8, 6), (1, 3, 8, 6), (1, 28, 8, 6)
    assert outputs_by_channels([depth]) == outputs_by_channels([(1, 8, 6)]) == ("depth",)
    assert outputs_by_channels([normal, depth]) == ("normal", "depth")
    for doubtful in ([classes], [depth, classes], [depth, depth], ["list"], [(1, 3)], []):
        assert outputs_by_channels(doubtful) == ()


def test_a_network_that_is_loaded_is_not_loaded_again(save, crops, monkeypatch):
    teacher = build_teacher(dict(type="torchscript", files=dict(depth=save(Red())), **SIZE))
    monkeypatch.setattr(teacher, "load", None)
    teacher.adopt(dict(depth=Red()))
    assert torch.equal(teacher(crops)["depth"][0, 0], torch.from_numpy(crops[0, ..., 0]).float())
