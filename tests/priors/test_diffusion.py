import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import augment_affine, heatmap_affine
from sagecache.priors.denoiser import Denoiser
from sagecache.priors.diffusion import DiffusionGuidance, DiffusionPrior, skeleton_frame
from sagecache.skeleton import COCO17, Skeleton
from sagecache.structures import PseudoLabels, UnlabeledBatch

HIPS_SHOULDERS = torch.tensor([[2, 3], [0, 1]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rough_prior(seed: int = 0) -> DiffusionPrior:
    """Untrained, with a residual and a normalisation that are not trivial."""
    torch.manual_seed(seed)
    prior = DiffusionPrior(COCO17, Denoiser(34, 17, width=32, blocks=1))
    nn.init.normal_(prior.denoiser.outputs.weight, std=0.05)
    prior.mean.normal_()
    prior.deviation.uniform_(0.3, 1.0)
    return prior.freeze()


def poses(count: int = 3, seed: int = 1) -> Tensor:
    return 200 + 40 * torch.randn(count, 17, 2, generator=seeded(seed))


# --- the frame -----------------------------------------------------------------------------------


def test_centre_falls_back_from_hips_to_shoulders_to_all():
    points = torch.tensor([[[0.0, 0], [4, 0], [1, 10], [3, 10], [2, 30]]]).expand(4, 5, 2).clone()
    mask = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]])
    points[1, 2] = math.nan
    centre, size = skeleton_frame(points, mask, HIPS_SHOULDERS)
    assert centre.tolist() == [[2, 10], [2, 0], [pytest.approx(5 / 3), pytest.approx(40 / 3)], [0, 0]]
    distances = [4 + 100, 4 + 100, 1, 1, 400]
    assert size[0].item() == pytest.approx(math.sqrt(sum(distances) / 5))
    assert size[3] > 0


def test_normalised_bodies_do_not_say_where_or_how_large_they_were():
    prior, points, mask = rough_prior(), poses(), torch.ones(3, 17)
    here, there = prior.normalise(points, mask), prior.normalise(3 * points - 70, mask)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=0)
    back = here.unflatten(1, (17, 2)) * prior.deviation + prior.mean
    assert back[:, [11, 12]].mean(1).abs().max() < 1e-5  # hips in the middle
    torch.testing.assert_close(back.square().sum(-1).mean(-1), torch.ones(3))


# --- guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["displacement", "sds"])
def test_gradient_is_the_score_distillation_formula(weighting):
    """k (s/a) (e_hat - e), from what the network was really asked, over size and deviation; no scale leak."""
    prior, points = rough_prior(), poses().requires_grad_()
    weights, asked = torch.rand(3, 17, generator=seeded(2)), []
    handle = prior.denoiser.register_forward_hook(lambda _, given, answer: asked.append((*given, answer)))
    prior.guidance_loss(points, weights, seeded(3), weighting=weighting).backward()
    handle.remove()
    (x_t, t, _, e_hat), x = asked[0], prior.normalise(points.detach(), torch.ones(3, 17)).repeat(4, 1)
    a, s = prior.denoiser.amplitude[t][:, None], prior.denoiser.sigma[t][:, None]
    assert s.min() >= 0.099 and s.max() <= 0.501
    e = (x_t - a * x) / s
    torch.testing.assert_close(e[:6], torch.cat([-e[6:9], -e[9:]]), atol=1e-4, rtol=0)  # antithetic
    k = a * s if weighting == "sds" else 1
    by_draw = (k * (s / a) * (e_hat - e)).view(4, 3, 17, 2).mean(0)
    _, size = skeleton_frame(points.detach(), torch.ones(3, 17), prior.centres)
    want = weights[..., None] * by_draw / prior.deviation / size[:, None, None] / (3 * 17)
    torch.testing.assert_close(points.grad, want, atol=1e-7, rtol=1e-3)


def test_loss_is_half_the_weighted_squared_distance_to_the_denoised_pose():
    prior, points = rough_prior(), poses()
    weights = torch.zeros(3, 17)
    weights[1, 4] = 0.5
    loss = prior.guidance_loss(points, weights, seeded(3))
    clean, _ = prior._denoised_draws(
        prior.normalise(points, torch.ones(3, 17)), torch.ones(3, 17), seeded(3), 4, (0.1, 0.5)
    )
    gap = (prior.normalise(points, torch.ones(3, 17)) - clean).view(4, 3, 17, 2)[:, 1, 4]
    torch.testing.assert_close(loss, 0.5 * gap.square().sum(-1).mean() / 2)
    assert prior.guidance_loss(points, 0 * weights, seeded(3)) == 0


def test_a_perfect_denoiser_leaves_its_own_data_alone_on_average(monkeypatch):
    """Gaussian data and the exact Gaussian denoiser: the mean pull over the data is zero, and it is
    k s^2 (a^2 C + s^2 I)^-1 x for each body, because a pair e, -e cancels in a linear estimate."""
    prior = DiffusionPrior(COCO17, Denoiser(34, 17)).freeze()
    root = torch.randn(34, 34, generator=seeded(5)) / 6 + 0.3 * torch.eye(34)
    prior.denoiser.covariance.copy_(root @ root.T)
    monkeypatch.setattr(prior, "normalise", lambda points, mask: points.flatten(1))
    count = 4000

    def pull(x: Tensor) -> Tensor:
        points = x.view(-1, 17, 2).clone().requires_grad_()
        prior.guidance_loss(points, torch.ones(len(x), 17), seeded(7), draws=2, noise=(0.3, 0.3)).backward()
        return points.grad.flatten(1) * len(x) * 17

    x = torch.randn(count, 34, generator=seeded(6)) @ root.T
    step = prior.denoiser.step_of(0.3)
    a, s = prior.denoiser.amplitude[step], prior.denoiser.sigma[step]
    total = a**2 * prior.denoiser.covariance + s**2 * torch.eye(34)
    got = pull(x)
    torch.testing.assert_close(got, s**2 * torch.linalg.solve(total, x.T).T, atol=2e-3, rtol=0)
    error = got.std(0) / math.sqrt(count)
    assert (got.mean(0).abs() < 5 * error).all()
    shifted = pull(x + 0.5)
    assert (shifted.mean(0).abs() > 5 * error).float().mean() > 0.5


def test_loss_is_repeatable_and_leaves_the_global_state():
    prior, points, weights = rough_prior(), poses(), torch.ones(3, 17)
    before = torch.get_rng_state()
    one, two = (prior.guidance_loss(points, weights, seeded(3)) for _ in range(2))
    assert torch.equal(one, two) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one, prior.guidance_loss(points, weights, seeded(4)))
    torch.testing.assert_close(
        one, prior.guidance_loss(2 * points + 9, weights, seeded(3)), rtol=1e-4, atol=0
    )


def test_autocast_changes_nothing():
    prior, points, weights = rough_prior(), poses(), torch.ones(3, 17)
    with torch.autocast("cpu", torch.bfloat16):
        inside = prior.guidance_loss(points, weights, seeded(3))
    assert torch.equal(inside, prior.guidance_loss(points, weights, seeded(3)))


def test_absent_joints_get_no_pull_and_have_no_say():
    prior, points, weights = rough_prior(), poses(), torch.ones(3, 17)
    mask = torch.ones(3, 17)
    mask[:, 9] = 0
    moved = points.clone()
    moved[:, 9] = math.nan
    moved.requires_grad_()
    loss = prior.guidance_loss(moved, weights, seeded(3), mask)
    loss.backward()
    assert torch.equal(loss, prior.guidance_loss(points, weights, seeded(3), mask))
    assert moved.grad[:, 9].eq(0).all() and moved.grad.isfinite().all()
    assert torch.equal(loss, prior.guidance_loss(moved, weights, seeded(3)))  # not finite = not there


@pytest.mark.parametrize("seen", [1, 2, 3])
def test_a_pose_of_too_few_joints_is_left_alone(seen):
    """One joint has no size: its normalised place would move by millions a pixel."""
    prior, points, weights = rough_prior(), poses().requires_grad_(), torch.ones(3, 17)
    mask = torch.ones(3, 17)
    mask[1, seen:] = 0
    prior.guidance_loss(points, weights, seeded(3), mask).backward()
    assert points.grad[1].eq(0).all() and points.grad[[0, 2]].ne(0).any()
    assert torch.equal(prior.correct(points.detach(), torch.zeros(3, 17), mask)[1], points[1])
    strange = prior.implausibility(points.detach(), mask)
    assert strange.isnan().tolist() == [False, True, False]


def test_settings_are_checked():
    prior = rough_prior()
    with pytest.raises(SagecacheError, match="pairs"):
        prior.guidance_loss(poses(), torch.ones(3, 17), draws=3)
    with pytest.raises(SagecacheError, match="did you mean 'sds'"):
        prior.guidance_loss(poses(), torch.ones(3, 17), weighting="sd")
    for noise in ((0.9, 0.1), (0.0, 0.5), (0.1, 1.0)):
        with pytest.raises(SagecacheError, match="noise is .*low <= high"):
            DiffusionGuidance(prior, noise=noise)


def test_a_frozen_prior_stays_frozen_inside_a_model_in_training():
    holder = nn.ModuleList([rough_prior()]).train()
    assert not any(module.training for module in holder[0].modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())
    assert holder[0].train() is holder[0]


# --- correction ----------------------------------------------------------------------------------


def test_trusted_joints_stay_and_absent_ones_return_as_they_came():
    prior, points = rough_prior(), poses()
    torch.testing.assert_close(prior.correct(points, torch.ones(3, 17)), points, atol=1e-3, rtol=0)
    trust = torch.ones(3, 17)
    trust[:, 9] = 0
    moved = prior.correct(points, trust)
    distance = (moved - points).norm(dim=-1)
    assert distance[:, 9].min() > 0.5 and distance[:, :9].max() < 1e-3
    mask = torch.ones(3, 17)
    mask[0, 5] = 0
    assert torch.equal(prior.correct(points, torch.zeros(3, 17), mask)[0, 5], points[0, 5])


def test_correction_moves_and_grows_with_the_frame():
    prior, points, trust = rough_prior(), poses(), torch.full((3, 17), 0.3)
    there = prior.correct(2 * points + 30, trust)
    torch.testing.assert_close(there, 2 * prior.correct(points, trust) + 30, atol=1e-2, rtol=0)


def test_correction_mends_jittered_bodies(fitted, family):
    prior, _ = fitted
    truth = torch.from_numpy(family(200, seed=9)[..., :2])
    _, size = skeleton_frame(truth, torch.ones(200, 17), prior.centres)
    noisy = truth + 0.15 * size[:, None, None] * torch.randn(truth.shape, generator=seeded())
    ratio = error(prior.correct(noisy, torch.zeros(200, 17), noise=0.3), truth) / error(noisy, truth)
    assert ratio < 0.85


def test_correction_uses_trusted_joints_to_mend_a_wild_one(fitted, family):
    prior, _ = fitted
    truth = torch.from_numpy(family(200, seed=9)[..., :2])
    _, size = skeleton_frame(truth, torch.ones(200, 17), prior.centres)
    rows, joint = torch.arange(200), torch.randint(5, 17, (200,), generator=seeded())
    wild, trust = truth.clone(), torch.full((200, 17), 0.9)
    angle = 2 * math.pi * torch.rand(200, generator=seeded(1))
    wild[rows, joint] += 0.6 * size[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    trust[rows, joint] = 0.1
    mended = prior.correct(wild, trust)
    assert error(mended[rows, joint], truth[rows, joint]) < 0.75 * error(
        wild[rows, joint], truth[rows, joint]
    )
    assert error(mended, truth) < 0.95 * error(wild, truth)


def error(points: Tensor, truth: Tensor) -> float:
    return (points - truth).norm(dim=-1).mean().item()


# --- files ---------------------------------------------------------------------------------------


def test_a_saved_prior_loads_to_the_same_bits(tmp_path):
    prior = rough_prior()
    prior.provenance, prior.report = {"labels": "abc"}, {"held_out": 0.5}
    prior.save(tmp_path / "a" / "prior.safetensors")
    again = DiffusionPrior.load(tmp_path / "a" / "prior.safetensors", COCO17)
    assert not list(tmp_path.glob("a/.*"))
    assert again.provenance == prior.provenance and again.report == prior.report and again.frozen
    arguments = (poses(), torch.ones(3, 17))
    assert torch.equal(again.guidance_loss(*arguments, seeded(3)), prior.guidance_loss(*arguments, seeded(3)))
    assert torch.equal(again.correct(*arguments), prior.correct(*arguments))
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a" / "prior.safetensors").read_bytes()


def test_files_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "prior.safetensors"
    with pytest.raises(SagecacheError, match="missing.*train ddp-prior"):
        DiffusionPrior.load(path)
    path.write_bytes(b"not a tensor file at all")
    with pytest.raises(SagecacheError, match="not readable"):
        DiffusionPrior.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(SagecacheError, match="is not a sagecache.diffusion_prior"):
        DiffusionPrior.load(path)
    rough_prior().save(path)
    other = Skeleton("other", COCO17.names[::-1], COCO17.edges, np.arange(17), COCO17.sigmas)
    with pytest.raises(SagecacheError, match="prior of skeleton 'coco'.*not of 'other'"):
        DiffusionPrior.load(path, other)


def test_a_file_without_one_of_its_tensors_is_refused(tmp_path):
    path = tmp_path / "prior.safetensors"
    prior = rough_prior()
    prior.save(path)
    tensors = load_file(path)
    del tensors["mean"]
    about = dict(
        format="sagecache.diffusion_prior", version=1, skeleton=COCO17.as_dict(), provenance={}, report={}
    )
    about["network"] = prior.denoiser.config
    save_file(tensors, path, metadata={"sagecache": json.dumps(about)})
    with pytest.raises(SagecacheError, match="damaged"):
        DiffusionPrior.load(path)


# --- the term ------------------------------------------------------------------------------------

INPUT, MAP = (96, 128), (48, 64)


def batch_for(prior: DiffusionPrior, view: Tensor) -> UnlabeledBatch:
    """A student whose pose in the view is `truth` plus an error, the same error in every view."""
    truth = torch.tensor([47.0, 60.0]) + 14 * torch.randn(2, 17, 2, generator=seeded(1)).clamp(-2, 2)
    student = truth + torch.randn(truth.shape, generator=seeded(2))
    seen = student @ view[:2, :2].T + view[:2, 2]
    if torch.linalg.det(view) < 0:
        seen = seen[:, torch.from_numpy(COCO17.flip_indices.copy())]
    confidence = torch.rand(2, 17, generator=seeded(3))
    labels = PseudoLabels(
        probability=torch.zeros(2, 17, 1, 1),
        keypoints=truth,
        confidence=confidence,
        plausibility=torch.ones(2),
        teacher_a=torch.ones(2, dtype=torch.bool),
        fate=torch.zeros(2, 17, dtype=torch.int64),
        places=torch.zeros(2, 17),
        weights=torch.ones(2, 17),
        corrected=truth,
    )
    return UnlabeledBatch(
        student_heatmaps=torch.zeros(2, 17, MAP[1], MAP[0]),
        heatmap_kind="logits",
        student_keypoints=seen.requires_grad_(),
        student_from_teacher=torch.eye(3).expand(2, 3, 3),
        heatmap_from_strong=torch.from_numpy(heatmap_affine(INPUT, MAP)).float(),
        strong_from_image=view.expand(2, 3, 3),
        target_from_image=torch.eye(3).expand(2, 3, 3),
        bbox_scale=torch.ones(2),
        strong_size=INPUT,
        pseudo_labels=labels,
        targets={},
        step=0,
    )


@pytest.mark.parametrize(
    "options", [dict(flip=True), dict(rotation=20.0, scale=0.8), dict(rotation=-15.0, flip=True, scale=0.7)]
)
def test_the_term_does_not_depend_on_the_students_view(options):
    """Carried back to the image: turned, zoomed and mirrored views give one and the same pull there."""
    prior = rough_prior()
    term = DiffusionGuidance(prior)
    losses, pulls = [], []
    for view in (torch.eye(3), torch.from_numpy(augment_affine(INPUT, **options)).float()):
        batch = batch_for(prior, view)
        torch.manual_seed(0)
        output = term(batch)
        output.loss.backward()
        assert output.scalars["seen_share"] == 1
        losses.append(output.loss)
        order = COCO17.flip_indices.copy() if torch.linalg.det(view) < 0 else np.arange(17)
        pulls.append(batch.student_keypoints.grad[:, order] @ view[:2, :2])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(pulls[0], pulls[1], rtol=1e-2, atol=1e-6)


def test_the_term_pulls_at_unsure_joints_that_the_view_shows():
    prior = rough_prior()
    batch = batch_for(prior, torch.from_numpy(augment_affine(INPUT, shift=(0.4, 0.0))).float())
    batch.pseudo_labels.confidence[:, 6] = 1.0
    DiffusionGuidance(prior)(batch).loss.backward()
    pulled = batch.student_keypoints.grad.abs().sum(-1) > 0
    shown = batch.pseudo_labels.keypoints[..., 0] + 0.4 * 96 <= 95
    assert 0 < shown.float().mean() < 1
    want = shown.clone()
    want[:, 6] = False
    assert torch.equal(pulled, want)


def test_a_prior_survives_deepcopy():
    prior = rough_prior()
    arguments = (poses(), torch.ones(3, 17))
    assert torch.equal(copy.deepcopy(prior).correct(*arguments), prior.correct(*arguments))
