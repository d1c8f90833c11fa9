import math
from types import SimpleNamespace

import pytest
import torch
from host import Operations

from sagecache.errors import SagecacheError
from sagecache.semi import reduction
from sagecache.semi.hardness import JointHardness


def batch(seed: int, size: int = 6, joints: int = 3):
    generator = torch.Generator().manual_seed(seed)
    student, label = (torch.rand(size, joints, 2, generator=generator) * 20 for _ in range(2))
    keep = torch.rand(size, joints, generator=generator) < 0.5
    return student, label, keep, torch.rand(size, generator=generator) * 50 + 30


def test_agrees_with_a_loop_also_where_a_joint_is_not_always_kept():
    module = JointHardness(3, decay=0.8)
    error, updates = [0.0] * 3, [0] * 3
    for step in range(30):
        student, label, keep, scale = batch(step, size=2)
        keep[:, 2] &= step > 20  # learned late: its first value counts in full
        module.update(student, label, keep, scale)
        for k in range(3):
            found = [
                math.dist(student[b, k].tolist(), label[b, k].tolist()) / scale[b].item()
                for b in range(2)
                if keep[b, k]
            ]
            if found:
                rate = max(1 / (updates[k] + 1), 0.2)
                error[k] += rate * (sum(found) / len(found) - error[k])
                updates[k] += 1
    assert module.error.tolist() == pytest.approx(error, abs=1e-6)
    assert module.updates.tolist() == updates and 0 < updates[2] < updates[0]


def test_errors_are_in_boxes_and_a_lost_joint_counts_as_one():
    module = JointHardness(2)
    label = torch.zeros(1, 2, 2)
    student = torch.tensor([[[3.0, 4.0], [1000.0, 0.0]]])
    module.update(student, label, torch.ones(1, 2, dtype=torch.bool), torch.tensor([50.0]))
    assert module.error.tolist() == pytest.approx([0.1, 1.0])


def test_what_is_not_finite_does_not_count():
    student, label, keep, scale = batch(0)
    clean, dirty = JointHardness(3), JointHardness(3)
    without = keep.clone()
    without[0, 0] = without[1, 1] = False
    clean.update(student, label, without, scale)
    keep[0, 0] = keep[1, 1] = True
    student[0, 0, 0], label[1, 1, 1] = math.nan, math.inf
    dirty.update(student, label, keep, scale)
    assert torch.equal(clean.error, dirty.error) and dirty.error.isfinite().all()


def test_processes_count_together_in_one_reduction(monkeypatch):
    whole = batch(3, size=9)
    mine, other = [value[:2] for value in whole], [value[2:] for value in whole]
    expected, module = JointHardness(3), JointHardness(3)
    expected.update(*whole)
    sent = []

    def group(exchange):
        return SimpleNamespace(is_available=lambda: True, is_initialized=lambda: True, all_reduce=exchange)

    monkeypatch.setattr(reduction, "distributed", group(lambda sums: sent.append(sums.clone())))
    JointHardness(3).update(*other)
    assert len(sent) == 1
    monkeypatch.setattr(reduction, "distributed", group(lambda sums: sums.add_(sent[0])))
    module.update(*mine)
    torch.testing.assert_close(module.error, expected.error)
    assert torch.equal(module.updates, expected.updates)


def test_is_saved_and_resumes_exactly():
    straight, first, second = (JointHardness(3, decay=0.9) for _ in range(3))
    for step in range(10):
        straight.update(*batch(step))
        (first if step < 4 else second).update(*batch(step))
        if step == 3:
            second.load_state_dict(first.state_dict())
    assert torch.equal(straight.error, second.error) and torch.equal(straight.updates, second.updates)


def test_half_precision_positions_are_raised_first():
    student, label, keep, scale = batch(1)
    student = student.bfloat16()
    expected, module = JointHardness(3), JointHardness(3)
    expected.update(student.float(), label, keep, scale)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.update(student, label, keep, scale)
    assert torch.equal(module.error, expected.error)


def test_the_host_never_waits_for_the_device():
    module, inputs = JointHardness(3), batch(0)
    with Operations() as operations:
        module.update(*inputs)
    assert operations.waiting == set() and len(operations.seen) > 5


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_a_bad_decay_is_named(decay):
    with pytest.raises(SagecacheError, match="decay"):
        JointHardness(3, decay=decay)
