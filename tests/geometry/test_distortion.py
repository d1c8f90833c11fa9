"""Distortions against closed forms, scipy, slow loops, rendered blobs, and the laws of maps and inverses."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RBFInterpolator
from torch.testing import assert_close

import oracles
from sagecache.geometry import distortion, heatmap, sampling
from sagecache.geometry.affine import augment_affine, transform_points
from sagecache.geometry.distortion import MARGIN, NODES, Distortion

SIZE = (192, 256)
SMALL = (48, 64)
STRENGTH = st.floats(0, 1)
SIGNED = st.floats(-1, 1)


def view_points(size=SIZE, count=23):
    x, y = np.meshgrid(np.linspace(0, size[0] - 1, count), np.linspace(0, size[1] - 1, count))
    return np.stack([x, y], -1).reshape(-1, 2)


def plate(bend, seed=0):
    return distortion.thin_plate(np.random.default_rng(seed).uniform(-bend, bend, (4, 4, 2)))


def all_three(size=SIZE):
    tilted = distortion.compose(plate(0.03), distortion.tilt(12, -9, size))
    return distortion.compose(tilted, distortion.radial(-0.25, -0.1, size))


def misses(one: Distortion, size=SIZE):
    """How far points of the view that stay near it come back from where they were, largest and median, px."""
    points = view_points(size)
    there = distortion.bend(points, one.forward, size)
    back = np.abs(distortion.bend(there, one.inverse, size) - points).max(-1)
    near = (np.abs(there / (np.array(size) - 1) - 0.5) < 0.55).all(-1)
    return back[near].max(), np.median(back[near])


def as_batch(lattice, dtype=torch.float32):
    return torch.from_numpy(lattice).to(dtype).unsqueeze(0)


# --- the two lattices undo each other --------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(k1=SIGNED, ratio=STRENGTH)
def test_a_lens_is_undone(k1, ratio):
    one = distortion.radial(0.5 * k1, 0.25 * k1 * ratio, SIZE)
    assert misses(one)[0] < 0.02 and misses(one.reversed())[0] < 0.02


@settings(max_examples=12, deadline=None)
@given(angle=STRENGTH, direction=st.floats(0, 2 * math.pi))
def test_a_tilt_is_undone(angle, direction):
    one = distortion.tilt(40 * angle * math.cos(direction), 40 * angle * math.sin(direction), SIZE)
    assert misses(one)[0] < 0.02 and misses(one.reversed())[0] < 0.02


@settings(max_examples=12, deadline=None)
@given(bend=STRENGTH, seed=st.integers(0, 2**31))
def test_a_thin_plate_is_undone(bend, seed):
    one = plate(0.03 * bend, seed)
    assert misses(one)[0] < 0.02 and misses(one.reversed())[0] < 0.02


@settings(max_examples=12, deadline=None)
@given(k1=SIGNED, tilts=st.tuples(SIGNED, SIGNED), seed=st.integers(0, 2**31))
def test_a_composition_is_undone(k1, tilts, seed):
    tilted = distortion.compose(plate(0.02, seed), distortion.tilt(15 * tilts[0], 15 * tilts[1], SIZE))
    assert misses(distortion.compose(tilted, distortion.radial(0.25 * k1, 0, SIZE)))[0] < 0.03


def test_the_strongest_plate_never_folds_and_is_nearly_undone():
    """Neighbours that move against each other as far as a configuration allows."""
    signs = np.random.default_rng(1).choice([-1, 1], (30, 4, 4, 2))
    checkers = np.indices((4, 4)).sum(0) % 2 * 2 - 1
    signs[0], signs[1] = checkers[..., None], np.stack([checkers, -checkers], -1)
    for sign in signs:
        one = distortion.thin_plate(sign * distortion.MAX_BEND)  # raises where the view is folded
        largest, median = misses(one)
        assert largest < 0.3 and median < 0.005


# --- each maker does what its formula says ---------------------------------------------------------


@pytest.mark.parametrize(("k1", "k2"), [(0.3, 0.0), (0.2, 0.1), (0.5, 0.25)])
def test_a_lens_moves_points_along_rays_by_its_polynomial(k1, k2):
    one = distortion.radial(k1, k2, SIZE)
    centre = (np.array(SIZE) - 1) / 2
    ray = (view_points() - centre) / np.linalg.norm(centre)  # corners at 1
    r = np.linalg.norm(ray, axis=-1, keepdims=True)
    expected = centre + (ray + k1 * ray * r**2 + k2 * ray * r**4) * np.linalg.norm(centre) / (
        1 + k1 / 3 + k2 / 9
    )
    np.testing.assert_allclose(distortion.bend(view_points(), one.forward, SIZE), expected, atol=0.02)
    barrel = distortion.radial(-k1, -k2, SIZE)
    np.testing.assert_array_equal(barrel.forward, one.inverse)
    np.testing.assert_array_equal(barrel.inverse, one.forward)


def test_a_barrel_draws_corners_in_and_keeps_the_size():
    one = distortion.radial(-0.4, 0, SIZE)
    corners = np.array([[0.0, 0.0], [191.0, 255.0]])
    moved = distortion.bend(corners, one.forward, SIZE)
    assert (moved[0] > 5).all() and (moved[1] < corners[1] - 5).all()
    points = view_points() - (np.array(SIZE) - 1) / 2
    bent = distortion.bend(view_points(), one.forward, SIZE) - (np.array(SIZE) - 1) / 2
    spread = [np.sqrt((each**2).sum(-1).mean()) for each in (points, bent)]
    assert spread[1] / spread[0] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("angles", [(25, 0), (0, -30), (12, 17), (-20, 8)])
def test_a_tilt_is_the_picture_of_a_turned_plane(angles):
    """Each point of the plane is turned and projected by itself, with the sides' own names checked below."""
    one = distortion.tilt(*angles, SIZE)
    angle, distance = math.radians(math.hypot(*angles)), 1.5 * 255
    axis = np.array([-angles[1], angles[0], 0]) / math.hypot(*angles)
    centre = np.array([95.5, 127.5])
    expected = []
    for point in view_points():
        x = np.array([*(point - centre), 0.0])
        turned = (  # Rodrigues
            x * math.cos(angle)
            + np.cross(axis, x) * math.sin(angle)
            + axis * (axis @ x) * (1 - math.cos(angle))
        )
        zoom = distance / math.sqrt(math.cos(angle))
        expected.append(centre + zoom * turned[:2] / (distance + turned[2]))
    np.testing.assert_allclose(distortion.bend(view_points(), one.forward, SIZE), expected, atol=0.005)


def test_which_side_a_tilt_brings_nearer():
    sides = {"left": (0.0, 127.5), "right": (191.0, 127.5), "upper": (95.5, 0.0), "lower": (95.5, 255.0)}
    for angles, near, far in [
        ((20, 0), "right", "left"),
        ((-20, 0), "left", "right"),
        ((0, 20), "lower", "upper"),
        ((0, -20), "upper", "lower"),
    ]:
        forward = as_batch(distortion.tilt(*angles, SIZE).forward)
        points = torch.tensor([[sides[near], sides[far], (95.5, 127.5)]])
        area = distortion.local_area(points, forward, SIZE)[0]
        assert area[0] > 1.1 and area[1] < 0.9, (angles, near)
        assert area[2] == pytest.approx(1, abs=0.01)
        assert_close(distortion.bend_points(points, forward, SIZE)[0, 2], points[0, 2], atol=0.01, rtol=0)


def test_a_plate_passes_its_control_points_as_scipys_spline():
    moves = np.random.default_rng(3).uniform(-0.03, 0.03, (4, 4, 2))
    one = distortion.thin_plate(moves)
    line = np.linspace(0, 1, 4)
    places = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    units = np.random.default_rng(4).uniform(-0.2, 1.2, (200, 2))
    spline = RBFInterpolator(places, moves.reshape(-1, 2), kernel="thin_plate_spline")
    extent = np.array(SIZE) - 1
    found = distortion.bend(np.r_[places, units] * extent, one.forward, SIZE) / extent
    np.testing.assert_allclose(found[:16] - places, moves.reshape(-1, 2), atol=0.005)  # it is rounded there
    np.testing.assert_allclose(found[16:] - units, spline(units), atol=0.003)


def test_a_plate_under_an_even_move_is_a_shift():
    one = distortion.thin_plate(np.broadcast_to([0.02, -0.01], (4, 4, 2)))
    np.testing.assert_allclose(one.forward, np.broadcast_to([0.02, -0.01], one.forward.shape), atol=1e-9)
    np.testing.assert_allclose(one.inverse, -one.forward, atol=1e-9)


def test_compose_is_first_then_second():
    first, second = plate(0.03, 5), distortion.tilt(10, 5, SIZE)
    both = distortion.compose(first, second)
    points = view_points()
    expected = distortion.bend(distortion.bend(points, first.forward, SIZE), second.forward, SIZE)
    np.testing.assert_allclose(distortion.bend(points, both.forward, SIZE), expected, atol=0.02)
    other = distortion.compose(second, first)
    assert np.abs(distortion.bend(points, other.forward, SIZE) - expected).max() > 0.1


# --- reading a lattice -----------------------------------------------------------------------------


def slow_displacement(lattice, x, y):
    """Cubic convolution (Keys 1981, a = -1/2) by its kernel, node by node."""

    def kernel(t):
        t = abs(t)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    last = NODES - 1
    column, row = (min(max((u + MARGIN) * last / (1 + 2 * MARGIN), 0), last) for u in (x, y))
    total = np.zeros(2)
    for j in range(math.floor(row) - 2, math.floor(row) + 4):
        for i in range(math.floor(column) - 2, math.floor(column) + 4):
            value = lattice[min(max(j, 0), last), min(max(i, 0), last)]
            total += kernel(row - j) * kernel(column - i) * value
    return total


def test_numpy_and_torch_read_as_the_slow_loop_inside_and_beyond_the_lattice():
    rng = np.random.default_rng(0)
    lattice = rng.normal(0, 0.05, (NODES, NODES, 2))
    units = np.r_[rng.uniform(-0.5, 1.5, (60, 2)), [[-0.25, -0.25], [1.25, 1.25], [0, 1], [1, 0]]]
    extent = np.array(SIZE) - 1
    expected = [(unit + slow_displacement(lattice, *unit)) * extent for unit in units]
    np.testing.assert_allclose(distortion.bend(units * extent, lattice, SIZE), expected, atol=1e-9)
    points = torch.from_numpy(units * extent)[None]
    found = distortion.bend_points(points, as_batch(lattice, torch.float64), SIZE)
    np.testing.assert_allclose(found[0], expected, atol=1e-9)
    half = distortion.bend_points(points.float(), as_batch(lattice), SIZE)
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half[0], expected, atol=1e-3)


def test_nodes_and_pixels_are_read_where_they_are():
    one = all_three()
    extent = np.array(SIZE) - 1
    line = np.linspace(-MARGIN, 1 + MARGIN, NODES)
    nodes = np.stack(np.meshgrid(line, line), -1) * extent
    moved = distortion.node_positions(one.inverse, SIZE)
    np.testing.assert_allclose(moved, distortion.bend(nodes, one.inverse, SIZE), atol=1e-9)
    dense = distortion.at_pixels(moved, SIZE)
    x, y = np.meshgrid(np.arange(192.0), np.arange(256.0))
    expected = distortion.bend(np.stack([x, y], -1), one.inverse, SIZE)
    assert dense.shape == (256, 192, 2) and dense.dtype == np.float32
    np.testing.assert_allclose(dense, expected, atol=2e-3)


def test_covered_ends_with_the_lattice():
    points = np.array([[-47.7, 0], [-47.8, 0], [238.7, 318.7], [238.8, 0], [0, 318.8]])
    expected = [True, False, True, False, False]
    assert distortion.covered(points, SIZE).tolist() == expected
    assert distortion.covered(torch.from_numpy(points)[None], SIZE)[0].tolist() == expected


def test_areas_are_those_of_small_triangles():
    one = all_three()
    points = np.random.default_rng(2).uniform(10, 180, (40, 2))
    step = 1e-3
    right, down = np.array([step, 0]), np.array([0, step])
    origin, first, second = (distortion.bend(points + d, one.forward, SIZE) for d in (0, right, down))
    a, b = (first - origin) / step, (second - origin) / step
    expected = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    forward = as_batch(one.forward, torch.float64)
    area = distortion.local_area(torch.from_numpy(points)[None], forward, SIZE)
    np.testing.assert_allclose(area[0], expected, atol=1e-4)
    assert expected.std() > 0.05
    rows, columns = np.mgrid[10:40, 10:40]
    nodes = ((np.stack([columns, rows], -1) / (NODES - 1) * 1.5) - MARGIN) * (np.array(SIZE) - 1)
    at_nodes = distortion.local_area(torch.from_numpy(nodes).reshape(1, -1, 2), forward, SIZE)
    np.testing.assert_allclose(
        at_nodes[0].reshape(30, 30), distortion.determinants(one.forward)[10:40, 10:40], atol=1e-9
    )


def test_gradients_of_points_and_areas():
    one = all_three()
    lattice = as_batch(one.forward, torch.float64).repeat(2, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 3, 2, generator=generator, dtype=torch.float64) * 150 + 20
    points[0, 0] = torch.tensor([-20.0, 300.0])  # outside the view
    points[1, 0] = torch.tensor([-90.0, 400.0])  # beyond the lattice
    points.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: distortion.bend_points(p, lattice, SIZE), (points,))
    assert torch.autograd.gradcheck(lambda p: distortion.local_area(p, lattice, SIZE), (points,))


# --- maps ------------------------------------------------------------------------------------------


def test_a_lattice_of_zeros_is_the_identity_and_each_sample_has_its_own():
    maps = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    lattices = torch.stack([torch.zeros(NODES, NODES, 2), as_batch(all_three(SMALL).inverse)[0]])
    bent = distortion.bend_maps(maps, lattices)
    assert_close(bent[0], maps[0], atol=1e-5, rtol=0)
    assert (bent[1] - maps[1]).abs().mean() > 0.05
    points = torch.rand(2, 5, 2) * 40
    assert torch.equal(distortion.bend_points(points, torch.zeros(2, NODES, NODES, 2), SMALL), points)


def test_an_even_lattice_warps_as_the_shift_that_it_is():
    maps = torch.rand(1, 2, 64, 48, generator=torch.Generator().manual_seed(1))
    inverse = torch.tensor([3.25 / 47, -2.5 / 63]).expand(1, NODES, NODES, 2)
    shift = torch.eye(3)[None].clone()
    shift[0, :2, 2] = torch.tensor([-3.25, 2.5])
    assert_close(distortion.bend_maps(maps, inverse), sampling.warp_heatmaps(maps, shift), atol=1e-4, rtol=0)


def test_bend_maps_is_the_loop():
    inverse = all_three(SMALL).inverse
    maps = torch.rand(1, 1, 64, 48, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bent = distortion.bend_maps(maps, as_batch(inverse, torch.float64))[0, 0]
    for row, column in np.random.default_rng(0).integers(0, (64, 48), (120, 2)):
        x, y = distortion.bend(np.array([float(column), float(row)]), inverse, SMALL)
        assert bent[row, column].item() == pytest.approx(oracles.bilinear(maps[0, 0].numpy(), x, y), abs=1e-9)


def test_maps_whose_corners_are_not_the_view_s_are_the_loop_too():
    """MSRA's cells are the view's pixels over the stride, also behind the last one."""
    inverse, stride = all_three(SIZE).inverse, 4
    maps = torch.rand(1, 1, 64, 48, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    to_map = torch.diag(torch.tensor([1 / stride, 1 / stride, 1.0], dtype=torch.float64))
    same = torch.eye(3, dtype=torch.float64)[None]
    found = distortion.warp_bent_heatmaps(maps, same, as_batch(inverse, torch.float64), to_map, SIZE)[0, 0]
    for row, column in np.random.default_rng(0).integers(0, (64, 48), (120, 2)):
        x, y = distortion.bend(np.array([column, row]) * float(stride), inverse, SIZE) / stride
        assert found[row, column].item() == pytest.approx(
            oracles.bilinear(maps[0, 0].numpy(), x, y), abs=1e-9
        )


def test_peaks_land_where_the_points_do():
    one = all_three(SMALL)
    view = torch.from_numpy(augment_affine(SMALL, 25, 1.1, (0.03, -0.02), True)).float()[None]
    joints = torch.tensor([[[20.3, 30.8], [27.0, 35.5], [15.5, 22.0]]])
    maps = heatmap.gaussian(joints, SMALL, 1.5)
    plain = transform_points(view, joints)
    expected = distortion.bend_points(plain, as_batch(one.forward), SMALL)[0]
    assert (expected - plain[0]).norm(dim=-1).max() > 0.5
    found = distortion.warp_bent_heatmaps(maps, view, as_batch(one.inverse))
    centres = [oracles.window_centroid(image, 5) for image in found[0].double().numpy()]
    # a blob that is stretched unevenly has its centre of mass a little off
    np.testing.assert_allclose(centres, expected, atol=0.12)
    twice = distortion.bend_maps(sampling.warp_heatmaps(maps, view), as_batch(one.inverse))
    assert_close(found, twice, atol=0.12 * maps.max().item(), rtol=0)


def test_without_distortion_the_warp_is_the_affine_one():
    maps = torch.rand(2, 4, 64, 48, generator=torch.Generator().manual_seed(3))
    views = torch.from_numpy(
        np.stack([augment_affine(SMALL, a, 0.9, (0.1, 0), f) for a, f in ((30, True), (-70, False))])
    ).float()
    bent = distortion.warp_bent_heatmaps(maps, views, torch.zeros(2, NODES, NODES, 2))
    assert_close(bent, sampling.warp_heatmaps(maps, views), atol=1e-4, rtol=0)


def test_mass_in_view_is_the_share_that_was_not_cut_off():
    """Whole blobs count 1 however they were enlarged; one on the edge counts what is inside."""
    one = distortion.radial(0.4, 0.1, SMALL)
    view = torch.from_numpy(augment_affine(SMALL, 0, 1.15)).float()[None]
    middle = torch.tensor([23.5, 31.5])
    inverse = as_batch(one.inverse)
    edge = torch.tensor([[[0.0, 31.5]]])  # of the distorted view
    edge = distortion.bend_points(edge, inverse, SMALL)[0, 0]
    joints = torch.stack([middle, torch.tensor([33.0, 20.0]), (edge - middle) / 1.15 + middle])[None]
    warped = distortion.warp_bent_heatmaps(heatmap.gaussian(joints, SMALL, 1.2), view, inverse)
    area = distortion.local_area(transform_points(view, joints), as_batch(one.forward), SMALL)
    assert (warped[0, 1].sum() / 1.15**2 - 1).abs() > 0.03, "the area matters here"
    share = distortion.bent_in_view_mass(warped, view, area)[0]
    assert_close(share[:2], torch.ones(2), atol=0.03, rtol=0)
    # half of a blob on the first pixel centre, and half of that pixel's own column
    assert share[2].item() == pytest.approx(0.5 + 0.5 / (math.sqrt(2 * math.pi) * 1.2 * 1.4), abs=0.05)


def test_outside_the_plain_view_maps_are_zero():
    inverse = as_batch(distortion.radial(-0.5, -0.2, SMALL).inverse)  # a barrel shows more than the view
    bent = distortion.bend_maps(torch.ones(1, 1, 64, 48), inverse)[0, 0]
    assert bent[0, 0] == bent[-1, -1] == 0 and bent[32, 24] == 1


def test_a_mirrored_lattice_bends_the_mirrored_map():
    one = all_three(SMALL)
    mirror = np.array([-1.0, 1.0])
    maps = torch.rand(1, 2, 64, 48, generator=torch.Generator().manual_seed(4))
    mirrored = as_batch(np.ascontiguousarray(one.inverse[:, ::-1] * mirror))
    assert_close(
        distortion.bend_maps(maps.flip(-1), mirrored),
        distortion.bend_maps(maps, as_batch(one.inverse)).flip(-1),
        atol=1e-4,
        rtol=0,
    )
    left, right = distortion.tilt(-20, 7, SIZE), distortion.tilt(20, 7, SIZE)
    np.testing.assert_allclose(left.forward, right.forward[:, ::-1] * mirror, atol=1e-12)
    np.testing.assert_allclose(left.inverse, right.inverse[:, ::-1] * mirror, atol=1e-12)


def test_maps_carry_gradients():
    maps = torch.rand(1, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    inverse = as_batch(all_three((4, 5)).inverse, torch.float64)
    view = torch.from_numpy(augment_affine((4, 5), 20, 1.1))[None]
    assert torch.autograd.gradcheck(lambda m: distortion.warp_bent_heatmaps(m, view, inverse), (maps,))


def test_half_precision_is_raised():
    points = torch.tensor([[[100.0, 200.0]]])
    lattice = as_batch(all_three().forward)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distortion.bend_points(points, lattice, SIZE)
    assert found.dtype == torch.float32 and torch.equal(found, distortion.bend_points(points, lattice, SIZE))


# --- folds -----------------------------------------------------------------------------------------


def test_folds_are_refused():
    moves = np.zeros((4, 4, 2))
    moves[1, 1, 0], moves[1, 2, 0] = 0.25, -0.25  # two neighbours change places
    with pytest.raises(ValueError, match="folded"):
        distortion.thin_plate(moves)
    with pytest.raises(ValueError, match="horizon"):
        distortion.tilt(85, 0, SIZE)
    with pytest.raises(ValueError, match="one sign"):
        distortion.radial(0.3, -0.2, SIZE)


def test_a_lattice_that_turns_the_view_inside_out_is_refused():
    line = np.linspace(-MARGIN, 1 + MARGIN, NODES)
    mirror = np.zeros((NODES, NODES, 2))
    mirror[..., 0] = 1 - 2 * line  # x -> 1 - x
    with pytest.raises(ValueError, match="folded"):
        Distortion(mirror, mirror)
    with pytest.raises(ValueError, match="folded"):
        Distortion(np.full((NODES, NODES, 2), np.nan), np.zeros((NODES, NODES, 2)))


def test_a_picture_bent_by_opencv_shows_what_the_maps_show():
    """cv2.remap by the dense inverse and bend_maps agree on one map of the view's own size."""
    inverse = all_three(SMALL).inverse
    image = cv2.GaussianBlur(np.random.default_rng(0).random((64, 48)), (0, 0), 1.5)
    dense = distortion.at_pixels(distortion.node_positions(inverse, SMALL), SMALL)
    expected = cv2.remap(image, dense, None, cv2.INTER_LINEAR)
    found = distortion.bend_maps(torch.from_numpy(image)[None, None], as_batch(inverse))[0, 0].numpy()
    assert np.abs(found - expected).max() < 0.02
