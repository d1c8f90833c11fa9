import pytest
import torch
from torch import Tensor

from sagecache.geometry.affine import augment_affine, heatmap_affine
from sagecache.geometry.heatmap import gaussian
from sagecache.semi.sides import SideAgnostic
from sagecache.structures import PseudoLabels, UnlabeledBatch

FLIP, PAIRS = torch.tensor([0, 2, 1]), torch.tensor([[1, 2]])  # nose, left, right
INPUT, MAP, SIGMA = (96, 128), (24, 32), 1.5
TO_MAP = torch.from_numpy(heatmap_affine(INPUT, MAP)).float()
JOINTS = torch.tensor([[[48.0, 30.0], [60.0, 70.0], [30.0, 72.0]]])


def batch(student: Tensor, places: Tensor, view: Tensor | None = None) -> UnlabeledBatch:
    view = torch.eye(3) if view is None else view
    labels = PseudoLabels(
        probability=torch.zeros(1, 3, 1, 1),
        keypoints=JOINTS,
        confidence=torch.ones(1, 3),
        plausibility=torch.ones(1),
        teacher_a=torch.ones(1, dtype=torch.bool),
        weights=torch.zeros(1, 3),
        fate=torch.zeros(1, 3, dtype=torch.int64),
        places=places,
        corrected=JOINTS,
    )
    return UnlabeledBatch(
        student_heatmaps=student,
        heatmap_kind="logits",
        student_keypoints=JOINTS,
        student_from_teacher=torch.eye(3)[None],
        heatmap_from_strong=TO_MAP,
        strong_from_image=view[None],
        target_from_image=torch.eye(3)[None],
        strong_size=INPUT,
        bbox_scale=torch.ones(1),
        pseudo_labels=labels,
        targets={},
        step=0,
    )


def logits(points: Tensor) -> Tensor:
    """Of a student that is sure of points (1, K, 2), image pixels."""
    maps = gaussian(points * torch.tensor([23 / 95, 31 / 127]), MAP, SIGMA)
    return maps.clamp_min(1e-12).log()


TERM = SideAgnostic(PAIRS, SIGMA)
ON = torch.tensor([[0.0, 1.0, 1.0]])


def test_exchanged_names_cost_nothing_and_wrong_places_do():
    right, exchanged = TERM(batch(logits(JOINTS), ON)).loss, TERM(batch(logits(JOINTS[:, FLIP]), ON)).loss
    assert right < 1e-5 and exchanged < 1e-5
    moved = JOINTS + torch.tensor([[0.0, 0], [12, 0], [0, 0]])
    assert TERM(batch(logits(moved), ON)).loss > 0.1
    both_on_one = JOINTS[:, [0, 1, 1]]
    assert TERM(batch(logits(both_on_one), ON)).loss > 0.1


def test_it_is_the_divergence_of_mean_maps_by_its_definition():
    torch.manual_seed(0)
    student = torch.randn(1, 3, MAP[1], MAP[0])
    loss = TERM(batch(student, ON)).loss
    q = student.flatten(2).softmax(-1)[0, 1:].mean(0)
    p = logits(JOINTS).exp().flatten(2)[0, 1:].mean(0)
    p = p / p.sum()
    expected = 2 * (p * ((p + 1e-30).log() - q.log())).sum() / 3
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("places", [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
def test_pairs_that_are_named_or_half_unknown_take_no_part(places):
    output = TERM(batch(logits(JOINTS + 20), torch.tensor([places])))
    assert output.loss == 0 and output.scalars["share"] == 0


def test_a_pair_half_out_of_view_takes_no_part():
    away = torch.from_numpy(augment_affine(INPUT, shift=(0.5, 0.0))).float()
    assert TERM(batch(torch.zeros(1, 3, MAP[1], MAP[0]), ON, away)).loss == 0


@pytest.mark.parametrize("options", [dict(flip=True), dict(rotation=25.0, scale=0.9)])
def test_names_change_nothing_not_even_a_bit(options):
    """Of the student's maps or of the labels: so a mirrored view, which changes them, needs no exchange."""
    view = torch.from_numpy(augment_affine(INPUT, **options)).float()
    torch.manual_seed(0)
    student, places = torch.randn(1, 3, MAP[1], MAP[0]), torch.tensor([[0.0, 0.5, 1.0]])
    named, student_renamed = (batch(maps, places, view) for maps in (student, student[:, FLIP]))
    labels_renamed = batch(student, places[:, FLIP], view)
    labels_renamed.pseudo_labels.keypoints = JOINTS[:, FLIP]
    expected = TERM(named).loss
    assert expected > 0
    assert torch.equal(TERM(student_renamed).loss, expected)
    assert torch.equal(TERM(labels_renamed).loss, expected)


@pytest.mark.parametrize("options", [dict(flip=True), dict(rotation=25.0, scale=0.9)])
def test_it_follows_the_strong_view(options):
    view = torch.from_numpy(augment_affine(INPUT, **options)).float()
    seen = JOINTS @ view[:2, :2].T + view[:2, 2]
    assert TERM(batch(logits(seen), ON, view)).loss < 1e-5
    assert TERM(batch(logits(JOINTS), ON, view)).loss > 0.1


def test_gradients_reach_the_student_alone():
    student = torch.randn(1, 3, MAP[1], MAP[0], requires_grad=True)
    TERM(batch(student, ON)).loss.backward()
    assert student.grad[0, 0].eq(0).all() and student.grad[0, 1:].abs().max() > 0
