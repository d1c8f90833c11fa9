import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.geometry.affine import crop_affine
from sagecache.precompute.resample import axis_weights, cut_maps

SIZE = (12, 16)


def plane(shape: tuple[int, int], affine: np.ndarray | None = None) -> np.ndarray:
    """2 + .03 x - .05 y at the pixels of an image, or at those of a crop, where they lie in the image."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(float)
    if affine is not None:
        back = np.linalg.inv(affine)
        x, y = (back[k, 0] * x + back[k, 1] * y + back[k, 2] for k in range(2))
    return 2 + 0.03 * x - 0.05 * y


@pytest.mark.parametrize(
    "box", [(40.0, 30.0, 90.0, 100.0), (70.3, 60.7, 9.0, 11.5), (40.0, 20.0, 140.0, 150.0)]
)
def test_a_plane_and_constant_normals_come_out_exact_however_much_the_crop_shrinks(box):
    affine = crop_affine(box, SIZE, 1.0)
    image, normal = plane((200, 220))[None], np.array([0.6, 0.0, -0.8]).reshape(3, 1, 1)
    maps = {"depth": image, "normal": np.broadcast_to(normal, (3, 200, 220))}
    cut = cut_maps(maps, np.ones((200, 220), bool), affine, SIZE)
    x, y = np.meshgrid(np.arange(12), np.arange(16))
    back = np.linalg.inv(affine)
    reach = max(0.0, 1 / affine[0, 0]) + 1
    column, row = back[0, 0] * x + back[0, 2], back[1, 1] * y + back[1, 2]
    whole = (column > reach) & (column < 219 - reach) & (row > reach) & (row < 199 - reach)
    assert whole.mean() > 0.8
    np.testing.assert_allclose(cut["depth"][0][whole], plane((16, 12), affine)[whole], rtol=1e-6)
    np.testing.assert_allclose(
        cut["normal"][:, whole], np.broadcast_to(normal[..., 0], (3, whole.sum())), atol=1e-6
    )
    assert cut["mask"][0][whole].all() and cut["depth"].dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.08, 3.0), st.floats(-5, 5))
def test_values_never_leave_the_range_of_the_valid_pixels_and_nan_beside_them_never_enters(
    seed, scale, shift
):
    rng = np.random.default_rng(seed)
    valid = cv2.resize(rng.random((6, 5)), (50, 60), interpolation=cv2.INTER_LINEAR) > 0.5
    depth = np.where(valid, rng.uniform(1, 2, valid.shape), rng.choice([np.nan, 1e9, -1000.0]))
    affine = np.array([[scale, 0, shift], [0, scale, -shift], [0, 0, 1]])
    cut = cut_maps({"depth": depth[None]}, valid, affine, SIZE)
    on = cut["mask"][0] > 0
    assert np.isfinite(cut["depth"]).all() and not cut["depth"][0][~on].any()
    if on.any():
        assert depth[valid].min() - 1e-6 <= cut["depth"][0][on].min()
        assert cut["depth"][0][on].max() <= depth[valid].max() + 1e-6


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 4.0), st.floats(-20, 20))
def test_weights_are_those_of_the_averaged_linear_interpolant(scale, shift):
    values = np.random.default_rng(3).normal(size=60)
    weights = axis_weights(9, 60, scale, shift)
    half = max(0.0, 1 / scale - 1) / 2
    for row, centre in enumerate((np.arange(9) - shift) / scale):
        total = weights[row].sum()
        if centre - half - 1 < 0 or centre + half + 1 > 59:
            assert total <= 1 + 1e-9
            continue
        fine = np.linspace(centre - half, centre + half, 4001)
        between = (fine[1:] + fine[:-1]) / 2 if half else fine
        assert total == pytest.approx(1)
        assert (weights @ values)[row] == pytest.approx(
            np.interp(between, np.arange(60), values).mean(), abs=2e-3
        )


def test_the_mask_is_where_more_than_half_of_a_pixel_is_covered():
    valid = np.zeros((40, 40), bool)
    valid[:, 13:] = True
    quarter = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375], [0, 0, 1]])  # blocks of 4 x 4
    cut = cut_maps({"depth": np.ones((1, 40, 40))}, valid, quarter, (10, 10))
    assert (cut["mask"][0] > 0).all(0).tolist() == [False] * 3 + [True] * 7  # 3 of the 4 in block 3


def test_normals_that_point_everywhere_give_none_and_a_crop_beside_the_image_nothing():
    normal = np.zeros((3, 30, 30))
    normal[0] = np.where(np.arange(30) % 2, 1, -1)
    between = np.array([[0.5, 0, -0.25], [0, 0.5, 0], [0, 0, 1]])  # each target pixel sees two columns
    cut = cut_maps({"normal": normal}, np.ones((30, 30), bool), between, (10, 10))
    assert not cut["mask"].any() and np.isfinite(cut["normal"]).all()
    away = np.array([[1.0, 0, 500], [0, 1, 0], [0, 0, 1]])
    cut = cut_maps({"depth": np.ones((1, 30, 30))}, np.ones((30, 30), bool), away, SIZE)
    assert not cut["mask"].any() and not cut["depth"].any()


def test_a_crop_that_turns_is_refused():
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="upright"):
        cut_maps({"depth": np.ones((1, 9, 9))}, np.ones((9, 9), bool), turned, SIZE)
