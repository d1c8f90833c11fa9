"""CMGC on rendered bodies and as terms of a batch; test_cmgc_formulas.py has surfaces with formulas."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from sagecache.errors import SagecacheError
from sagecache.geometry.affine import (
    apply_affine,
    augment_affine,
    crop_affine,
    heatmap_affine,
    invert_affine,
    is_mirrored,
    swap_mirrored,
    transform_points,
)
from sagecache.geometry.depth import joint_depth
from sagecache.geometry.disparity import depth_from_disparity
from sagecache.priors import cmgc
from sagecache.skeleton import COCO17
from sagecache.structures import PseudoLabels, UnlabeledBatch
from sagecache.synth.body import Body
from sagecache.synth.looks import LOOKS
from sagecache.synth.render import render

SIZE = (96, 128)
EDGES = torch.tensor(COCO17.limb_edges)
FLIP = torch.tensor(COCO17.flip_indices)
TUBES = torch.tensor(
    [edge for edge in COCO17.limb_edges.tolist() if set(edge) & {7, 8, 9, 10, 13, 14, 15, 16}]
)


# --- rendered bodies -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bodies():
    """True depth, normals, mask and keypoints of rendered infants, resampled into target crops."""
    body, rows = Body.load(), []
    for index in range(14):
        scene = render(body, np.random.default_rng([5, index]), LOOKS["target"], (224, 224))
        for number, person in enumerate(scene.people):
            crop = crop_affine(person.bbox, SIZE, 1.4)
            own = (scene.instances == number).astype(np.float32)
            coverage = cv2.warpAffine(own, crop[:2], SIZE)
            maps = np.dstack([scene.depth, scene.normals]) * own[..., None]
            maps = cv2.warpAffine(maps, crop[:2], SIZE) / np.maximum(coverage, 0.5)[..., None]
            mask = coverage > 0.5
            rows.append(
                {
                    "depth": np.where(mask, maps[..., 0], 0)[None],
                    "normal": np.where(mask, maps[..., 1:].transpose(2, 0, 1), 0),
                    "mask": mask[None],
                    "keypoints": apply_affine(crop, person.keypoints[:, :2]),
                    "seen": person.keypoints[:, 2] == 2,
                    "target_from_image": crop,
                }
            )
    batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
    batch = {key: value if key == "mask" else value.float() for key, value in batch.items()}
    batch["normal"] = F.normalize(batch["normal"], dim=1)
    return batch


def maps_of(bodies):
    return bodies["depth"], bodies["normal"], bodies["mask"]


@pytest.fixture(scope="module")
def reference(bodies):
    lengths = cmgc.limb_log_lengths(bodies["keypoints"], bodies["seen"], *maps_of(bodies), EDGES)
    return cmgc.ratio_statistics(*lengths)


def test_reference_of_rendered_bodies_is_tight_and_symmetric(reference):
    """A limb of bodies of one kind varies by a few percent in 3-D, left as right; in 2-D by some 20."""
    assert (reference.spread < 0.25).all() and reference.spread.median() < 0.12
    rows = torch.tensor(COCO17.mirrored_limbs)
    assert_close(reference.centre[rows[:, 0]], reference.centre[rows[:, 1]], atol=0.15, rtol=0)


def test_terms_are_near_zero_at_true_keypoints_and_grow_with_displacement(bodies, reference):
    """Each elbow, wrist, knee and ankle moves by a share of the median limb; the limbs it ends are compared.

    Only joints that stay on the body at all distances count: those that leave it drop out of the loss.
    """
    truth, joints = bodies["keypoints"], torch.tensor([7, 8, 9, 10, 13, 14, 15, 16] * 2)
    limb = (truth[:, EDGES[:, 0]] - truth[:, EDGES[:, 1]]).norm(dim=-1).median(1).values
    count, angle = len(joints), 0.4 + math.pi / 2 * torch.arange(len(joints)).div(8, rounding_mode="floor")
    step = limb[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)  # (B, M, 2)
    shift = torch.zeros(len(truth), count, 17, 2)
    shift[:, torch.arange(count), joints] = step
    maps = [each.repeat_interleave(count, 0) for each in maps_of(bodies)]
    weights = bodies["seen"].repeat_interleave(count, 0)
    moved = joints.repeat(len(truth))
    points = [(truth[:, None] + share * shift).flatten(0, 1) for share in (0.0, 0.15, 0.3, 0.45)]
    valid = torch.stack([joint_depth(maps[0], maps[2], each)[1] for each in points]).all(0)
    stays = valid.gather(1, moved[:, None])
    depth, normal = [], []
    for each in points:
        args = (each, weights * stays, *maps)
        for found, edges, (loss, weight) in (
            (depth, EDGES, cmgc.depth_residual(*args, EDGES, reference)),
            (normal, TUBES, cmgc.normal_residual(*args, TUBES)),
        ):
            weight = weight * (edges == moved[:, None, None]).any(-1)
            found.append(((loss * weight).sum() / weight.sum()).item())
    assert depth[0] < 0.01 and normal[0] < 0.03
    assert depth == sorted(depth) and depth[-1] > 4 * depth[0], depth
    assert normal == sorted(normal) and normal[-1] > 1.5 * normal[0], normal


def test_descent_on_the_depth_term_brings_displaced_joints_back(bodies, reference):
    truth, weights = bodies["keypoints"], bodies["seen"]
    generator = torch.Generator().manual_seed(0)
    limb = (truth[:, EDGES[:, 0]] - truth[:, EDGES[:, 1]]).norm(dim=-1).median(1).values
    improved = []
    for joint in (7, 8, 9, 10, 13, 14, 15, 16):
        angle = torch.rand(len(truth), generator=generator) * 2 * math.pi
        points = truth.clone()
        points[:, joint] += 0.3 * limb[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
        points.requires_grad_()
        loss, weight = cmgc.depth_residual(points, weights, *maps_of(bodies), EDGES, reference)
        (gradient,) = torch.autograd.grad((loss * weight).sum(), points)
        back = (truth - points.detach())[:, joint]
        active = gradient[:, joint].norm(dim=-1) > 1e-5
        improved.append(F.cosine_similarity(-gradient[:, joint], back, dim=-1)[active])
    cosine = torch.cat(improved)
    assert len(cosine) > 15 and cosine.mean() > 0.2


def test_a_disparity_turned_into_depth_measures_limbs_as_depth_does(bodies, reference):
    depth, normals, mask = maps_of(bodies)
    disparity = torch.where(mask, 30 / depth.clamp_min(0.1) - 4, 0)
    turned = torch.where(mask, depth_from_disparity(disparity, normals, mask), 0)
    args = bodies["keypoints"], bodies["seen"]
    (true, weight), (found, kept) = (
        cmgc.limb_log_lengths(*args, maps, normals, mask, EDGES) for maps in (depth, turned)
    )
    assert torch.equal(weight > 0, kept > 0)
    assert (found - true)[weight > 0].abs().median() < 0.01
    losses = [
        (loss * share).sum() / share.sum()
        for loss, share in (
            cmgc.depth_residual(*args, maps, normals, mask, EDGES, reference) for maps in (depth, turned)
        )
    ]
    assert_close(*losses, atol=0.002, rtol=0)


# --- terms of a batch ----------------------------------------------------------------------------


def batch_of(bodies, strong_from_target, image_from_target=None, jitter=0.0):
    """A batch whose student is right up to jitter (target px), seen through strong views (B, 3, 3)."""
    count = len(bodies["keypoints"])
    target_from_image = bodies["target_from_image"]
    strong_from_image = strong_from_target @ target_from_image
    noise = jitter * torch.randn(count, 17, 2, generator=torch.Generator().manual_seed(1))
    seen = transform_points(strong_from_target, bodies["keypoints"] + noise)
    student = swap_mirrored(seen, is_mirrored(strong_from_image), FLIP)
    in_image = transform_points(invert_affine(target_from_image), bodies["keypoints"])
    weights = bodies["seen"]
    ones = torch.ones(count)
    labels = PseudoLabels(
        probability=torch.zeros(count, 17, 32, 24), keypoints=in_image, confidence=weights, plausibility=ones,
        teacher_a=ones > 0, fate=torch.zeros_like(weights).long(),
        places=0 * weights, weights=weights, corrected=in_image,
    )  # fmt: skip
    return UnlabeledBatch(
        student_heatmaps=torch.zeros(count, 17, 32, 24),
        heatmap_kind="logits",
        student_keypoints=student.requires_grad_(),
        student_from_teacher=torch.eye(3).expand(count, 3, 3),
        heatmap_from_strong=torch.from_numpy(heatmap_affine(SIZE, (24, 32))).float(),
        strong_from_image=strong_from_image,
        target_from_image=target_from_image,
        bbox_scale=ones,
        strong_size=SIZE,
        pseudo_labels=labels,
        targets={key: bodies[key] for key in ("depth", "normal", "mask")},
        step=0,
    )


def views(count, **options):
    return torch.from_numpy(augment_affine(SIZE, **options)).float().expand(count, 3, 3)


def modules(reference):
    return cmgc.CMGCDepth(EDGES, FLIP, reference), cmgc.CMGCNormal(TUBES, FLIP)


@pytest.mark.parametrize(
    "view",
    [
        dict(rotation=50),
        dict(scale=0.8),
        dict(flip=True),
        dict(rotation=-75, scale=0.7, flip=True, shift=(0.05, 0)),
    ],
    ids=["turned", "smaller", "mirrored", "all"],
)
def test_terms_do_not_depend_on_the_students_view(bodies, reference, view):
    """The view's padding is wide (scale below 1), so no joint leaves it."""
    count = len(bodies["keypoints"])
    plain = batch_of(bodies, views(count, scale=0.7), jitter=4.0)
    other = batch_of(bodies, views(count, **(dict(scale=0.7) | view)), jitter=4.0)
    for term in modules(reference):
        first, second = term(plain), term(other)
        assert first.loss > 0.003
        assert_close(first.loss, second.loss, atol=1e-3, rtol=1e-3)
        assert_close(first.scalars["limbs"], second.scalars["limbs"], atol=1.0, rtol=0)


def test_forgetting_the_channel_swap_would_show(bodies, reference):
    count = len(bodies["keypoints"])
    batch = batch_of(bodies, views(count, flip=True, scale=0.7))
    wrong = replace(batch, student_keypoints=batch.student_keypoints[:, FLIP])
    depth, _ = modules(reference)
    points, _ = cmgc.carry_to_target(batch, FLIP)
    assert_close(points, bodies["keypoints"], atol=1e-3, rtol=0)
    assert (cmgc.carry_to_target(wrong, FLIP)[0] - bodies["keypoints"]).abs().max() > 5
    assert depth(batch).loss < 0.01


def test_gradient_reaches_the_students_keypoints_and_only_those_in_use(bodies, reference):
    count = len(bodies["keypoints"])
    batch = batch_of(bodies, views(count, rotation=30, scale=0.7), jitter=4.0)
    batch.pseudo_labels.weights[:, 9] = 0
    for term in modules(reference):
        (gradient,) = torch.autograd.grad(term(batch).loss, batch.student_keypoints)
        assert gradient.isfinite().all() and gradient.abs().max() > 0
        assert (gradient[:, 9] == 0).all()


def test_joints_that_left_the_strong_view_take_no_part(bodies):
    count = len(bodies["keypoints"])
    batch = batch_of(bodies, views(count, scale=1.0, shift=(0.5, 0.0)))
    keypoints, weights = cmgc.carry_to_target(batch, FLIP)
    outside = transform_points(views(count, shift=(0.5, 0.0)), bodies["keypoints"])[..., 0] > SIZE[0] - 1
    assert outside.any() and not outside.all()
    assert (weights[outside] == 0).all()
    assert_close(weights[~outside], bodies["seen"][~outside])


def test_a_term_says_what_it_kept_and_gives_zero_when_that_is_nothing(bodies, reference):
    count = len(bodies["keypoints"])
    batch = batch_of(bodies, views(count, scale=0.7))
    for term in modules(reference):
        output = term(batch)
        assert 0.5 < output.scalars["kept"] <= 1 and output.scalars["limbs"] > count
        batch.targets["mask"] = torch.zeros_like(bodies["mask"])
        output = term(batch)
        assert output.loss == 0 and output.scalars["limbs"] == 0 and output.loss.requires_grad
        batch.targets["mask"] = bodies["mask"]


def test_terms_name_what_the_store_lacks(bodies, reference):
    batch = batch_of(bodies, views(len(bodies["keypoints"])))
    batch.targets = {"depth": bodies["depth"]}
    for term in modules(reference):
        with pytest.raises(SagecacheError, match="normal and mask.*precompute geo"):
            term(batch)


def test_the_reference_is_state_and_must_fit_the_edges(reference):
    depth, normal = modules(reference)
    assert set(depth.state_dict()) == {"centre", "spread"} and not normal.state_dict()
    fresh = cmgc.CMGCDepth(EDGES, FLIP, cmgc.LimbReference(torch.zeros(len(EDGES)), torch.ones(len(EDGES))))
    fresh.load_state_dict(depth.state_dict())
    assert_close(fresh.centre, reference.centre)
    with pytest.raises(ValueError, match="12 limbs"):
        cmgc.CMGCDepth(EDGES, FLIP, cmgc.LimbReference(torch.zeros(3), torch.zeros(3)))


def test_autocast_changes_nothing(bodies, reference):
    batch = batch_of(bodies, views(len(bodies["keypoints"]), scale=0.7), jitter=4.0)
    for term in modules(reference):
        expected = term(batch).loss
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(term(batch).loss, expected, rtol=0, atol=0)
