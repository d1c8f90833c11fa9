import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sagecache.errors import SagecacheError
from sagecache.synth.body import ASSET, GROUPS, Body, rotation, unit
from sagecache.synth.pose import KINDS, sample_pose


def test_rotation_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        axis, angle = rng.normal(size=3), rng.uniform(-4, 4)
        expected = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
        np.testing.assert_allclose(rotation(axis, angle), expected, atol=1e-12)


def test_unit_keeps_direction_and_zero():
    vectors = np.array([[3.0, 0, 4], [0, 0, 0]])
    np.testing.assert_allclose(unit(vectors), [[0.6, 0, 0.8], [0, 0, 0]])


def test_asset_is_consistent(body):
    with np.load(ASSET) as asset:
        rows = np.bincount(asset["kp_r"], weights=asset["kp_w"], minlength=17)
    np.testing.assert_allclose(rows, 1, atol=1e-3)  # joints are affine combinations of vertices
    np.testing.assert_allclose(body.weights.sum(1), 1, atol=1e-5)
    assert body.faces.min() >= 0 and body.faces.max() < body.num_vertices
    assert (body.parents[1:] < np.arange(1, len(body.parents))).all()  # parents come first
    edges = np.sort(body.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert np.unique(edges, axis=0, return_counts=True)[1].max() == 2  # thinning kept a manifold


def test_missing_asset_says_what_to_run(tmp_path):
    with pytest.raises(SagecacheError, match="bake_bodies"):
        Body.load(tmp_path / "none.npz")


@pytest.mark.parametrize(("group", "low", "high"), [("infant", 0.40, 1.05), ("older", 0.8, 2.3)])
def test_statures_are_human(body, group, low, high):
    rng = np.random.default_rng(1)
    for _ in range(10):
        stature = np.ptp(body.sample_shape(rng, group).vertices[:, 2])
        assert low < stature < high


@pytest.mark.parametrize("group", GROUPS)
def test_shapes_stay_among_the_stored_ones(body, group):
    """A convex mix can't leave the box of the stored coefficients, whatever is drawn."""
    with np.load(ASSET) as asset:
        mean, parts, codes = (asset[f"{group}_{key}"].astype(np.float64) for key in ("mean", "comp", "coef"))
    shape = body.sample_shape(np.random.default_rng(2), group)
    flat = np.concatenate([shape.vertices, shape.heads]).ravel() - mean
    code = np.linalg.lstsq(parts.T, flat, rcond=None)[0]
    slack = 1e-3 * np.ptp(codes, axis=0)
    assert (code >= codes.min(0) - slack).all() and (code <= codes.max(0) + slack).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bones_are_rigid(body, kind):
    rng = np.random.default_rng(3)
    shape = body.sample_shape(rng, "infant")
    pose = sample_pose(body, shape.heads, rng, kind)
    rotations, positions = body.bone_frames(shape.heads, pose.turns, pose.root)
    children = np.arange(1, len(positions))
    before = np.linalg.norm(shape.heads[children] - shape.heads[body.parents[children]], axis=1)
    after = np.linalg.norm(positions[children] - positions[body.parents[children]], axis=1)
    np.testing.assert_allclose(after, before, atol=1e-9)
    np.testing.assert_allclose(
        rotations @ rotations.transpose(0, 2, 1), np.eye(3)[None].repeat(104, 0), atol=1e-9
    )


def test_keypoints_keep_limb_lengths(body):
    """Joints are read off the skin, so they give a little; a broken limb would be far off."""
    limbs = np.array([(5, 7), (7, 9), (6, 8), (8, 10), (11, 13), (13, 15), (12, 14), (14, 16)])
    rng = np.random.default_rng(4)

    def lengths(vertices):
        joints = body.keypoints(vertices)
        return np.linalg.norm(joints[limbs[:, 0]] - joints[limbs[:, 1]], axis=1)

    for kind in KINDS:
        shape = body.sample_shape(rng, "infant")
        pose = sample_pose(body, shape.heads, rng, kind)
        ratio = lengths(body.posed(shape, pose.turns, pose.root)) / lengths(shape.vertices)
        assert (ratio > 0.75).all() and (ratio < 1.25).all(), (kind, ratio)


def test_skinning_is_the_weighted_sum_over_bones(body):
    rng = np.random.default_rng(5)
    shape = body.sample_shape(rng, "older")
    pose = sample_pose(body, shape.heads, rng, "sit")
    posed = body.posed(shape, pose.turns, pose.root)
    rotations, positions = body.bone_frames(shape.heads, pose.turns, pose.root)
    for vertex in rng.integers(0, body.num_vertices, 20):
        expected = sum(
            body.weights[vertex, bone]
            * (rotations[bone] @ (shape.vertices[vertex] - shape.heads[bone]) + positions[bone])
            for bone in np.flatnonzero(body.weights[vertex])
        )
        np.testing.assert_allclose(posed[vertex], expected, atol=2e-5)


def test_normals_point_outwards(body):
    """By the divergence theorem the flux of the position through an outward surface is 3 volumes."""
    shape = body.sample_shape(np.random.default_rng(6), "infant")
    a, b, c = (shape.vertices[body.faces[:, corner]] for corner in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    litres = volume * 1e3
    assert 1.5 < litres < 20  # a baby weighs about as many kilograms
    used = np.unique(body.faces)
    normals = body.vertex_normals(shape.vertices)[used]
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    vertex = used[len(used) // 2]
    around = body.faces[(body.faces == vertex).any(1)]
    corners = shape.vertices[around]
    total = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).sum(0)
    np.testing.assert_allclose(body.vertex_normals(shape.vertices)[vertex], unit(total), atol=1e-5)
