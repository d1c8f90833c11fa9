import numpy as np
import pytest

from sagecache.synth import clothes
from sagecache.synth.clothes import ARM, ARM_SHARE, EYE, HEAD, LEG, Garment, Z
from sagecache.synth.textures import Print

PLAIN = Print("plain", np.zeros(3), 1.0, 0.0, np.zeros(2))


@pytest.fixture(scope="module")
def dressed(body):
    rng = np.random.default_rng(0)
    shape = body.sample_shape(rng, "infant")
    fields = clothes.body_fields(body, shape)
    return shape, fields, clothes.sample_dress(body, shape, fields, rng, "nursery")


def nearest(shape, body, bone):
    return np.linalg.norm(shape.vertices - shape.heads[body.bone[bone]], axis=1).argmin()


@pytest.mark.parametrize("side", [".L", ".R"])
def test_fields_count_joints_along_the_limbs(body, dressed, side):
    shape, fields, _ = dressed
    for column, joints in ((ARM, ("lowerarm01", "wrist")), (LEG, ("lowerleg01", "foot"))):
        for value, joint in enumerate(joints, 1):
            at = nearest(shape, body, joint + side)
            assert fields[at, column] == pytest.approx(value, abs=0.3)
    assert fields[nearest(shape, body, "finger3-3" + side), ARM] > 2.7
    eye = shape.vertices[(fields[:, EYE] > 0.5) & (fields[:, 0] * (1 if side == ".L" else -1) > 0)]
    joint = body.keypoints(shape.vertices)[1 if side == ".L" else 2]
    assert np.linalg.norm(eye.mean(0) - joint) < 0.015  # metres
    assert fields[nearest(shape, body, "finger3-3" + side), ARM_SHARE] > 0.95


def test_trunk_runs_from_hip_to_neck(body, dressed):
    shape, fields, _ = dressed
    trunk = clothes.trunk(fields)
    assert 0.05 < trunk.mean() < 0.4
    assert abs(fields[trunk, Z].max() - 1) < 0.2 and abs(fields[trunk, Z].min()) < 0.4
    assert fields[trunk, HEAD].max() < 0.1


def test_garments_cover_what_their_limits_say(dressed):
    _, fields, _ = dressed
    short, long = (Garment(np.ones(3), PLAIN, leg=0.2, sleeve=sleeve) for sleeve in (0.5, 1.9))
    covered = [garment.depth(fields) > 0 for garment in (short, long)]
    assert (covered[0] <= covered[1]).all() and covered[1].sum() > covered[0].sum()
    assert fields[covered[0], ARM].max() <= 0.5 and fields[covered[1], LEG].max() <= 0.2
    belly = clothes.trunk(fields) & (np.abs(fields[:, Z] - 0.5) < 0.2)
    assert covered[0][belly].all()
    assert fields[covered[1], HEAD].max() < 0.5  # no garment on the face
    socks = Garment(np.ones(3), PLAIN, leg_from=1.8, leg=4.0).depth(fields) > 0
    assert fields[socks, LEG].min() >= 1.8
    nappy = Garment(np.ones(3), PLAIN, top=0.25, leg=0.2).depth(fields) > 0
    assert fields[nappy, Z].max() <= 0.25 and not nappy[fields[:, ARM_SHARE] > 0.5].any()


def test_colours_are_colours_and_cloth_follows_the_garments(dressed):
    _, fields, dress = dressed
    colour, cloth = clothes.albedo(dress, fields, 0.01)
    assert colour.shape == (len(fields), 3) and colour.min() >= 0 and colour.max() <= 1
    deepest = np.max([garment.depth(fields) for garment in dress.garments], axis=0)
    assert (cloth[deepest > 0.05] == 1).all() and (cloth[deepest < -0.05] == 0).all()
    face = (fields[:, HEAD] > 0.9) & (fields[:, Z] < dress.landmarks[0, 2])
    assert np.abs(np.median(colour[face], axis=0) - dress.skin).max() < 0.15


def test_pupils_are_dark_and_hems_are_soft(body, dressed):
    shape, fields, dress = dressed
    eye = np.flatnonzero(fields[:, EYE] > 0.5)
    front = eye[fields[eye, 1].argsort()[:8]]  # -y is the front
    rim = eye[np.abs(fields[eye, 0]).argsort()[:4]]
    colour, _ = clothes.albedo(dress, fields, 0.002)
    assert colour[front].mean() < 0.35 < colour[rim].mean()
    # a line of points across a hem: coverage rises over several steps, without a jump
    line = np.repeat(fields[[nearest(shape, body, "spine03")]], 400, 0)
    line[:, LEG] = np.linspace(0, 3, 400)
    cloth = clothes.albedo(dress, line, 0.02)[1]
    assert np.abs(np.diff(cloth)).max() < 0.6
