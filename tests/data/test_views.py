"""Views: where pixels go (rendered dots against the matrix), what each key changes, what stays fixed."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagecache.data.views import STRONG, ViewConfig, make_view, move_keypoints, warp_image
from sagecache.errors import SagecacheError
from sagecache.geometry import distortion
from sagecache.geometry.affine import apply_affine, augment_affine, crop_affine
from sagecache.skeleton import COCO17

SIZE = (96, 128)
BOX = (60.0, 40.0, 90.0, 140.0)
GEOMETRY = ViewConfig(rotation=60, scale=0.4, shift=0.1, flip=0.5)
DISTORTED = {"radial": 0.3, "tilt": 25, "bend": 0.03}


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


# --- distorted views -----------------------------------------------------------------------------


def disc_image(points: np.ndarray, size: tuple[int, int], radius: float) -> np.ndarray:
    """White discs on black with soft edges, one a point, RGB."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    image = np.zeros((size[1], size[0]))
    for x, y in points:
        image = np.maximum(image, (radius + 0.5 - np.hypot(columns - x, rows - y)).clip(0, 1))
    return np.repeat(np.rint(255 * image).astype(np.uint8)[..., None], 3, axis=2)


def centre_about(image: np.ndarray, point: np.ndarray, radius: int = 9) -> np.ndarray:
    column, row = np.rint(point).astype(int)
    part = image[row - radius : row + radius + 1, column - radius : column + radius + 1]
    return centre_of_mass(part) + [column - radius, row - radius]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), zoom=st.sampled_from([0.5, 1.3, 3.4]))
def test_discs_land_where_the_distorted_keypoints_do(seed, zoom):
    """zoom: source pixels a view pixel. Joints near the view's edge, whose discs are cut, are left out."""
    width, height = round(230 * zoom), round(300 * zoom)
    spots = np.array([(0.3, 0.25), (0.7, 0.3), (0.5, 0.5), (0.25, 0.7), (0.75, 0.75)]) * (width, height)
    joints = np.column_stack([spots + rng(seed).uniform(-8, 8, spots.shape) * zoom, np.full(5, 2)])
    image = disc_image(joints[:, :2], (width, height), max(1.2, 2.5 * zoom))
    box = (width * 0.1, height * 0.1, width * 0.8, height * 0.8)
    view = make_view(image, box, (192, 256), 1.1, dataclasses.replace(GEOMETRY, **DISTORTED), rng(seed))
    indices = np.array([1, 0, 2, 4, 3])
    moved, _ = move_keypoints(joints, view.view_from_image, (192, 256), indices, view.distortion)
    inner = ((moved > 14) & (moved < np.array((192, 256)) - 15)).all(1)
    apart = np.linalg.norm(moved[:, None] - moved, axis=-1) + 100 * np.eye(5)
    for point in moved[inner & (apart.min(1) > 22)]:
        np.testing.assert_allclose(centre_about(view.image, point), point, atol=0.3)


def test_some_draws_are_distorted_in_each_way_and_some_not_at_all():
    """Half of the views get each kind by itself; what they get follows the strength that was asked for."""
    config, blank = ViewConfig(**DISTORTED), np.zeros((8, 8, 3), np.uint8)
    views = [make_view(blank, (0, 0, 8, 8), (12, 16), 1.0, config, rng(seed)) for seed in range(120)]
    assert 0.05 < np.mean([view.distortion is None for view in views]) < 0.23, "one in eight"
    single = ViewConfig(radial=0.3)
    views = [make_view(blank, (0, 0, 8, 8), (12, 16), 1.0, single, rng(seed)) for seed in range(80)]
    moves = [
        distortion.bend(np.zeros(2), view.distortion.forward, (12, 16))[0] / 11
        for view in views
        if view.distortion
    ]
    limit = 0.5 * ((1 + 0.3 + 0.15) / (1 + 0.1 + 0.15 / 9) - 1)
    assert -limit < np.min(moves) < 0 < np.max(moves) < limit + 0.01 and np.ptp(moves) > limit
    assert 25 < len(moves) < 55


def test_a_distorted_view_is_sampled_from_the_source_once():
    """As sharp as the plain view: bending that view a second time would blur it."""
    image = photo()
    plain = crop_affine(BOX, SIZE, 1.25)
    nothing = distortion.Distortion(*np.zeros((2, distortion.NODES, distortion.NODES, 2)))
    unbent = warp_image(image, plain, SIZE, bent=nothing)
    assert np.abs(unbent.astype(int) - warp_image(image, plain, SIZE)).max() <= 3
    one = distortion.tilt(15, 10, SIZE)
    places = apply_affine(
        np.linalg.inv(plain), distortion.at_pixels(distortion.node_positions(one.inverse, SIZE), SIZE)
    )
    direct = cv2.remap(
        image, places.astype(np.float32), None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    assert np.abs(warp_image(image, plain, SIZE, bent=one).astype(int) - direct).mean() < 2.0


def test_a_mirrored_photo_under_a_mirrored_distortion_is_the_mirrored_view():
    image = photo()
    one, other = distortion.tilt(20, -10, SIZE), distortion.tilt(-20, -10, SIZE)
    plain = crop_affine(BOX, SIZE, 1.25)
    mirrored = warp_image(image, augment_affine(SIZE, flip=True) @ plain, SIZE, bent=other)
    assert np.abs(mirrored[:, ::-1].astype(int) - warp_image(image, plain, SIZE, bent=one)).max() <= 3


def test_shrinking_a_distorted_view_does_not_alias():
    board = (np.indices((600, 600)).sum(0) % 2 * 255).astype(np.uint8)
    image = np.repeat(board[..., None], 3, axis=2)
    bent = distortion.radial(-0.3, 0, (64, 64))
    for zoom in (0.16, 0.3, 0.5):
        shifted = np.array([[zoom, 0, -3], [0, zoom, -3], [0, 0, 1.0]])
        view = warp_image(image, shifted, (64, 64), bent=bent)[12:-12, 12:-12]
        assert np.abs(view.astype(float) - 127.5).max() < 45, zoom


def test_a_distortion_that_shrinks_is_filtered_as_a_matrix_that_does():
    line = np.linspace(-distortion.MARGIN, 1 + distortion.MARGIN, distortion.NODES) - 0.5
    about_centre = np.stack(np.meshgrid(line, line), -1)
    half = distortion.Distortion(-0.5 * about_centre, about_centre)
    image = rng().integers(0, 256, (400, 400, 3), dtype=np.uint8)
    plain = np.array([[0.6, 0, -90], [0, 0.6, -90], [0, 0, 1.0]])
    shrunk = augment_affine((64, 64), scale=0.5) @ plain
    bent = warp_image(image, plain, (64, 64), bent=half).astype(int)
    assert np.abs(bent - warp_image(image, shrunk, (64, 64))).max() <= 4


def test_joints_beyond_the_lattice_are_not_visible():
    """The lattice holds its edge's displacement beyond it: there a joint's place is a guess."""
    inward = np.zeros((distortion.NODES, distortion.NODES, 2))
    inward[..., 0] = -0.3
    bent = distortion.Distortion(inward, -inward)
    joints = np.array([[95 * 1.24, 60, 2], [95 * 1.26, 60, 2]])
    moved, visible = move_keypoints(joints, np.eye(3), SIZE, np.arange(2), bent)
    assert (moved < SIZE).all() and visible.tolist() == [1, 0]


def test_keys_that_are_off_draw_nothing():
    """The generator stands where it stood before these keys existed: old recipes keep their views."""
    image = photo()
    for config in (ViewConfig(), STRONG, dataclasses.replace(STRONG, magnitude=0.9)):
        calls = Recorder(rng(5))
        make_view(image, BOX, SIZE, 1.25, config, calls)
        kinds = [name for name, _ in calls.log]
        assert kinds[:5] == ["uniform", "uniform", "uniform", "random", "random"]  # the matrix, the border
        after = kinds[6:] if config.fill else kinds[5:]
        first = ["uniform", "uniform", "uniform", "random"] if config.colour else ["random"]
        assert after[: len(first)] == first  # tone, then grey: nothing between them and the border
    affine = make_view(image, BOX, SIZE, 1.25, GEOMETRY, rng(5)).view_from_image
    distorted = make_view(image, BOX, SIZE, 1.25, dataclasses.replace(GEOMETRY, **DISTORTED), rng(5))
    np.testing.assert_array_equal(distorted.view_from_image, affine)


class Recorder:
    """A generator that notes what is drawn from it."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator, self.log = generator, []

    def __getattr__(self, name: str):
        def draw(*args, **kwargs):
            self.log.append((name, args))
            return getattr(self.generator, name)(*args, **kwargs)

        return draw


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

SEED = 3  # a draw in which each kind of distortion takes part
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
    "radial": 0.3,
    "tilt": 25,
    "bend": 0.03,
    "randaugment": 3,
}
MATRIX = {"rotation", "scale", "shift", "flip"}
DISTORTING = {"radial", "tilt", "bend"}


def test_every_key_is_listed_here():
    assert set(KEYS) | {"magnitude"} == {field.name for field in dataclasses.fields(ViewConfig)}


@pytest.mark.parametrize("key", KEYS)
def test_each_key_changes_the_view_and_only_geometry_moves_it(key):
    image, box = photo(), (-40.0, 20.0, 140.0, 160.0)  # partly outside, so that fill has something to do
    config = ViewConfig(**{key: KEYS[key]})
    plain = make_view(image, box, SIZE, 1.25, ViewConfig(), rng(SEED))
    changed = make_view(image, box, SIZE, 1.25, config, rng(SEED))
    assert (changed.image != plain.image).any()
    assert (changed.view_from_image != plain.view_from_image).any() == (key in MATRIX)
    assert (changed.distortion is not None) == (key in DISTORTING) == config.distorts
    assert config.moves == (key in MATRIX | DISTORTING)


def test_magnitude_is_the_strength_of_randaugment():
    image = photo()
    weak, strong, off = (
        make_view(image, BOX, SIZE, 1.25, ViewConfig(randaugment=count, magnitude=magnitude), rng(3)).image
        for count, magnitude in ((4, 0.1), (4, 0.9), (0, 0.9))
    )
    np.testing.assert_array_equal(off, make_view(image, BOX, SIZE, 1.25, ViewConfig(), rng(3)).image)
    distance = [np.abs(each.astype(int) - off).mean() for each in (weak, strong)]
    assert 0 < distance[0] < distance[1]


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


# --- determinism, inputs, errors -----------------------------------------------------------------


def test_the_same_seed_gives_the_same_view():
    image = photo()
    for config in (STRONG, dataclasses.replace(STRONG, **DISTORTED, randaugment=3)):
        one, two = (make_view(image, BOX, SIZE, 1.25, config, rng(11)) for _ in range(2))
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.view_from_image, two.view_from_image)
        np.testing.assert_array_equal(one.lattices(), two.lattices())
        other = make_view(image, BOX, SIZE, 1.25, config, rng(12))
        assert (other.image != one.image).any()


@pytest.mark.parametrize(
    "config", [ViewConfig(), ViewConfig(cutout=9), STRONG, ViewConfig(**DISTORTED, randaugment=4)]
)
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
        {"radial": 0.6},
        {"tilt": 31},
        {"bend": 0.06},
        {"magnitude": 1.1},
        {"randaugment": 2.5},
    ],
)
def test_impossible_values_are_refused(values):
    with pytest.raises(SagecacheError, match=next(iter(values))):
        ViewConfig(**values)


@pytest.mark.parametrize(("key", "largest"), [("rotation", 180), ("scale", 3), ("shift", 1)])
def test_geometry_has_an_upper_bound_at_which_views_are_still_made(key, largest):
    with pytest.raises(SagecacheError, match=rf"{key} must lie in \[0, {largest}\]"):
        ViewConfig(**{key: 1e300})
    image, box = np.full((40, 30, 3), 100, np.uint8), (5.0, 5.0, 20.0, 30.0)
    for seed in range(20):
        view = make_view(
            image, box, (24, 32), 1.25, ViewConfig(**{key: largest}), np.random.default_rng(seed)
        )
        assert np.isfinite(view.view_from_image).all() and (view.image == 100).all()
