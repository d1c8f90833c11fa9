import copy

import pytest
import torch

from sagecache.errors import SagecacheError
from sagecache.semi.filtering import KeypointFilter


def test_keeps_what_is_above_the_threshold():
    keep = KeypointFilter(3, threshold=0.5)(torch.tensor([[0.2, 0.5, 0.51], [1.0, 0.0, 0.6]])).keep
    assert keep.tolist() == [[False, False, True], [True, False, True]]


def test_statistics_agree_with_a_loop_and_count_dropped_joints_too():
    batches = [torch.rand(4, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(40)]
    module = KeypointFilter(2, threshold=0.99, decay=0.9)
    mean, variance = [0.0, 0.0], [0.0, 0.0]
    for step, batch in enumerate(batches):
        module(batch)
        rate = max(1 / (step + 1), 0.1)
        for k in range(2):
            column = batch[:, k].tolist()
            mean[k] += rate * (sum(column) / 4 - mean[k])
            variance[k] += rate * (sum((c - mean[k]) ** 2 for c in column) / 4 - variance[k])
    assert module.statistics.mean.tolist() == pytest.approx(mean, abs=1e-5)
    assert module.statistics.variance.tolist() == pytest.approx(variance, abs=1e-5)
    assert module.statistics.mean.min() > 0.3  # all were dropped, yet the mean is that of the confidences


def test_the_mean_of_a_steady_teacher_is_right_from_the_first_batch():
    module = KeypointFilter(2, decay=0.999)
    module(torch.tensor([[0.2, 0.6], [0.4, 0.8]]))
    assert module.statistics.mean.tolist() == pytest.approx([0.3, 0.7])
    assert module.statistics.variance.tolist() == pytest.approx([0.01, 0.01], abs=1e-6)


def test_evaluation_leaves_the_statistics_alone():
    module = KeypointFilter(2)
    module(torch.rand(4, 2))
    before = copy.deepcopy(module.state_dict())
    module.eval()(torch.rand(4, 2))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_statistics_are_saved_and_resume_exactly():
    batches = [torch.rand(4, 2) for _ in range(10)]
    straight, first, second = KeypointFilter(2), KeypointFilter(2), KeypointFilter(2)
    for batch in batches:
        straight(batch)
    for batch in batches[:4]:
        first(batch)
    second.load_state_dict(first.state_dict())
    for batch in batches[4:]:
        second(batch)
    assert torch.equal(straight.statistics.mean, second.statistics.mean) and torch.equal(
        straight.statistics.variance, second.statistics.variance
    )


@pytest.mark.parametrize(
    "options",
    [
        dict(threshold=1.01),
        dict(threshold=-0.1),
        dict(threshold=float("nan")),
        dict(decay=1.0),
        dict(decay=-0.1),
    ],
)
def test_values_out_of_range_are_named(options):
    with pytest.raises(SagecacheError, match=rf"the filter's {next(iter(options))} is .*in \[0, 1"):
        KeypointFilter(2, **options)


def test_both_ends_of_the_threshold_s_range_will_do():
    confidence = torch.tensor([[0.0, 0.2, 1.0]])
    assert KeypointFilter(3, threshold=0.0)(confidence).keep.tolist() == [[False, True, True]]
    assert KeypointFilter(3, threshold=1.0, decay=0.0)(confidence).keep.tolist() == [[False, False, False]]
