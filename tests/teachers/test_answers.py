"""What every kind of weight file shares: refusals of settings, and disparity that normals turn into depth."""

import numpy as np
import pytest
import torch
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.geometry.disparity import depth_from_disparity
from sagecache.teachers.sapiens import SapiensSettings, SapiensTeacher

SIZE = dict(input_size=(48, 64), map_size=(48, 64), normal_axes="opencv")


class Says(nn.Module):
    """The same map of every crop."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(values)

    def forward(self, images):
        return self.values[None].expand(len(images), -1, -1, -1)


def hill():
    y, x = torch.meshgrid(torch.linspace(-1.33, 1.33, 64), torch.linspace(-1, 1, 48), indexing="ij")
    depth = 2 + 0.4 * (x**2 + y**2)
    normal = torch.stack([0.8 * x, 0.8 * y, -torch.ones_like(x)])
    return depth[None], normal / normal.norm(dim=0)


def teacher(tmp_path, **settings):
    files = {}
    for name in ("depth", "normal"):
        (tmp_path / name).write_bytes(b"weights")
        files[name] = str(tmp_path / name)
    made = SapiensTeacher(SapiensSettings(files=files, **SIZE, **settings))
    depth, normal = hill()
    made._modules = dict(depth=Says(1 / depth), normal=Says(normal))
    return made


def test_a_disparity_beside_normals_becomes_depth(tmp_path):
    made = teacher(tmp_path, depth_kind="disparity")
    crops = np.zeros((2, 64, 48, 3), np.uint8)
    maps, (depth, normal) = made(crops), hill()
    assert made.spec.depth_kind == "affine" and made.fingerprint()["preprocessing"]["invert"] is True
    want = depth_from_disparity(1 / depth[None], normal[None], torch.ones(1, 1, 64, 48))
    torch.testing.assert_close(maps["depth"][:1], want)
    assert torch.corrcoef(torch.stack([maps["depth"][0].flatten(), depth.flatten()]))[0, 1] > 0.99


def test_it_stays_one_where_that_is_asked_for(tmp_path):
    made = teacher(tmp_path, depth_kind="disparity", invert=False)
    maps = made(np.zeros((1, 64, 48, 3), np.uint8))
    torch.testing.assert_close(maps["depth"][0], 1 / hill()[0])
    assert made.spec.depth_kind == "disparity" and "invert" not in made.fingerprint()["preprocessing"]
    assert "invert" not in teacher(tmp_path).fingerprint()["preprocessing"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (dict(normal_axes="opengl2"), "unknown setting 'opengl2'"),
        (dict(depth_kind="inverse"), "unknown setting 'inverse'"),
        (dict(mask="network"), "mask is 'network'"),
        (dict(mask="threshold"), "mask_range goes with"),
        (dict(device="gpu"), "unknown device"),
        (dict(std=(1.0, 0.0, 1.0)), "std is 0.0"),
    ],
)
def test_settings_that_can_not_be(settings, told):
    with pytest.raises(SagecacheError, match=told):
        SapiensSettings(files=dict(depth="d"), **settings)
