"""Disparity to depth: an ellipsoid before cameras at known distances, in any scale and offset."""

import pytest
import torch

from sagecache.geometry.disparity import SPANS, depth_from_disparity

HEIGHT, WIDTH = 96, 72


def ellipsoid(distance, radius=0.3):
    """Depth, normals, mask of an ellipsoid before a far-ish camera; lengths in widths of the picture."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    x, y = (x - WIDTH / 2 + 0.5) / WIDTH, (y - HEIGHT / 2 + 0.5) / WIDTH
    inside = 1 - (x / 0.35) ** 2 - (y / 0.45) ** 2
    mask = inside > 0.02
    relief = radius * inside.clamp_min(1e-3).sqrt()
    depth = distance - relief  # grows away
    slope_x, slope_y = (radius**2 * v / (s**2 * relief) for v, s in ((x, 0.35), (y, 0.45)))
    normals = torch.stack([slope_x, slope_y, -torch.ones_like(x)])
    normals = normals / normals.norm(dim=0)
    return depth[None, None], normals[None], mask[None, None]


def correlation(one, other, mask):
    one, other = one[mask], other[mask]
    return torch.corrcoef(torch.stack([one, other]))[0, 1]


@pytest.mark.parametrize("distance", [0.6, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (30.0, -4.0), (0.01, 1.0)])
def test_depth_comes_back_up_to_scale_and_offset(distance, scale, offset):
    depth, normals, mask = ellipsoid(distance)
    found = depth_from_disparity(scale / depth + offset, normals, mask)
    assert correlation(found, depth, mask) > 0.998
    far = -(scale / depth + offset)
    assert correlation(found, depth, mask) >= correlation(far, depth, mask) - 1e-3


def test_a_near_camera_needs_it():
    """At .6 widths the plain negative is visibly bent; its residual shrinks at least to a third."""
    depth, normals, mask = ellipsoid(0.6)
    disparity = 1 / depth
    bent, straight = (
        1 - correlation(one, depth, mask) ** 2
        for one in (-disparity, depth_from_disparity(disparity, normals, mask))
    )
    assert straight < bent / 3


def test_scale_and_offset_of_the_disparity_do_not_matter():
    depth, normals, mask = ellipsoid(1.0)
    one, other = (depth_from_disparity(a / depth + b, normals, mask) for a, b in ((1.0, 0.0), (7.0, 3.0)))
    torch.testing.assert_close(other, 7 * one, atol=1e-3, rtol=1e-3)


def test_without_usable_normals_it_is_the_far_camera():
    depth, normals, mask = ellipsoid(1.0)
    found = depth_from_disparity(
        1 / depth, torch.zeros_like(normals) + torch.tensor([0.0, 0, -1]).view(3, 1, 1), mask
    )
    assert correlation(found, -1 / depth, mask) > 0.9999


def test_odd_maps_stay_odd_and_finite_ones_finite():
    depth, normals, mask = ellipsoid(1.0)
    disparity = torch.cat([1 / depth, torch.full_like(depth, 2.0), 1 / depth])
    disparity[2, 0, 0, 0] = torch.nan
    normals, mask = normals.repeat(3, 1, 1, 1), mask.repeat(3, 1, 1, 1)
    mask[1] = False
    found = depth_from_disparity(disparity, normals, mask)
    assert found[:2].isfinite().all() and found[2].isnan().sum() == 1
    assert len(SPANS) > 1
