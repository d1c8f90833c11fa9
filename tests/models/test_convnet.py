"""Networks: what goes in and out, and the properties that training relies on."""

import pytest
import torch

from sagecache.models.convnet import Block, GeometryNet, PersonDetector, PoseNet, cbr, standardise


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_geometry_net_gives_maps_at_stride_four():
    net = GeometryNet().eval()
    with torch.no_grad():
        relief, normals, person = net(torch.rand(2, 3, 256, 192))
    assert (
        relief.shape == (2, 1, 64, 48) and normals.shape == (2, 3, 64, 48) and person.shape == (2, 1, 64, 48)
    )
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(2, 64, 48))
    assert 1.1e6 < parameters(net) < 1.6e6


def test_detector_and_pose_net_shapes():
    with torch.no_grad():
        assert PersonDetector().eval()(torch.rand(1, 3, 160, 160)).shape == (1, 5, 40, 40)
        net = PoseNet(width=32).eval()
        (features,) = net(torch.rand(1, 3, 128, 96))
    assert features.shape == (1, net.out_channels, 32, 24)
    assert 3e5 < parameters(PersonDetector()) < 6e5
    assert parameters(PoseNet()) + 17 * 33 < 1.1e6


@pytest.mark.parametrize("net", [GeometryNet, PersonDetector])
def test_exposure_contrast_and_tint_drop_out(net):
    torch.manual_seed(0)
    net, images = net().eval(), 0.2 + 0.6 * torch.rand(1, 3, 64, 64)
    tint = torch.tensor([0.05, -0.1, 0.02]).view(1, 3, 1, 1)
    with torch.no_grad():
        plain, changed = net(images), net(0.5 * images + tint)
    for a, b in zip(torch.atleast_1d(*plain), torch.atleast_1d(*changed), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_standardise_leaves_a_blank_image_blank():
    assert standardise(torch.full((1, 3, 8, 8), 0.7)).abs().max() < 1e-4


def test_a_new_block_is_the_identity_on_positive_input():
    x = torch.rand(2, 8, 5, 5)
    torch.testing.assert_close(Block(8, 8).eval()(x), x)
    assert Block(8, 12, 2)(x).shape == (2, 12, 3, 3)


def test_cbr_keeps_the_size_at_stride_one():
    assert cbr(3, 4, 7)(torch.rand(2, 3, 9, 6)).shape == (2, 4, 9, 6)


def test_a_fresh_geometry_net_faces_the_camera():
    with torch.no_grad():
        normals = GeometryNet().eval()(torch.rand(1, 3, 64, 64)).normals
    assert (normals[:, 2] < -0.8).all()
