"""Views: where pixels go (rendered dots against the matrix), what each key changes, what stays fixed."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.views import STRONG, ViewConfig, make_view, move_keypoints, warp_image
from sagecache.errors import SagecacheError
from sagecache.geometry.affine import apply_affine, augment_affine, crop_affine
from sagecache.skeleton import COCO17

SIZE = (96, 128)
BOX = (60.0, 40.0, 90.0, 140.0)
GEOMETRY = ViewConfig(rotation=60, scale=0.4, shift=0.1, flip=0.5)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photo(height: int = 240, width: int = 220, seed: int = 0) -> np.ndarray:
    """Smooth coloured noise: every place looks different, and no detail is finer than a few pixels."""
    coarse = rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def dot_image(x: float, y: float, size: tuple[int, int], sigma: float) -> np.ndarray:
    """A bright Gaussian dot on black, centred at (x, y), RGB."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    return np.repeat(np.rint(dot).astype(np.uint8)[..., None], 3, axis=2)


def centre_of_mass(image: np.ndarray) -> np.ndarray:
    weights = image[..., 0].astype(float)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()


# --- where pixels go -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    fraction=st.tuples(st.floats(0.4, 0.6), st.floats(0.4, 0.6)),
    zoom=st.sampled_from([0.25, 0.5, 0.9, 1.7, 3.0, 7.3, 20.0]),
)
def test_a_dot_lands_where_the_matrix_says(seed, fraction, zoom):
    """zoom: source pixels a view pixel; from magnified thumbnails to photos shrunk twentyfold."""
    width, height = max(6, int(130 * zoom)), max(6, int(150 * zoom))
    box = (width * 0.15, height * 0.15, width * 0.7, height * 0.7)
    point = np.array([width * fraction[0], height * fraction[1]])
    image = dot_image(*point, (width, height), sigma=max(0.6, 2.5 * zoom))
    view = make_view(image, box, SIZE, 1.25, GEOMETRY, rng(seed))
    expected = apply_affine(view.view_from_image, point[None])[0]
    np.testing.assert_allclose(centre_of_mass(view.image), expected, atol=0.12)


def test_the_identity_config_is_the_plain_crop():
    image = photo()
    view = make_view(image, BOX, SIZE, 1.25, ViewConfig(), rng(3))
    crop_from_image = crop_affine(BOX, SIZE, 1.25)
    np.testing.assert_array_equal(view.view_from_image, crop_from_image)
    reference = cv2.warpAffine(image, crop_from_image[:2], SIZE, borderMode=cv2.BORDER_REPLICATE)
    # the reference has no anti-alias filter, and the photo nothing that needs one
    assert np.abs(view.image.astype(int) - reference).mean() < 2.0


def test_a_crop_at_full_resolution_is_a_slice():
    image = photo()
    crop_from_image = np.array([[1.0, 0, -20], [0, 1.0, -30], [0, 0, 1.0]])
    np.testing.assert_array_equal(warp_image(image, crop_from_image, (50, 60)), image[30:90, 20:70])


def test_a_mirrored_view_is_the_mirror_of_the_view():
    image = photo()
    crop_from_image = crop_affine(BOX, SIZE, 1.25)
    plain = warp_image(image, crop_from_image, SIZE)
    mirrored = warp_image(image, augment_affine(SIZE, flip=True) @ crop_from_image, SIZE)
    assert np.abs(mirrored[:, ::-1].astype(int) - plain).max() <= 3


def test_shrinking_does_not_alias():
    """A one-pixel checkerboard holds nothing that a sixfold smaller picture can show: it turns grey."""
    board = (np.indices((600, 600)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.repeat(board[..., None], 3, axis=2)
    for zoom in (0.16, 0.3, 0.55):
        view = warp_image(image, np.diag([zoom, zoom, 1.0]), (64, 64))
        inside = view[4:-4, 4:-4]  # a replicated edge is a stripe, which may show
        assert np.abs(inside.astype(float) - 127.5).max() < 40, zoom


@pytest.mark.parametrize(
    "shape, box",
    [
        ((1, 1), (0, 0, 1, 1)),
        ((3, 500), (0, 0, 500, 3)),
        ((5, 5), (0, 0, 4000, 4000)),
        ((50, 40), (300, 300, 20, 20)),  # wholly outside
        ((50, 40), (-90, -90, 30, 30)),
        ((2000, 30), (0, 0, 30, 2000)),
    ],
)
def test_odd_images_and_boxes_give_a_view(shape, box):
    image = np.full((*shape, 3), 77, dtype=np.uint8)
    view = make_view(image, box, SIZE, 1.25, GEOMETRY, rng(1))
    assert view.image.shape == (128, 96, 3) and (view.image == 77).all(), "one colour, replicated outside"


def test_the_border_is_replicated_or_one_flat_colour():
    image = photo()
    image[:, :2] = (10, 200, 30)
    outside = (-150.0, 20.0, 100.0, 140.0)
    replicated = make_view(image, outside, SIZE, 1.0, ViewConfig(), rng()).image
    assert np.abs(replicated[:, :40].astype(int) - (10, 200, 30)).max() <= 2
    filled = make_view(image, outside, SIZE, 1.0, ViewConfig(fill=1), rng()).image
    assert len(np.unique(filled[:, :40].reshape(-1, 3), axis=0)) == 1
    assert np.abs(filled[0, 0].astype(int) - (10, 200, 30)).max() > 20


# --- keypoints -----------------------------------------------------------------------------------


def random_joints(seed: int) -> np.ndarray:
    joints = np.empty((17, 3))
    joints[:, 0], joints[:, 1] = rng(seed).uniform(60, 150, 17), rng(seed + 1).uniform(40, 180, 17)
    joints[:, 2] = rng(seed + 2).integers(0, 3, 17)
    return joints


def test_keypoints_follow_the_matrix():
    view = make_view(photo(), BOX, SIZE, 1.25, dataclasses.replace(GEOMETRY, flip=0), rng(5))
    joints = random_joints(5)
    moved, visible = move_keypoints(joints, view.view_from_image, SIZE, COCO17.flip_indices)
    homogeneous = np.c_[joints[:, :2], np.ones(17)] @ view.view_from_image.T
    np.testing.assert_allclose(moved, homogeneous[:, :2], atol=1e-3)
    assert moved.dtype == visible.dtype == np.float32
    assert set(visible.tolist()) <= {0.0, 1.0} and not visible[joints[:, 2] == 0].any()


def test_a_mirrored_view_swaps_left_and_right():
    """The mirrored photo of a child who waves with the left hand shows one who waves with the right."""
    joints = random_joints(7)
    joints[:, 2] = 2
    joints[9, 2] = 0  # left wrist not annotated
    plain = crop_affine(BOX, SIZE, 1.25)
    mirrored = augment_affine(SIZE, flip=True) @ plain
    straight, seen = move_keypoints(joints, plain, SIZE, COCO17.flip_indices)
    flipped, seen_flipped = move_keypoints(joints, mirrored, SIZE, COCO17.flip_indices)
    left, right = COCO17.names.index("left_wrist"), COCO17.names.index("right_wrist")
    np.testing.assert_allclose(
        flipped[left], [SIZE[0] - 1 - straight[right, 0], straight[right, 1]], atol=1e-3
    )
    assert seen[left] == 0 and seen[right] == 1 and seen_flipped[right] == 0 and seen_flipped[left] == 1
    nose = COCO17.names.index("nose")
    np.testing.assert_allclose(flipped[nose, 0], SIZE[0] - 1 - straight[nose, 0], atol=1e-3)


def test_joints_outside_the_view_are_not_visible():
    edges = [(-0.4, 0), (-0.6, 0), (95.4, 127.4), (95.6, 0), (0, 127.6), (40, -0.6), (40, 60)]
    joints = np.c_[np.array(edges), np.full(len(edges), 2)]
    _, visible = move_keypoints(joints, np.eye(3), SIZE, np.arange(len(edges)))
    assert visible.tolist() == [1, 0, 1, 0, 0, 0, 1]


def test_labels_are_left_untouched():
    joints = random_joints(1)
    before = joints.copy()
    move_keypoints(joints, augment_affine(SIZE, 30, flip=True), SIZE, COCO17.flip_indices)
    np.testing.assert_array_equal(joints, before)


# --- what each key does --------------------------------------------------------------------------

KEYS = {
    "rotation": 30,
    "scale": 0.3,
    "shift": 0.1,
    "flip": 1,
    "colour": 0.3,
    "grey": 1,
    "blur": 1,
    "noise": 10,
    "cutout": 4,
    "fill": 1,
}
GEOMETRIC = {"rotation", "scale", "shift", "flip"}


def test_every_key_is_listed_here():
    assert set(KEYS) == {field.name for field in dataclasses.fields(ViewConfig)}


@pytest.mark.parametrize("key", KEYS)
def test_each_key_changes_the_view_and_only_geometry_moves_it(key):
    image, box = photo(), (-40.0, 20.0, 140.0, 160.0)  # partly outside, so that fill has something to do
    plain = make_view(image, box, SIZE, 1.25, ViewConfig(), rng(4))
    changed = make_view(image, box, SIZE, 1.25, ViewConfig(**{key: KEYS[key]}), rng(4))
    assert (changed.image != plain.image).any()
    assert (changed.view_from_image != plain.view_from_image).any() == (key in GEOMETRIC)


def test_geometry_stays_within_its_bounds_and_reaches_them():
    crop_from_image = crop_affine(BOX, SIZE, 1.25)
    config = ViewConfig(rotation=45, scale=0.3, shift=0.08, flip=0.5)
    angles, scales, shifts, flips = [], [], [], []
    image = photo()
    centre = (np.array(SIZE) - 1) / 2
    for seed in range(300):
        view = make_view(image, BOX, SIZE, 1.25, config, rng(seed))
        view_from_crop = view.view_from_image @ np.linalg.inv(crop_from_image)
        linear = view_from_crop[:2, :2]
        flips.append(np.linalg.det(linear) < 0)
        scales.append(np.sqrt(abs(np.linalg.det(linear))))
        down = linear @ [0, 1]  # a mirror leaves the vertical alone
        angles.append(np.degrees(np.arctan2(-down[0], down[1])))
        shifts.append((apply_affine(view_from_crop, centre[None])[0] - centre) / SIZE)
    assert 40 < np.max(angles) <= 45 and -45 <= np.min(angles) < -40
    assert 1.25 < np.max(scales) <= 1.3 + 1e-9 and 1 / 1.3 - 1e-9 <= np.min(scales) < 1 / 1.25
    assert 0.07 < np.abs(shifts).max() <= 0.08 + 1e-9
    assert 0.4 < np.mean(flips) < 0.6


def test_noise_has_the_stated_spread_and_no_colour():
    grey = np.full((300, 300, 3), 128, dtype=np.uint8)
    spreads = []
    for seed in range(40):
        view = make_view(grey, (0, 0, 300, 300), (128, 128), 1.0, ViewConfig(noise=8), rng(seed)).image
        assert (view == view[..., :1]).all()
        assert abs(view.mean() - 128) < 1
        spreads.append(view[..., 0].std())
    assert np.max(spreads) < 8.6 and 3 < np.mean(spreads) < 5, "uniform between 0 and 8"


def test_cut_outs_are_flat_and_few():
    grey = np.full((300, 300, 3), 5, dtype=np.uint8)
    covered = []
    for seed in range(40):
        view = make_view(grey, (0, 0, 300, 300), SIZE, 1.0, ViewConfig(cutout=2), rng(seed)).image
        colours = np.unique(view.reshape(-1, 3), axis=0)
        assert len(colours) <= 3
        covered.append((view != 5).any(-1).mean())
    assert 0 in covered and max(covered) < 2 * 36 * 36 / (96 * 128) + 1e-6


def test_grey_loses_colour():
    view = make_view(photo(), BOX, SIZE, 1.25, ViewConfig(grey=1), rng()).image
    assert (view == view[..., :1]).all()


def test_blur_grows_with_the_view():
    """The same picture at twice the size is blurred over twice the pixels: as strong to the eye."""
    image = dot_image(100, 100, (200, 200), 2.0)
    spread = []
    for size in ((128, 128), (256, 256)):
        view = make_view(image, (0, 0, 200, 200), size, 1.0, ViewConfig(blur=1), rng(2)).image
        weights = view[..., 0] / view[..., 0].sum()
        rows, _ = np.mgrid[: size[1], : size[0]]
        spread.append(np.sqrt((weights * (rows - (size[1] - 1) / 2) ** 2).sum()))
    assert spread[1] / spread[0] == pytest.approx(2, rel=0.08)


# --- determinism, inputs, errors -----------------------------------------------------------------


def test_the_same_seed_gives_the_same_view():
    image = photo()
    one, two = (make_view(image, BOX, SIZE, 1.25, STRONG, rng(11)) for _ in range(2))
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.view_from_image, two.view_from_image)
    other = make_view(image, BOX, SIZE, 1.25, STRONG, rng(12))
    assert (other.image != one.image).any()


@pytest.mark.parametrize("config", [ViewConfig(), ViewConfig(cutout=9), STRONG])
def test_the_photo_is_left_untouched(config):
    image = photo(128, 96)
    before = image.copy()
    for seed in range(5):
        make_view(image, (0, 0, 95, 127), SIZE, 1.0, config, rng(seed))
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "values",
    [
        {"rotation": -1},
        {"flip": 1.5},
        {"cutout": 1.5},
        {"noise": float("nan")},
        {"scale": "big"},
        {"colour": 2},
    ],
)
def test_impossible_values_are_refused(values):
    with pytest.raises(SagecacheError, match=next(iter(values))):
        ViewConfig(**values)
