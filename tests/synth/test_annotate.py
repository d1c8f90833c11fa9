from dataclasses import replace

import numpy as np
import pytest

from sagecache.synth.annotate import annotate, vertex_parts
from sagecache.synth.camera import Camera
from sagecache.synth.looks import LOOKS
from sagecache.synth.meshes import box
from sagecache.synth.render import pixel_grid
from sagecache.synth.scene import sample_people
from sagecache.synth.trace import Plane, World

SIZE = (64, 64)


@pytest.fixture(scope="module")
def actor(body):
    """A supine infant with arms and legs in view of a camera above."""
    look = replace(LOOKS["target"], kinds={"supine": 1.0}, people=(1.0,))
    return sample_people(body, np.random.default_rng(5), look)[0]


@pytest.fixture(scope="module")
def camera(actor):
    middle = (actor.vertices.min(0) + actor.vertices.max(0)) / 2
    intrinsics = np.array([[100.0, 0, 31.5], [0, 100, 31.5], [0, 0, 1]])
    return Camera(intrinsics, np.diag([1.0, -1, -1]), np.array([middle[0], middle[1], 1.8]), SIZE)


def people(body, actor, camera, extra=None):
    parts = [(actor.vertices, actor.normals, body.faces, 0)]
    if extra is not None:
        parts.append((extra.vertices, extra.normals, extra.faces + len(actor.vertices), 100))
    world = World(
        *(np.concatenate([part[index] for part in parts]) for index in range(3)),
        np.concatenate([np.full(len(part[2]), part[3]) for part in parts]),
        [Plane(np.array([0, 0, 1.0]), 0.0)],
    )
    owner = world.cast(camera, pixel_grid(camera.size)).owner.reshape(SIZE[::-1])
    return annotate(body, world, camera, [actor], np.where(owner == 0, owner, -1).astype(np.int16))


def test_a_supine_infant_shows_its_front(body, actor, camera):
    (person,), instances = people(body, actor, camera)
    visible = person.keypoints[:, 2]
    assert (visible > 0).all() and (visible[5:] == 2).mean() > 0.7
    assert person.area == (instances == 0).sum()


def test_a_board_hides_joints_but_keeps_box_and_positions(body, actor, camera):
    (free,), _ = people(body, actor, camera)
    board = box(np.array([*camera.centre[:2], 0.9]), np.array([0.13, 0.13, 0.01]), np.eye(3))
    (hidden,), _ = people(body, actor, camera, board)
    assert (hidden.keypoints[:, 2] == 2).sum() < (free.keypoints[:, 2] == 2).sum() - 3
    np.testing.assert_array_equal(hidden.keypoints[:, :2], free.keypoints[:, :2])
    assert hidden.bbox == free.bbox and hidden.area < 0.9 * free.area
    whole = box(np.array([*camera.centre[:2], 0.9]), np.array([3, 3, 0.01]), np.eye(3))
    nobody, instances = people(body, actor, camera, whole)
    assert nobody == [] and (instances == -1).all()  # hidden people are left out


def test_outside_the_frame_is_unlabeled_and_the_box_is_clipped(body, actor, camera):
    shifted = replace(camera, intrinsics=camera.intrinsics + np.array([[0, 0, 31.5], [0, 0, 0], [0, 0, 0]]))
    (person,), _ = people(body, actor, shifted)
    (whole,), _ = people(body, actor, camera)
    outside = whole.keypoints[:, 0] + 31.5 > 63.5
    assert outside.any() and not outside.all()
    assert (person.keypoints[outside] == 0).all() and (person.keypoints[~outside, 2] > 0).all()
    assert person.bbox[0] + person.bbox[2] == pytest.approx(63.5)


def test_vertex_parts_know_sides(body):
    part, side = vertex_parts(body)
    rest = body.sample_shape(np.random.default_rng(0), "infant").vertices
    assert (rest[side == 1, 0] > -0.005).all() and (rest[side == 2, 0] < 0.005).all()  # left is +x
    assert rest[part == 0, 2].mean() > rest[part == 1, 2].mean() > rest[part == 7, 2].mean()
