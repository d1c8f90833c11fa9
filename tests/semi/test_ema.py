import copy

import pytest
import torch
from torch import nn

from sagecache.errors import SagecacheError
from sagecache.semi.ema import (
    check_synchronised,
    initialise_ema,
    measure_own_norm,
    ramp_up,
    require_different,
    update_ema,
    warm_decay,
)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 9, 2))


def train_a_little(model: nn.Module, steps: int = 1) -> None:
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        loss = model(torch.randn(8, 3, 5, 5)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_starts_as_a_frozen_copy_that_shares_nothing():
    student = network(0)
    ema = initialise_ema(student)
    assert not ema.training and student.training
    assert not any(p.requires_grad for p in ema.parameters())
    assert all(p.requires_grad for p in student.parameters())
    before = copy.deepcopy(ema.state_dict())
    train_a_little(student)
    for name, value in ema.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_checkpoint_loaded_into_the_student_alone_is_noticed():
    student = network(0)
    ema = initialise_ema(student)
    check_synchronised(ema, student)
    student.load_state_dict(network(1).state_dict())
    with pytest.raises(SagecacheError, match="0.weight"):
        check_synchronised(ema, student)


def test_another_structure_is_noticed():
    with pytest.raises(SagecacheError, match="structure"):
        check_synchronised(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))


def test_agrees_with_a_loop_over_single_numbers():
    student = network(0)
    ema = initialise_ema(student)
    train_a_little(student, 3)
    names = dict(student.named_parameters()).keys() | {"1.running_mean", "1.running_var"}
    want = {}
    for name, value in student.state_dict().items():
        old = ema.state_dict()[name].flatten().tolist()
        pairs = zip(old, value.flatten().tolist(), strict=True)
        want[name] = [0.9 * a + 0.1 * b if name in names else b for a, b in pairs]
    update_ema(ema, student, 0.9)
    for name, value in ema.state_dict().items():
        assert value.flatten().tolist() == pytest.approx(want[name], abs=1e-6), name
    assert ema[1].num_batches_tracked == student[1].num_batches_tracked == 3  # a counter is copied


def test_constant_student_closed_form():
    """ema_n - student = m^n (ema_0 - student)."""
    ema, student = initialise_ema(network(0)).double(), network(1).double()
    gap = (ema[3].weight - student[3].weight).clone()
    for _ in range(20):
        update_ema(ema, student, 0.9)
    torch.testing.assert_close(ema[3].weight - student[3].weight.detach(), 0.9**20 * gap)


def test_equal_weights_stay_bitwise_equal():
    student = network(0)
    ema = initialise_ema(student)
    for step in range(50):
        update_ema(ema, student, warm_decay(0.97, step))
    check_synchronised(ema, student)


def test_warm_up_is_the_plain_mean_of_the_students_so_far():
    ema = initialise_ema(network(0))
    seen = []
    for step in range(6):
        student = network(10 + step)
        update_ema(ema, student, warm_decay(0.999, step))
        seen.append(student[0].weight.detach())
        torch.testing.assert_close(ema[0].weight, torch.stack(seen).mean(0))


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_warm_decay_rises_to_the_decay(decay):
    values = [warm_decay(decay, step) for step in range(3000)]
    assert values[0] == 0 and values[1] == 0.5
    assert values == sorted(values)
    assert max(values) == values[-1] == decay


def test_resuming_from_state_dicts_gives_the_same_bits():
    def run(steps, student, ema, first=0):
        for step in range(first, steps):
            torch.manual_seed(step)
            train_a_little(student)
            update_ema(ema, student, warm_decay(0.95, step))

    student = network(0)
    ema = initialise_ema(student)
    run(30, student, ema)

    halfway = network(0)
    halfway_ema = initialise_ema(halfway)
    run(13, halfway, halfway_ema)
    student_again, ema_again = network(5), initialise_ema(network(5))
    student_again.load_state_dict(halfway.state_dict())
    ema_again.load_state_dict(halfway_ema.state_dict())
    run(30, student_again, ema_again, first=13)
    check_synchronised(ema_again, ema)


def test_no_graph_is_kept():
    student = network(0)
    ema = initialise_ema(student)
    update_ema(ema, student, 0.5)
    assert all(value.grad_fn is None for value in ema.parameters())


def test_ramp_up_is_linear_and_ends_at_one():
    assert [ramp_up(step, 4) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert ramp_up(0, 0) == 1


def test_two_averages_with_one_decay_stay_one_network_and_are_refused():
    student = network(0)
    first, second = initialise_ema(student), initialise_ema(student)
    for step in range(5):
        train_a_little(student)
        for ema in (first, second):
            update_ema(ema, student, warm_decay(0.9, step))
    check_synchronised(first, second)  # which is why:
    with pytest.raises(SagecacheError, match=r"decay 0.9: one network, twice"):
        require_different(0.9, 0.9, alternate=False, own_norm=False)
    for different in (dict(decay=0.8), dict(alternate=True), dict(own_norm=True)):
        require_different(**dict(decay=0.9, other=0.9, alternate=False, own_norm=False) | different)


def test_own_norm_keeps_what_the_teacher_itself_saw():
    student = network(0)
    ema = initialise_ema(student)
    assert measure_own_norm(ema) and ema[1].training and not ema[0].training
    assert not measure_own_norm(nn.Linear(2, 2))
    bright = 5 + torch.randn(64, 3, 5, 5)
    with torch.no_grad():
        ema(bright)
        seen = ema[1].running_mean.clone()
        expected = 0.1 * ema[0](bright).mean((0, 2, 3))  # torch's momentum .1, from zero
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-3)
    train_a_little(student)
    update_ema(ema, student, 0.5, buffers=False)
    assert torch.equal(ema[1].running_mean, seen)
    assert not torch.equal(ema[0].weight, network(0)[0].weight)
