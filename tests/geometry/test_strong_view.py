from types import SimpleNamespace

import numpy as np
import pytest
import torch
from host import Operations
from torch.testing import assert_close

from sagecache.geometry.affine import augment_affine, heatmap_affine
from sagecache.geometry.distortion import MARGIN, bend, radial
from sagecache.geometry.strong_view import points_on_map

SIZE, MAP = (97, 129), (25, 33)  # corner to corner: a cell of the map is four pixels
POINTS = np.random.default_rng(0).uniform((-20, -20), (117, 149), (40, 2))
LENS = radial(0.4, 0.1, SIZE)


def batch_of(view: np.ndarray, lens=None) -> SimpleNamespace:
    lattices = (
        None if lens is None else tuple(torch.from_numpy(one)[None] for one in (lens.forward, lens.inverse))
    )
    return SimpleNamespace(
        student_heatmaps=torch.zeros(1, len(POINTS), MAP[1], MAP[0]),
        heatmap_from_strong=torch.from_numpy(heatmap_affine(SIZE, MAP)),
        strong_from_image=torch.from_numpy(view)[None],
        strong_size=SIZE,
        distortion=lattices,
    )


@pytest.mark.parametrize("lens", [None, LENS, LENS.reversed()], ids=["plain", "pincushion", "barrel"])
@pytest.mark.parametrize(
    "options", [dict(), dict(rotation=30.0, scale=1.2), dict(flip=True, shift=(0.1, 0.0))]
)
def test_points_follow_the_matrix_and_then_the_lens(options, lens):
    view = augment_affine(SIZE, **options)
    expected = POINTS @ view[:2, :2].T + view[:2, 2]
    near = ((expected >= -MARGIN * np.array(SIZE)) & (expected <= (1 + MARGIN) * np.array(SIZE))).all(-1)
    if lens is not None:
        expected = bend(expected, lens.forward, SIZE)
    seen = ((expected >= 0) & (expected <= np.array(SIZE) - 1)).all(-1)
    points, in_view = points_on_map(batch_of(view, lens), torch.from_numpy(POINTS)[None])
    assert_close(points[0][near], torch.from_numpy(expected / 4)[near], atol=1e-4, rtol=0)
    assert in_view[0].tolist() == (seen & near).tolist() and 3 < seen.sum() < len(POINTS) - 3


def test_points_beyond_the_lattice_are_not_on_the_map():
    """There a lens only guesses; this one would pull everything into view."""
    inward = torch.full((1, 49, 49, 2), 0.4, dtype=torch.float64)
    batch = batch_of(np.eye(3))
    batch.distortion = (inward, -inward)
    far, near = [-MARGIN * 96 - 1, 5.0], [-MARGIN * 96 + 1, 5.0]
    assert points_on_map(batch, torch.tensor([[far, near, [float("nan"), 5]]]).double())[1].tolist() == [
        [False, True, False]
    ]


@pytest.mark.parametrize("lens", [None, LENS])
def test_the_host_never_waits_for_the_device(lens):
    batch, points = batch_of(np.eye(3), lens), torch.from_numpy(POINTS)[None]
    with Operations() as operations:
        points_on_map(batch, points)
    assert operations.waiting == set() and operations.seen
