import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.priors.diffusion import DiffusionPrior
from sagecache.priors.diffusion_fit import FitConfig, _Bodies, fit, fit_from_instances
from sagecache.skeleton import COCO17
from sagecache.structures import Instance

FLIP = COCO17.flip_indices
TINY = FitConfig(steps=20, evaluate_every=10, batch_size=16, width=16, blocks=1)


def test_it_knows_more_than_means_and_covariances(fitted):
    """Held-out noise estimates beat the Gaussian optimum of the same bodies where the prior is used."""
    _, report = fitted
    assert report["held_out"] < 0.9 * report["gaussian"]
    assert len(report["buckets"]) == 7 and sum(b["samples"] for b in report["buckets"]) == 1024
    for bucket in report["buckets"]:
        assert bucket["network"] < 1.02 * bucket["gaussian"], bucket
        if 0.1 <= bucket["noise"][0] < 0.7:
            assert bucket["network"] < 0.9 * bucket["gaussian"], bucket


@pytest.mark.parametrize("joints", [[7, 8, 9, 10], [13, 14, 15, 16], [9, 10]])
def test_bodies_with_swapped_limbs_score_as_strange(fitted, family, joints):
    prior, _ = fitted
    truth = torch.from_numpy(family(150, seed=9)[..., :2])
    swapped = truth.clone()
    swapped[:, joints] = truth[:, FLIP[joints]]
    normal, strange = prior.implausibility(truth), prior.implausibility(swapped)
    auroc = (strange[None] > normal[:, None]).float().mean()
    assert auroc > 0.9


def test_the_scores_of_poses_do_not_depend_on_their_neighbours(fitted, family):
    prior, _ = fitted
    points = torch.from_numpy(family(6, seed=3)[..., :2])
    torch.testing.assert_close(prior.implausibility(points)[4:], prior.implausibility(points[4:]))


def test_the_same_seed_gives_the_same_bits_and_the_global_state_is_left(family, tmp_path):
    keypoints = family(20, seed=0)
    before = torch.get_rng_state()
    for name in ("a", "b"):
        torch.manual_seed(len(name) + ord(name))  # whatever the caller drew before
        fit(keypoints, COCO17, TINY)[0].save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    torch.set_rng_state(before)
    fit(keypoints, COCO17, TINY)
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_mirrors_with_the_channels_exchanged(family):
    body = torch.from_numpy(family(1, seed=0))
    bodies = _Bodies(body[..., :2], torch.ones(1, 17), COCO17, FitConfig(rotation=0, jitter=0, drop_joints=0))
    centres = torch.from_numpy(COCO17.torso_joints[::-1].copy())
    torch.manual_seed(0)
    drawn, mask = bodies.draw(64, centres)
    plain = body[0, :, :2] - body[0, [11, 12], :2].mean(0)
    plain = plain / plain.square().sum(-1).mean().sqrt()
    mirrored = (plain * torch.tensor([-1.0, 1.0]))[FLIP.copy()]
    as_plain = (drawn - plain).abs().amax((1, 2)) < 1e-4
    as_mirrored = (drawn - mirrored).abs().amax((1, 2)) < 1e-4
    assert (as_plain ^ as_mirrored).all() and 16 < as_plain.sum() < 48 and mask.eq(1).all()


def test_augmentation_turns_within_its_range_and_hides_joints(family):
    body = torch.from_numpy(family(1, seed=0))
    bodies = _Bodies(
        body[..., :2], torch.ones(1, 17), COCO17, FitConfig(rotation=30, jitter=0, drop_joints=0.2)
    )
    torch.manual_seed(0)
    drawn, mask = bodies.draw(500, torch.from_numpy(COCO17.torso_joints[::-1].copy()))
    hidden = 1 - mask.mean().item()
    assert hidden == pytest.approx(0.2 * 0.3, abs=0.02)
    whole = mask.all(1)
    spine = drawn[whole][:, [5, 6]].mean(1)
    angle = torch.rad2deg(torch.atan2(spine[:, 0], -spine[:, 1]))
    lean = body[0, [5, 6], :2].mean(0) - body[0, [11, 12], :2].mean(0)
    lean = torch.rad2deg(torch.atan2(lean[0], -lean[1])).abs().item()
    assert 25 + lean < angle.abs().max() <= 30 + lean + 1e-3


def test_joints_that_nobody_labeled_are_left_out(family):
    keypoints = family(20, seed=0)
    keypoints[:, [1, 2], 2] = 0
    keypoints[:, [1, 2], :2] = np.nan
    prior, report = fit(keypoints, COCO17, TINY)
    assert prior.known.tolist() == [1, 0, 0] + [1] * 14
    points = torch.from_numpy(family(2, seed=1)[..., :2]).requires_grad_()
    prior.guidance_loss(points, torch.ones(2, 17)).backward()
    assert points.grad[:, [1, 2]].eq(0).all() and points.grad[:, 3:].abs().sum() > 0
    assert np.isfinite(report["held_out"])


def test_bodies_without_enough_joints_are_counted_out(family):
    keypoints = family(20, seed=0)
    keypoints[:5, 3:, 2] = 0
    _, report = fit(keypoints, COCO17, TINY)
    assert report["bodies"] == {"fit": 12, "held_out": 3, "unusable": 5}
    with pytest.raises(SagecacheError, match="7 of 12 bodies"):
        fit(keypoints[:12], COCO17, TINY)
    with pytest.raises(SagecacheError, match="not \\(N, 17, 3\\)"):
        fit(keypoints[..., :2], COCO17, TINY)


def test_it_stops_when_the_held_out_loss_no_longer_falls(family):
    config = FitConfig(
        steps=100, evaluate_every=5, patience=2, batch_size=8, width=16, blocks=1, learning_rate=0.5
    )
    told = []
    _, report = fit(family(10, seed=0), COCO17, config, lambda *args: told.append(args))
    assert report["steps"] < 100 and report["steps"] - report["best_step"] == 10
    assert report["held_out"] <= report["gaussian"] + 1e-6  # step 0, the Gaussian itself, takes part
    stopped = report["steps"]
    assert told[0][:2] == (5, 100) and told[-1][:2] == (stopped, stopped)
    assert told[-1][2].startswith(f"stopped at step {stopped} of 100, best at {report['best_step']}")


def test_from_instances_to_a_file(family, tmp_path):
    bodies = [
        Instance(i, 0, Path(f"{i}.jpg"), (0, 0, 1, 1), keypoints=k) for i, k in enumerate(family(12, seed=0))
    ]
    bodies.append(Instance(99, 0, Path("99.jpg"), (0, 0, 1, 1)))  # a detection without labels
    options = dict(steps=10, width=16, blocks=1)
    path = fit_from_instances(bodies, COCO17, tmp_path / "prior.safetensors", options, seed=3)
    prior = DiffusionPrior.load(path, COCO17)
    assert prior.provenance["count"] == 12 and prior.provenance["fit"]["seed"] == 3
    assert prior.provenance["keypoints_sha256"] == hashlib.sha256(family(12, seed=0).tobytes()).hexdigest()
    assert prior.report["bodies"]["fit"] == 10
    with pytest.raises(SagecacheError, match="unknown key 'prior.widht'.*[Dd]id you mean 'width'"):
        fit_from_instances(bodies, COCO17, path, dict(widht=3))
    with pytest.raises(SagecacheError, match="0 of 0 bodies"):
        fit_from_instances(bodies[-1:], COCO17, path)
    twelve = Instance(7, 0, Path("7.jpg"), (0, 0, 1, 1), keypoints=np.ones((12, 3)), annotation_id=70)
    with pytest.raises(SagecacheError, match="image_id 7, annotation 70: has 12 keypoints, .* has 17"):
        fit_from_instances([*bodies, twelve], COCO17, path)


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(steps=0), "recipe, prior: steps is 0, it must be at least 1"),
        (dict(evaluate_every=0), "evaluate_every is 0"),
        (dict(width="abc"), "'prior.width' should be int, got 'abc'"),
        (dict(dropout=1.0), "dropout is 1.0, it must be in"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, options, told):
    with pytest.raises(SagecacheError, match=told):
        fit_from_instances([], COCO17, tmp_path / "prior", options)
