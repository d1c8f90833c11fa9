import hashlib

import cv2
import numpy as np
import pytest

from sagecache.synth.looks import LOOKS, Photometry
from sagecache.synth.render import develop, render

NAMES = tuple(LOOKS)


def rays_of(rendering):
    """Camera rays with z = 1 of all pixels, from the intrinsics alone."""
    height, width = rendering.depth.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(rendering.intrinsics).T


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_types(renderings, name):
    for rendering in renderings[name]:
        assert rendering.image.shape == rendering.normals.shape == (96, 112, 3)
        assert rendering.image.dtype == np.uint8 and rendering.instances.dtype == np.int16
        assert rendering.depth.dtype == rendering.normals.dtype == np.float32
        assert set(np.unique(rendering.instances)) <= set(range(-1, len(rendering.people)))


@pytest.mark.parametrize("name", NAMES)
def test_projected_joints_are_the_keypoints(renderings, name):
    count = 0
    for rendering in renderings[name]:
        for person in rendering.people:
            image = person.keypoints_camera @ rendering.intrinsics.T
            labeled = person.keypoints[:, 2] > 0
            np.testing.assert_allclose(
                (image[:, :2] / image[:, 2:])[labeled], person.keypoints[labeled, :2], atol=1e-6
            )
            count += labeled.sum()
    assert count > 40


@pytest.mark.parametrize("name", NAMES)
def test_normals_are_unit_and_face_the_camera(renderings, name):
    for rendering in renderings[name]:
        np.testing.assert_allclose(np.linalg.norm(rendering.normals, axis=-1), 1, atol=1e-5)
        assert ((rendering.normals * rays_of(rendering)).sum(-1) < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_normals_are_the_slope_of_the_depth(renderings, name):
    """Cross products of finite differences of the back-projected depth, away from edges."""
    bodies, grounds = [], []
    for rendering in renderings[name]:
        points = rays_of(rendering) * rendering.depth[..., None]
        across, down = np.gradient(points, axis=1), np.gradient(points, axis=0)
        slope = np.cross(down, across)
        slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
        angle = np.degrees(np.arccos(np.clip((slope * rendering.normals).sum(-1), -1, 1)))
        inside = cv2.erode((rendering.instances >= 0).astype(np.uint8), np.ones((5, 5))) > 0
        outside = cv2.erode((rendering.instances < 0).astype(np.uint8), np.ones((5, 5))) > 0
        bodies.append(angle[inside])
        grounds.append(angle[outside])
    assert np.median(np.concatenate(bodies)) < 8  # a pixel spans several triangles here
    assert np.median(np.concatenate(grounds)) < 0.2  # planes


def test_seen_joints_lie_on_their_person(renderings):
    inside = []
    for rendering in (r for name in NAMES for r in renderings[name]):
        for index, person in enumerate(rendering.people):
            for x, y, v in person.keypoints:
                if v == 2:
                    inside.append(rendering.instances[int(np.round(y)), int(np.round(x))] == index)
    assert len(inside) > 100 and np.mean(inside) > 0.95


def test_joints_lie_at_their_depth(renderings):
    """A seen joint is inside the limb: just behind the visible surface, never far in front of it."""
    gaps = []
    for rendering in renderings["target"]:
        for index, person in enumerate(rendering.people):
            trunk = np.linalg.norm(person.keypoints_camera[5] - person.keypoints_camera[11])
            for (x, y, v), joint in zip(person.keypoints, person.keypoints_camera, strict=True):
                pixel = int(np.round(y)), int(np.round(x))
                if v == 2 and rendering.instances[pixel] == index:
                    gaps.append((joint[2] - rendering.depth[pixel]) / trunk)
    gaps = np.array(gaps)
    assert np.quantile(gaps, 0.05) > -0.06 and np.median(gaps) < 0.25 and np.quantile(gaps, 0.95) < 0.5


def test_boxes_hold_the_masks(renderings):
    for rendering in (r for name in NAMES for r in renderings[name]):
        for index, person in enumerate(rendering.people):
            y, x = np.nonzero(rendering.instances == index)
            left, top, width, height = person.bbox
            assert left <= x.min() + 0.5 and top <= y.min() + 0.5
            assert left + width >= x.max() - 0.5 and top + height >= y.max() - 0.5
            assert person.area == len(x) and left >= -0.5 and left + width <= 111.5 + 1e-6


def test_left_is_left(body, bare_target):
    """Who lies face up, head up in the picture, has the left shoulder on the picture's right side."""
    for seed in range(5):
        rendering = render(body, np.random.default_rng(seed), bare_target, (64, 64))
        (person,) = rendering.people
        joints = person.keypoints
        assert joints[5, 0] > joints[6, 0] and joints[11, 0] > joints[12, 0]
        assert joints[5:7, 1].mean() < joints[11:13, 1].mean()  # shoulders over hips: torso up


def test_the_generator_decides_everything(body):
    def digest(seed):
        rendering = render(body, np.random.default_rng(seed), LOOKS["target"], (64, 48))
        arrays = (rendering.image, rendering.depth, rendering.normals, rendering.instances)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()

    assert digest(3) == digest(3) != digest(4)


@pytest.mark.parametrize("name", NAMES)
def test_bodies_stand_out(renderings, name):
    """Readable pictures: not black, and the person differs from what is next to it."""
    contrast = []
    for rendering in renderings[name]:
        body = (rendering.instances >= 0).astype(np.uint8)
        rim = (cv2.dilate(body, np.ones((9, 9))) > 0) & (body == 0)
        inside, outside = rendering.image[body > 0].astype(float), rendering.image[rim].astype(float)
        contrast.append(np.abs(inside - outside.mean(0)).max(1).mean())  # of many colours, so not the mean's
        assert rendering.image.mean() > 40
    assert np.median(contrast) > 12


def test_develop():
    linear = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8, 1).repeat(3, 2)
    clean = develop(linear, np.random.default_rng(0), Photometry())
    np.testing.assert_allclose(clean[..., 0], np.sqrt(linear[..., 0]) * 255, atol=0.51)
    dark = develop(linear, np.random.default_rng(0), Photometry(exposure=(0.5, 0.5)))
    np.testing.assert_allclose(dark, clean / 2, atol=1.01)
    red = np.zeros((8, 8, 3), np.float32)
    red[..., 0] = 0.8
    night = develop(red, np.random.default_rng(0), Photometry(night=1.0)).astype(int)
    assert np.ptp(night[0, 0]) < 0.2 * np.ptp(develop(red, np.random.default_rng(0), Photometry())[0, 0])
    flat = np.full((64, 64, 3), 0.25, np.float32)
    noisy = develop(flat, np.random.default_rng(0), Photometry(noise=(0.02, 0.02)))
    assert noisy.std() / 255 == pytest.approx(0.02, rel=0.1)
