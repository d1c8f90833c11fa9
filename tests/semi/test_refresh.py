import pytest
import torch

from sagecache.semi.refresh import KEPT, LabelTable
from sagecache.structures import PseudoLabels


def labels(count: int, joints: int = 3) -> PseudoLabels:
    torch.manual_seed(count)
    return PseudoLabels(
        probability=torch.rand(count, joints, 4, 5),
        keypoints=torch.rand(count, joints, 2),
        confidence=torch.rand(count, joints),
        plausibility=torch.rand(count),
        teacher_a=torch.rand(count) > 0.5,
        weights=torch.rand(count, joints),
        places=torch.rand(count, joints),
        fate=torch.randint(9, (count, joints)),
        corrected=torch.rand(count, joints, 2),
    )


def test_labels_come_back_in_whatever_order_they_are_asked_for():
    table, made = LabelTable(7, 3), labels(7)
    order = torch.randperm(7)
    for part in order.split(3):
        table.put(part, PseudoLabels(**{name: getattr(made, name)[part] for name in PseudoLabels.__slots__}))
    asked = torch.tensor([6, 0, 0, 3])
    found = table.look_up(asked)
    for name in KEPT:
        assert torch.equal(getattr(found, name), getattr(made, name)[asked])
    assert found.probability.shape == (4, 3, 0, 0)


def test_it_moves_with_its_model_and_is_no_state_of_it():
    table = LabelTable(4, 3)
    assert table.state_dict() == {} and table.to("meta").keypoints.device.type == "meta"


def test_it_fills_whole_or_not_at_all():
    table, other = LabelTable(4, 3), LabelTable(5, 3)
    with pytest.raises(ValueError, match="not"):
        table.fill(other.arrays())
    assert not table.keypoints.any()
    made = labels(4)
    table.fill({name: getattr(made, name) for name in KEPT})
    assert torch.equal(table.look_up(torch.arange(4)).fate, made.fate)
