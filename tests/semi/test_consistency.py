import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import augment_affine, crop_affine, heatmap_affine
from sagecache.geometry.distortion import bend, bend_points, radial
from sagecache.geometry.heatmap import decode
from sagecache.semi import consistency
from sagecache.semi.consistency import Consistency, consistency_loss, draw_in_view
from sagecache.structures import PseudoLabels, UnlabeledBatch

SIGMA = 1.5


def maps(seed: int, shape=(2, 3, 8, 6), dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def distribution(logits: Tensor) -> Tensor:
    return logits.flatten(2).softmax(-1).view_as(logits)


ONES = torch.ones(2, 3, dtype=torch.float64)


# --- laws of the divergences -------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("loss", ["kl", "js"])
def test_never_negative_and_zero_only_when_equal(loss, temperature):
    student = maps(0, dtype=torch.float32)
    equal = consistency_loss(student, "logits", distribution(student), ONES.float(), loss, temperature)
    assert 0 <= equal < 1e-6
    for size in (1e-2, 1.0, 10.0):
        target = distribution(student + size * maps(1, dtype=torch.float32))
        assert consistency_loss(student, "logits", target, ONES.float(), loss, temperature) > 1e-6


def test_equal_inputs_are_never_negative_in_float32_at_real_sizes():
    student = 5 * maps(0, (4, 17, 64, 48), torch.float32)
    for loss in ("kl", "js"):
        each = [
            consistency_loss(
                student[:1, k : k + 1], "logits", distribution(student)[:1, k : k + 1], torch.ones(1, 1), loss
            )
            for k in range(17)
        ]
        assert min(each) >= 0 and max(each) < 1e-5


def test_kl_is_torchs_kl_divergence_with_equal_gradients():
    student, target = maps(0).requires_grad_(), distribution(maps(1))
    ours = consistency_loss(student, "logits", target, ONES, "kl")
    (ours_grad,) = torch.autograd.grad(ours, student)
    theirs = F.kl_div(student.flatten(2).log_softmax(-1), target.flatten(2), reduction="sum") / 6
    (theirs_grad,) = torch.autograd.grad(theirs, student)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(ours_grad, theirs_grad)


def test_kl_gradient_is_that_of_cross_entropy():
    student, target = maps(0).requires_grad_(), distribution(maps(1))
    (ours,) = torch.autograd.grad(consistency_loss(student, "logits", target, ONES), student)
    entropy = F.cross_entropy(student.flatten(2).flatten(0, 1), target.flatten(2).flatten(0, 1))
    (theirs,) = torch.autograd.grad(entropy, student)
    torch.testing.assert_close(ours, theirs)


def test_temperature_softens_both_sides_and_restores_the_scale():
    student, teacher = maps(0), maps(1)
    ours = consistency_loss(student, "logits", distribution(teacher), ONES, "kl", temperature=3.0)
    soft = F.kl_div(
        (student / 3).flatten(2).log_softmax(-1), (teacher / 3).flatten(2).softmax(-1), reduction="sum"
    )
    torch.testing.assert_close(ours, 9 * soft / 6)


def test_js_is_symmetric_and_bounded_by_log_two():
    a, b = maps(0), maps(1)
    there = consistency_loss(a, "logits", distribution(b), ONES, "js")
    back = consistency_loss(b, "logits", distribution(a), ONES, "js")
    torch.testing.assert_close(there, back)
    left, right = torch.full((1, 1, 2, 2), -200.0), torch.full((1, 1, 2, 2), -200.0)
    left[..., 0, 0] = right[..., 1, 1] = 200
    apart = consistency_loss(left, "logits", distribution(right), torch.ones(1, 1), "js")
    assert apart.item() == pytest.approx(math.log(2)) and apart <= math.log(2) + 1e-6


def test_js_agrees_with_its_definition():
    student, target = maps(0), distribution(maps(1))
    q = distribution(student)
    middle = (q + target) / 2
    want = 0.0
    for b in range(2):
        for k in range(3):
            for p_, q_, m_ in zip(*(t[b, k].flatten().tolist() for t in (target, q, middle)), strict=True):
                want += (p_ * math.log(p_ / m_) + q_ * math.log(q_ / m_)) / 2
    assert consistency_loss(student, "logits", target, ONES, "js").item() == pytest.approx(want / 6)


def test_mse_is_the_supervised_loss_of_mmpose_on_gaussians_of_peak_one():
    student = maps(0, (1, 2, 32, 24))
    target = gaussians(torch.tensor([[[10.0, 12.0], [5.0, 20.0]]]), (24, 32)).double()
    weights = torch.tensor([[1.0, 1.0]]).double()
    ours = consistency_loss(student, "heatmap", target, weights, "mse", sigma=SIGMA)
    peak_one = target / target.amax((-2, -1), keepdim=True)
    torch.testing.assert_close(ours, F.mse_loss(student, peak_one), rtol=1e-4, atol=0)
    assert consistency_loss(peak_one, "heatmap", target, weights, "mse", sigma=SIGMA) < 1e-9
    logits = target.clamp_min(1e-300).log()
    assert consistency_loss(logits, "logits", target, weights, "mse", sigma=SIGMA) < 1e-9


@pytest.mark.parametrize("loss", ["kl", "js", "mse"])
@pytest.mark.parametrize("kind", ["logits", "heatmap"])
def test_gradients_are_right(loss, kind):
    student = maps(0, (1, 2, 4, 3)).abs().requires_grad_()
    target, weights = distribution(maps(1, (1, 2, 4, 3))), torch.tensor([[1.0, 0.3]]).double()
    assert torch.autograd.gradcheck(lambda x: consistency_loss(x, kind, target, weights, loss), student)


def test_the_target_gets_no_gradient():
    target = distribution(maps(1)).requires_grad_()
    for loss in ("kl", "js", "mse"):
        assert not consistency_loss(maps(0), "logits", target, ONES, loss).requires_grad


def test_weights_select_and_normalise():
    student, target = maps(0), distribution(maps(1))
    single = [
        consistency_loss(student[:1, k : k + 1], "logits", target[:1, k : k + 1], ONES[:1, :1])
        for k in range(3)
    ]
    weights = torch.tensor([[1.0, 0.0, 0.25], [0.0, 0.0, 0.0]]).double()
    want = single[0] + 0.25 * single[2]
    torch.testing.assert_close(consistency_loss(student, "logits", target, weights), want / 2)
    everything = consistency_loss(student, "logits", target, weights, normalise="all")
    torch.testing.assert_close(everything, want / 6)


def test_dropped_joints_may_have_empty_targets_and_get_no_gradient():
    student, target = maps(0).requires_grad_(), distribution(maps(1))
    target[:, 1] = 0
    weights = ONES.clone()
    weights[:, 1] = 0
    for loss in ("kl", "js", "mse"):
        for temperature in (1.0,) if loss == "mse" else (1.0, 2.0):
            value = consistency_loss(student, "logits", target, weights, loss, temperature)
            (grad,) = torch.autograd.grad(value, student)
            assert value.isfinite() and grad[:, 1].abs().max() == 0 and grad[:, 0].abs().max() > 0
    assert consistency_loss(student, "logits", target, 0 * weights) == 0


def test_autocast_changes_nothing():
    student, target = maps(0, dtype=torch.float32), distribution(maps(1, dtype=torch.float32))
    plain = consistency_loss(student, "logits", target, ONES.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(consistency_loss(student, "logits", target, ONES.float()), plain)
        half = consistency_loss(student.bfloat16(), "logits", target, ONES.float())
    assert half.dtype == torch.float32


# --- the term: targets in the strong view --------------------------------------------------------

FLIP = torch.tensor([0, 2, 1])
INPUT, MAP = (96, 128), (48, 64)
CENTRE = torch.tensor([100.0, 110.0])
JOINTS = torch.tensor([[[100.0, 95.0], [112.0, 120.0], [80.0, 118.0]]])  # image pixels, well inside the box
TO_MAP = torch.from_numpy(heatmap_affine(INPUT, MAP)).float()
CROP = torch.from_numpy(crop_affine((50.0, 40.0, 100.0, 140.0), INPUT)).float()


def gaussians(points: Tensor, size, sigma: float = SIGMA) -> Tensor:
    """Normalised probability maps, written out: points (B, K, 2) in pixels of a map of size (w, h)."""
    y, x = torch.meshgrid(torch.arange(size[1]).float(), torch.arange(size[0]).float(), indexing="ij")
    square = (x - points[..., 0, None, None]) ** 2 + (y - points[..., 1, None, None]) ** 2
    drawn = torch.exp(-square / (2 * sigma**2))
    return drawn / drawn.sum((-2, -1), keepdim=True)


def move(matrix: Tensor, points: Tensor) -> Tensor:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def batch_for(view: Tensor, **changes) -> UnlabeledBatch:
    """A perfect teacher on the upright crop and a student on `view` (strong_from_crop)."""
    labels = PseudoLabels(
        probability=gaussians(move(TO_MAP @ CROP, JOINTS), MAP),
        keypoints=JOINTS.clone(),
        confidence=torch.tensor([[0.9, 0.8, 0.7]]),
        plausibility=torch.ones(1),
        teacher_a=torch.ones(1, dtype=torch.bool),
        fate=torch.zeros(1, 3, dtype=torch.int64),
        places=torch.zeros(1, 3),
        weights=torch.tensor([[1.0, 0.9, 0.8]]),
        corrected=JOINTS.clone(),
    )
    strong = view @ CROP
    batch = UnlabeledBatch(
        student_heatmaps=torch.zeros(1, 3, MAP[1], MAP[0]),
        heatmap_kind="logits",
        student_keypoints=move(strong, JOINTS),
        student_from_teacher=(TO_MAP @ view @ torch.linalg.inv(TO_MAP))[None],
        heatmap_from_strong=TO_MAP,
        strong_from_image=strong[None],
        target_from_image=torch.eye(3)[None],
        bbox_scale=torch.tensor([118.0]),
        strong_size=INPUT,
        pseudo_labels=labels,
        targets={},
        step=0,
    )
    for name, value in changes.items():
        setattr(labels if hasattr(labels, name) else batch, name, value)
    return batch


def view(**options) -> Tensor:
    return torch.from_numpy(augment_affine(INPUT, **options)).float()


VIEWS = [dict(), dict(rotation=40.0), dict(rotation=-25.0, flip=True), dict(shift=(0.05, -0.04))]


@pytest.mark.parametrize("options", VIEWS)
def test_hard_target_is_the_gaussian_at_the_moved_joint(options):
    target, weights = Consistency(FLIP, SIGMA).build_target(batch_for(view(**options)))
    points = move(TO_MAP @ view(**options) @ CROP, JOINTS)
    order = FLIP if options.get("flip") else torch.arange(3)
    torch.testing.assert_close(target, gaussians(points[:, order], MAP), atol=1e-5, rtol=0)
    assert weights.tolist() == [pytest.approx([(1.0, 0.9, 0.8)[k] for k in order])]


@pytest.mark.parametrize("options", VIEWS)
def test_hard_target_equals_the_warped_map_of_a_perfect_teacher(options):
    """Rotations, mirrors and shifts carry a round Gaussian to itself, up to bilinear blur."""
    hard, hard_weights = Consistency(FLIP, SIGMA).build_target(batch_for(view(**options)))
    warped, weights = Consistency(FLIP, SIGMA, target="heatmap").build_target(batch_for(view(**options)))
    assert (hard - warped).abs().flatten(2).sum(-1).max() < 0.15  # total variation .075
    torch.testing.assert_close(centroid(warped), centroid(hard), atol=0.03, rtol=0)
    torch.testing.assert_close(weights, hard_weights)
    torch.testing.assert_close(warped.sum((-2, -1)), torch.ones(1, 3))


def centroid(probability: Tensor) -> Tensor:
    height, width = probability.shape[-2:]
    x = (probability.sum(-2) * torch.arange(width)).sum(-1)
    y = (probability.sum(-1) * torch.arange(height)).sum(-1)
    return torch.stack([x, y], -1)


@pytest.mark.parametrize("target", ["keypoints", "heatmap"])
def test_a_student_that_agrees_in_its_mirrored_view_has_no_loss(target):
    mirrored = view(flip=True, rotation=10.0)
    points = move(TO_MAP @ mirrored @ CROP, JOINTS)
    right = gaussians(points[:, FLIP], MAP).clamp_min(1e-30).log()  # its left hand is the person's right one
    wrong = gaussians(points, MAP).clamp_min(1e-30).log()
    module = Consistency(FLIP, SIGMA, target=target)
    assert module(batch_for(mirrored, student_heatmaps=right)).loss < 0.02
    assert module(batch_for(mirrored, student_heatmaps=wrong)).loss > 1


@pytest.mark.parametrize("target", ["keypoints", "heatmap"])
def test_joints_that_leave_the_view_are_dropped(target):
    away = view(shift=(0.52, 0.0))
    points = move(TO_MAP @ away @ CROP, JOINTS)
    inside = points[..., 0] <= MAP[0] - 1
    assert inside.tolist() == [[False, False, True]]
    batch = batch_for(away, student_heatmaps=torch.randn(1, 3, MAP[1], MAP[0], requires_grad=True))
    output = Consistency(FLIP, SIGMA, target=target)(batch)
    output.loss.backward()
    moved = batch.student_heatmaps.grad.flatten(2).abs().sum(-1)[0] > 0
    assert moved.tolist() == [False, False, True]
    assert output.scalars["kept_share"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("target", ["keypoints", "heatmap"])
def test_teacher_b_gives_a_wider_target_at_the_corrected_pose(target):
    corrected = JOINTS + torch.tensor([6.0, -4.0])
    changes = dict(teacher_a=torch.zeros(1, dtype=torch.bool), corrected=corrected)
    built, weights = Consistency(FLIP, SIGMA, target=target).build_target(batch_for(view(), **changes))
    torch.testing.assert_close(
        built, gaussians(move(TO_MAP @ CROP, corrected), MAP, 2 * SIGMA), atol=1e-5, rtol=0
    )
    assert weights.tolist() == [pytest.approx([1.0, 0.9, 0.8])]


@pytest.mark.parametrize("target", ["keypoints", "heatmap"])
@pytest.mark.parametrize("options", VIEWS)
def test_without_teacher_b_nothing_is_drawn_for_it(target, options):
    """The same bits, also of a refused sample, whose weights are zero."""
    batch = batch_for(view(**options), weights=torch.tensor([[1.0, 0.0, 0.8]]))
    expected = Consistency(FLIP, SIGMA, target=target).build_target(batch)
    batch.pseudo_labels.corrected = None
    found = Consistency(FLIP, SIGMA, target=target, teacher_b=False).build_target(batch)
    assert all(map(torch.equal, found, expected))


def test_points_and_not_maps_are_exchanged_in_a_mirrored_view(monkeypatch):
    """Which gives the bits that exchanged maps have."""
    batch, exchanged = batch_for(view(flip=True, rotation=10.0, shift=(0.3, 0.0))), []
    drawn, in_view = draw_in_view(batch, JOINTS, SIGMA)
    swap = consistency.swap_mirrored
    monkeypatch.setattr(consistency, "swap_mirrored", lambda *a: exchanged.append(a[0].ndim) or swap(*a))
    target, weights = Consistency(FLIP, SIGMA).build_target(batch)
    expected = drawn / drawn.sum((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    assert torch.equal(target, expected[:, FLIP]) and max(exchanged) == 3
    assert torch.equal(weights, (batch.pseudo_labels.weights * in_view)[:, FLIP])


def test_each_sample_follows_its_own_teacher_and_view():
    a = batch_for(view(rotation=20.0))
    b = batch_for(view(flip=True), teacher_a=torch.zeros(1, dtype=torch.bool), corrected=JOINTS + 5)
    both = copy.copy(a)
    both.pseudo_labels = PseudoLabels(
        *(torch.cat([getattr(x.pseudo_labels, n) for x in (a, b)]) for n in PseudoLabels.__slots__)
    )
    for name in ("student_heatmaps", "student_from_teacher", "strong_from_image"):
        setattr(both, name, torch.cat([getattr(a, name), getattr(b, name)]))
    module = Consistency(FLIP, SIGMA)
    target, weights = module.build_target(both)
    for row, batch in enumerate((a, b)):
        one, weight = module.build_target(batch)
        torch.testing.assert_close(target[row], one[0])
        torch.testing.assert_close(weights[row], weight[0])


def test_scalars_are_detached_and_say_what_they_mean():
    points = move(TO_MAP @ CROP, JOINTS)
    sure = gaussians(points, MAP).clamp_min(1e-30).log().requires_grad_()
    output = Consistency(FLIP, SIGMA)(batch_for(view(), student_heatmaps=sure))
    assert not any(value.requires_grad for value in output.scalars.values())
    assert all(value.ndim == 0 for value in output.scalars.values())
    assert output.scalars["student_peak"].item() == pytest.approx(1, abs=0.15)
    assert output.scalars["confidence"].item() == pytest.approx(0.8)
    flat = Consistency(FLIP, SIGMA)(batch_for(view())).scalars["student_peak"].item()
    assert flat == pytest.approx(2 * math.pi * SIGMA**2 / (48 * 64))


def test_settings_are_checked():
    with pytest.raises(SagecacheError, match="Known: js, kl, mse"):
        Consistency(FLIP, SIGMA, loss="huber")
    with pytest.raises(SagecacheError, match="did you mean 'keypoints'"):
        Consistency(FLIP, SIGMA, target="keypoint")
    with pytest.raises(SagecacheError, match="temperature"):
        Consistency(FLIP, SIGMA, loss="mse", temperature=2.0)
    with pytest.raises(SagecacheError, match="normalise"):
        Consistency(FLIP, SIGMA, normalise="sum")
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(SagecacheError, match=f"soft_sigma is {value}, it must be positive"):
            Consistency(FLIP, SIGMA, soft_sigma=value)


# -- views that are not affine ---------------------------------------------------------------------------


def bent_batch(strong: Tensor, **changes) -> tuple[UnlabeledBatch, Tensor]:
    """A batch whose strong view sees through a lens, and where its joints lie there, heatmap pixels."""
    lens = radial(0.3, 0.05, INPUT)
    lattices = tuple(torch.from_numpy(one).float()[None] for one in (lens.forward, lens.inverse))
    seen = torch.from_numpy(
        bend(move(strong @ CROP, JOINTS)[0].double().numpy(), lens.forward, INPUT)
    ).float()
    return batch_for(strong, distortion=lattices, **changes), move(TO_MAP, seen)[None]


@pytest.mark.parametrize("target", ["keypoints", "heatmap"])
@pytest.mark.parametrize("options", [dict(), dict(rotation=20.0, scale=0.9), dict(flip=True)])
def test_targets_follow_a_lens(target, options):
    strong = view(**options)
    batch, expected = bent_batch(strong)
    maps, weights = Consistency(FLIP, SIGMA, target=target).build_target(batch)
    if options.get("flip"):
        expected = expected[:, FLIP]
    found = decode(maps, SIGMA)[0]
    straight = decode(Consistency(FLIP, SIGMA, target=target).build_target(batch_for(strong))[0], SIGMA)[0]
    assert (found - expected).norm(dim=-1).max() < (0.05 if target == "keypoints" else 0.25)
    assert (straight - expected).norm(dim=-1).max() > 0.5  # the lens does move them
    assert (weights > 0).all()
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(1, 3))


def test_maps_of_another_frame_follow_a_lens_too():
    """MSRA divides by the stride: its maps end before the view does, and the lens is the view's."""
    to_map = torch.diag(torch.tensor([1 / 4, 1 / 4, 1.0]))
    corners = torch.tensor([[[85.0, 105.0], [85.0, 20.0], [15.0, 108.0]]])  # of the view, which is the image
    labels = dict(probability=gaussians(move(to_map, corners), (24, 32), 1.0), keypoints=corners)
    frame = dict(heatmap_from_strong=to_map, student_from_teacher=torch.eye(3)[None])
    batch, _ = bent_batch(view(), **labels, **frame, student_heatmaps=torch.zeros(1, 3, 32, 24))
    batch.strong_from_image = torch.eye(3)[None]
    found = decode(Consistency(FLIP, 1.0, target="heatmap").build_target(batch)[0], 1.0)[0]
    expected = move(to_map, bend_points(corners, batch.distortion[0], INPUT))
    assert (found - expected).norm(dim=-1).max() < 0.25  # the blob of a lens is not quite round


def test_joints_that_a_lens_pushes_out_of_view_are_dropped():
    batch, expected = bent_batch(view(scale=1.6, shift=(0.5, 0.0)))
    outside = ~((expected >= 0) & (expected <= torch.tensor(MAP) - 1)).all(-1)
    _, weights = Consistency(FLIP, SIGMA).build_target(batch)
    assert outside.any() and torch.equal(weights == 0, outside)
