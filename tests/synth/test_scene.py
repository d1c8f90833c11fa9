import dataclasses

import numpy as np

from sagecache.synth.camera import place_camera, torso_direction
from sagecache.synth.looks import LOOKS
from sagecache.synth.scene import sample_ground, sample_people, sample_props


def test_people_rest_on_the_ground(body):
    for name in ("target", "source"):
        for seed in range(6):
            for actor in sample_people(body, np.random.default_rng(seed), LOOKS[name]):
                extent = np.linalg.norm(np.ptp(actor.vertices, axis=0))
                assert actor.vertices[:, 2].min() < 0.06 * extent  # nobody flies
                if actor.kind == "stand":
                    assert abs(actor.vertices[:, 2].min()) < 1e-4
                else:
                    assert np.median(actor.vertices[:, 2]) > 0  # nor drowns


def test_people_do_not_stand_in_each_other(body):
    crowd = dataclasses.replace(LOOKS["source"], people=(0.0, 0.0, 1.0))
    counts = []
    for seed in range(6):
        actors = sample_people(body, np.random.default_rng(seed), crowd)
        counts.append(len(actors))
        boxes = [(actor.vertices[:, :2].min(0), actor.vertices[:, :2].max(0)) for actor in actors]
        for i, (low, high) in enumerate(boxes):
            for other_low, other_high in boxes[:i]:
                overlap = np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None).prod()
                assert overlap < 0.13 * (high - low).prod()
    assert max(counts) == 3


def test_group_and_kind_are_the_looks(body):
    rng = np.random.default_rng(0)
    kinds = {actor.kind for _ in range(12) for actor in sample_people(body, rng, LOOKS["target"])}
    assert "supine" in kinds and kinds <= {"supine", "side", "prone"}
    older = sample_people(body, rng, LOOKS["source"])
    infants = sample_people(body, rng, LOOKS["target"])
    assert min(actor.trunk for actor in older) > max(actor.trunk for actor in infants)


def _props(body, look, seed):
    rng = np.random.default_rng(seed)
    actors = sample_people(body, rng, look)
    cloud = np.concatenate([actor.vertices for actor in actors])
    camera = place_camera(look, rng, cloud, torso_direction(actors[0].keypoints), True, (64, 64))
    return actors, camera, sample_props(rng, look, actors, camera, 1.0)


def test_blankets_are_only_for_the_lying(body):
    look = dataclasses.replace(LOOKS["generic"], blanket=1.0, toys=(1.0,), rails=0.0, people=(1.0,))
    for kind, expected in (("supine", 1), ("stand", 0)):
        actors, _, props = _props(body, dataclasses.replace(look, kinds={kind: 1.0}), 1)
        assert len(props) == expected
        if props:
            joint = actors[0].keypoints[5:, :2]
            centre = props[0].mesh.vertices[:, :2].mean(0)
            assert np.linalg.norm(joint - centre, axis=1).min() < 0.3  # it lies on the body


def test_rails_stand_between_camera_and_bed(body):
    look = dataclasses.replace(LOOKS["target"], rails=1.0, blanket=0.0, toys=(1.0,))
    actors, camera, props = _props(body, look, 2)
    assert len(props) == 5
    for prop in props:
        middle = camera.to_camera(prop.mesh.vertices.mean(0))
        assert 0 < middle[2] < camera.to_camera(actors[0].vertices.mean(0))[2]


def test_rooms_are_hard_and_beds_soft():
    rng = np.random.default_rng(3)
    assert all(sample_ground(rng, LOOKS["source"], 1.0).wrinkles == 0 for _ in range(5))
    assert all(sample_ground(rng, LOOKS["target"], 1.0).wrinkles > 0 for _ in range(5))
    assert all(sample_ground(rng, LOOKS["source"], 1.0).wall_distance for _ in range(5))
