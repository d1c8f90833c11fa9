import math

import numpy as np
import pytest
import torch
from host import Operations

from oracles import bilinear
from sagecache.data.hiding import AdaptiveMasking
from sagecache.data.mixing import StrongMixing, mirrored_limbs, paste_limbs
from sagecache.errors import SagecacheError
from sagecache.skeleton import Skeleton
from sagecache.skeleton.definition import COCO17
from sagecache.strict import call_with

SIZE = (48, 64)
EVERYTHING = dict(hide=3, akm=AdaptiveMasking(), limbs=2, cutmix=1.0)


def batch(count: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator)

    return dict(
        images=(draw(count, 3, SIZE[1], SIZE[0]) * 256).to(torch.uint8),
        keypoints=draw(count, 17, 2) * torch.tensor([30.0, 30.0]) + 8,
        confidence=draw(count, 17),
        keep=draw(count, 17) < 0.8,
        bbox_scale=torch.full((count,), 45.0),
    )


def mixed(options: dict, inputs: dict, seed: int = 0):
    torch.manual_seed(seed)
    return StrongMixing(COCO17, **options)(**inputs)


# --- exchanging limbs ----------------------------------------------------------------------------

LIMBS = torch.tensor([[0, 1], [2, 3]])  # each other's mirror


def two_persons(host_ends, donor_ends, donor_limb: int):
    """Person 0 knows limb 0, person 1 knows donor_limb; pictures are smooth and different."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (2, 3, 9, 7))).float()
    images = torch.nn.functional.interpolate(coarse, SIZE[::-1], mode="bilinear", align_corners=True)
    keypoints, known = torch.zeros(2, 4, 2), torch.zeros(2, 4, dtype=torch.bool)
    keypoints[0, :2], known[0, :2] = torch.tensor(host_ends), True
    joints = LIMBS[donor_limb]
    keypoints[1, joints], known[1, joints] = torch.tensor(donor_ends), True
    return images.round().to(torch.uint8), keypoints, known


@pytest.mark.parametrize("donor_limb", [0, 1])
@pytest.mark.parametrize(
    ("host_ends", "donor_ends"),
    [
        ([[20.0, 20.0], [30.0, 34.0]], [[30.0, 40.0], [18.0, 33.0]]),
        ([[4.0, 50.0], [2.5, 62.0]], [[20.0, 10.0], [40.0, 10.0]]),  # capsule cut by the view's corner
        ([[46.0, 3.0], [33.0, 1.0]], [[24.0, 30.0], [24.0, 44.0]]),
        ([[20.0, 20.0], [20.0, 30.0]], [[2.0, 2.0], [1.0, 12.0]]),
    ],
)
def test_each_pixel_of_the_capsule_is_read_where_the_similarity_says(host_ends, donor_ends, donor_limb):
    images, keypoints, known = two_persons(host_ends, donor_ends, donor_limb)
    pixels, region = paste_limbs(images, keypoints, known, torch.tensor([0]), LIMBS, 0.25)
    # complex numbers: z -> q0 + (q1 - q0) w with w = (z - p0) / (p1 - p0), or its conjugate in a mirror
    p0, p1 = (complex(*end) for end in host_ends)
    q0, q1 = (complex(*end) for end in donor_ends)
    seen = 0
    for y in range(SIZE[1]):
        for x in range(SIZE[0]):
            w = (complex(x, y) - p0) / (p1 - p0)
            distance = abs(w - min(1, max(0, w.real)))
            if abs(distance - 0.25) < 1e-4:
                continue
            assert region[0, y, x] == (distance < 0.25)
            if region[0, y, x]:
                seen += 1
                source = q0 + (q1 - q0) * (w.conjugate() if donor_limb else w)
                at = min(max(source.real, 0), SIZE[0] - 1), min(max(source.imag, 0), SIZE[1] - 1)
                for channel in range(3):
                    expected = bilinear(images[1, channel].numpy().astype(float), *at)
                    assert abs(int(pixels[0, channel, y, x]) - expected) < 0.6
    assert seen > 40


def test_a_coloured_limb_lands_along_the_hosts():
    """Eight pale persons with one limb painted from red to blue: each gets another's from end to end."""
    torch.manual_seed(0)
    count = 8
    angle, length = torch.rand(count) * 2 * math.pi, torch.rand(count) * 8 + 12
    start = torch.stack([torch.full((count,), 24.0), torch.full((count,), 32.0)], -1)
    end = start + length[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    keypoints = torch.stack([start, end, torch.zeros_like(end), torch.zeros_like(end)], 1)
    known = torch.tensor([True, True, False, False]).expand(count, -1)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    along = ((x - 24) * angle.cos()[:, None, None] + (y - 32) * angle.sin()[:, None, None]) / length[
        :, None, None
    ]
    share = along.clamp(0, 1)
    green = torch.arange(count)[:, None, None] * 30.0 + torch.zeros(64, 48)
    images = torch.stack([255 * (1 - share), green, 255 * share], 1).to(torch.uint8)
    pixels, region = paste_limbs(images, keypoints, known, torch.arange(count), LIMBS, 0.25)
    donors = set()
    for b in range(count):
        for place in (0.1, 0.5, 0.9):
            column, row = (start[b] + place * (end[b] - start[b])).round().long().tolist()
            assert region[b, row, column]
            red, green, blue = pixels[b, :, row, column].tolist()
            assert abs(blue - 255 * place) < 25 and abs(red - 255 * (1 - place)) < 25
            donors.add((b, green // 30))
    assert len(donors) == count  # one donor each
    assert all(host != donor for host, donor in donors)


@pytest.mark.parametrize(
    ("host_ends", "donor_ends"),
    [
        ([[10.0, 10.0], [20.0, 10.0]], [[10.0, 10.0], [31.0, 10.0]]),  # more than twice as long
        ([[10.0, 10.0], [20.0, 10.0]], [[10.0, 10.0], [14.9, 10.0]]),
        ([[10.0, 10.0], [11.5, 10.0]], [[10.0, 10.0], [12.0, 10.0]]),  # seen end on
        ([[5.0, 10.0], [5.0, 31.0]], [[5.0, 10.0], [5.0, 31.0]]),  # its capsule exceeds the window
    ],
)
def test_unfit_limbs_are_left_alone(host_ends, donor_ends):
    images, keypoints, known = two_persons(host_ends, donor_ends, 0)
    assert not paste_limbs(images, keypoints, known, torch.tensor([0]), LIMBS, 0.25)[1].any()


def test_nobody_is_their_own_donor():
    inputs = batch(1)
    assert torch.equal(mixed(dict(cutmix=1.0), inputs).images, inputs["images"])


@pytest.mark.parametrize("combine", ["one_of", "all"])
def test_no_view_of_the_same_person_is_a_donor(combine):
    """Three views each of four persons, a grey level a person: what is exchanged has another's."""
    person = torch.arange(4).repeat_interleave(3)
    inputs = batch(12) | dict(
        images=(person * 40 + 20).to(torch.uint8)[:, None, None, None].expand(-1, 3, 64, 48)
    )
    options = dict(cutmix=1.0, combine=combine)
    covered = 0
    for seed in range(20):
        torch.manual_seed(seed)
        found = StrongMixing(COCO17, **options)(**inputs, num_strong=3)
        place = inputs["keypoints"].round().long()
        changed = (found.images != inputs["images"]).any(1)
        at_joint = changed.flatten(1).gather(1, place[..., 1] * SIZE[0] + place[..., 0])
        assert torch.equal(at_joint, found.covered)
        covered += found.covered.sum()
    assert covered > 100
    alone = {name: value[:3] for name, value in inputs.items()}
    torch.manual_seed(0)
    assert torch.equal(StrongMixing(COCO17, **options)(**alone, num_strong=3).images, alone["images"])


def test_limbs_of_coco():
    rows = [[COCO17.names[k] for k in row] for row in mirrored_limbs(COCO17)]
    assert len(rows) == 8
    for left, right in zip(rows[::2], rows[1::2], strict=True):
        assert [name.replace("left", "right") for name in left] == right and left != right
    flat = {frozenset(row) for row in rows}
    assert {"left_shoulder", "left_elbow"} in flat and {"right_knee", "right_ankle"} in flat
    assert {"left_shoulder", "left_hip"} not in flat and {"left_hip", "right_hip"} not in flat


# --- the module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, dict(akm=AdaptiveMasking(joints=0), cutmix=0.0)])
def test_off_costs_nothing(options):
    inputs, module = batch(), StrongMixing(COCO17, **options)
    state = torch.get_rng_state()
    with Operations() as operations:
        images, covered, dropped = module(**inputs)
    assert images is inputs["images"]
    assert operations.seen == ["zeros_like"]  # the (B, K) answer that nothing is covered
    assert not covered.any() and not dropped.any()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("combine", ["one_of", "all"])
@pytest.mark.parametrize("kind", [*EVERYTHING, "everything"])
def test_only_what_is_covered_changes(kind, combine):
    inputs = batch(9)
    kept = {name: value.clone() for name, value in inputs.items()}
    options = EVERYTHING if kind == "everything" else {kind: EVERYTHING[kind]}
    images, covered, dropped = mixed(options | dict(combine=combine), inputs)
    assert all(torch.equal(value, kept[name]) for name, value in inputs.items())
    assert images.dtype == torch.uint8 and images.shape == inputs["images"].shape
    assert not dropped.any()
    changed = (images != inputs["images"]).any(1)
    assert 0.001 < changed.float().mean() < 0.6
    place = inputs["keypoints"].round().long()
    at_joint = changed.flatten(1).gather(1, place[..., 1] * SIZE[0] + place[..., 0])
    assert at_joint.any()
    # noise pasted on noise rarely leaves a pixel as it was, by chance one in millions in all three channels
    assert torch.equal(at_joint, covered)


def test_drop_names_what_is_covered():
    inputs = batch()
    kept, dropped = (mixed(EVERYTHING | dict(covered=key), inputs) for key in ("keep", "drop"))
    assert torch.equal(kept.images, dropped.images) and torch.equal(kept.covered, dropped.covered)
    assert not kept.dropped.any() and torch.equal(dropped.dropped, dropped.covered) and dropped.covered.any()


@pytest.mark.parametrize("combine", ["one_of", "all"])
def test_joints_that_are_nowhere_do_no_harm(combine):
    """As if they weren't kept, to the last pixel."""
    inputs = batch(6)
    bad = torch.tensor(
        [[math.nan, 5], [math.inf, math.inf], [-1e30, 3], [20, 64.2], [-0.1, 9], [5, math.nan]]
    )
    inputs["keypoints"][torch.arange(6), torch.arange(6) + 5] = bad
    options = EVERYTHING | dict(combine=combine)
    found = mixed(options, inputs)
    inputs["keep"][torch.arange(6), torch.arange(6) + 5] = False
    expected = mixed(options, inputs)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.covered, expected.covered)
    assert not found.covered[torch.arange(6), torch.arange(6) + 5].any()


def test_nothing_known_nothing_done():
    inputs = batch()
    inputs["keep"][:] = False
    found = mixed(EVERYTHING | dict(combine="all"), inputs)
    assert torch.equal(found.images, inputs["images"]) and not found.covered.any()


def test_adaptive_masking_asks_for_confidence_and_hard_joints():
    inputs = batch(60)
    inputs["keypoints"] = (torch.arange(17)[:, None] * torch.tensor([0.0, 60 / 17]) + 2).expand(60, -1, -1)
    inputs["keep"][:] = True
    inputs["confidence"] = torch.where(torch.arange(17) < 8, 0.6, 0.4).expand(60, -1)
    akm = AdaptiveMasking(joints=1, threshold=0.5, temperature=0.05)
    error = torch.zeros(17)
    error[[1, 12]] = 1.0  # 12 is harder still, but the teacher isn't sure of it
    found = mixed(dict(akm=akm), inputs | dict(error=error, mean_confidence=torch.full((17,), 0.8)))
    hidden = found.covered.float().mean(0)
    assert hidden[1] > 0.3 and hidden[4:].max() == 0
    found = mixed(dict(akm=akm), inputs)
    assert found.covered.float().mean(0)[:8].max() < 0.45


def test_one_of_gives_each_sample_one_kind_in_equal_shares():
    inputs = batch(10)
    inputs["images"].zero_()  # so that an exchanged limb shows nothing, and paint always does
    inputs["keep"][:] = True
    options = dict(hide=1, cutmix=1.0, combine="one_of")
    painted = torch.stack(
        [mixed(options, inputs, seed).images.flatten(1).any(1) for seed in range(80)]
    ).float()
    assert painted.sum(1).max() <= 5  # never more than the share of one kind
    assert painted.mean() == pytest.approx(0.25, abs=0.05)  # half of the samples, none or one patch
    assert painted.mean(0).min() > 0.08 and painted.mean(0).max() < 0.45  # whoever stands where
    everyone = torch.stack(
        [mixed(options | dict(combine="all"), inputs, seed).images.flatten(1).any(1) for seed in range(20)]
    ).float()
    assert everyone.sum(1).max() > 5


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_small_batches_deal_too(count):
    inputs = batch(count)
    touched = [(mixed(EVERYTHING, inputs, seed).images != inputs["images"]).any() for seed in range(12)]
    assert any(touched)


def test_cutmix_is_a_probability():
    inputs = batch(40)
    changed = torch.stack(
        [
            (mixed(dict(cutmix=0.3), inputs, seed).images != inputs["images"]).flatten(1).any(1)
            for seed in range(10)
        ]
    )
    assert changed.float().mean() == pytest.approx(0.3, abs=0.08)


def test_seeds_repeat():
    inputs = batch()
    first, again, other = (mixed(EVERYTHING, inputs, seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images) and torch.equal(first.covered, again.covered)
    assert not torch.equal(first.images, other.images)


def test_the_order_of_memory_does_not_matter():
    inputs = batch()
    options = EVERYTHING | dict(combine="all")
    expected = mixed(options, inputs)
    inputs["images"] = inputs["images"].to(memory_format=torch.channels_last)
    assert torch.equal(mixed(options, inputs).images, expected.images)


@pytest.mark.parametrize("combine", ["one_of", "all"])
def test_the_host_never_waits_for_the_device(combine):
    inputs, module = batch(), StrongMixing(COCO17, **EVERYTHING, combine=combine)
    statistics = torch.zeros(17)
    with Operations() as operations:
        module(**inputs, error=statistics, mean_confidence=statistics)
    assert operations.waiting == set() and len(operations.seen) > 100


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        (dict(hide=-1), "mixing.hide"),
        (dict(limbs=-2), "mixing.limbs"),
        (dict(cutmix=1.5), "mixing.cutmix"),
        (dict(radius=0.0), "mixing.radius"),
        (dict(combine="one-of"), "one_of"),
        (dict(covered="lose"), "mixing.covered"),
    ],
)
def test_bad_settings_are_named(wrong, key):
    with pytest.raises(SagecacheError, match=key):
        StrongMixing(COCO17, **wrong)


def test_a_skeleton_without_limbs_on_either_side_is_refused():
    snake = Skeleton("snake", ("a", "b", "c"), np.array([[0, 1], [1, 2]]), np.arange(3), np.full(3, 0.1))
    StrongMixing(snake, hide=2)
    for key in ("limbs", "cutmix"):
        with pytest.raises(SagecacheError, match="'snake' has no limb"):
            StrongMixing(snake, **{key: 1})


def test_is_built_from_a_recipes_section():
    section = dict(akm=dict(joints=2, area=0.1), cutmix=0.5, covered="drop")
    module = call_with(StrongMixing, section, "recipe.py", "mixing", skeleton=COCO17)
    assert module.akm == AdaptiveMasking(joints=2, area=0.1) and module.kinds == ("akm", "cutmix")
    with pytest.raises(SagecacheError, match="mixing.akm.joint"):
        call_with(StrongMixing, dict(akm=dict(joint=2)), "recipe.py", "mixing", skeleton=COCO17)
