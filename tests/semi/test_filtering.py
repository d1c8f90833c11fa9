import copy
import math
import socket

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
    for name, value in straight.statistics.state_dict().items():
        assert torch.equal(value, second.statistics.state_dict()[name])


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


def steady(rule: str, **options) -> KeypointFilter:
    """A filter whose statistics are those of a long training; joints of mean .8, .5, .2 and sd .1."""
    module = KeypointFilter(3, rule=rule, **options)
    module.statistics.mean.copy_(torch.tensor([0.8, 0.5, 0.2]))
    module.statistics.variance.fill_(0.01)
    module.statistics.selected.copy_(torch.tensor([0.9, 0.45, 0.09]))
    module.statistics.updates.fill_(1000)
    return module.eval()


@pytest.mark.parametrize(
    "rule, options, thresholds",
    [
        ("fixed", {}, [0.5, 0.5, 0.5]),
        ("adaptive", dict(beta=1.0), [0.7, 0.4, 0.1]),
        ("adaptive", dict(beta=2.0, limits=(0.1, 0.55)), [0.55, 0.3, 0.1]),
        ("flexmatch", {}, [0.5, 0.5 * 0.5 / 1.5, 0.5 * 0.1 / 1.9]),
        ("freematch", {}, [0.5, 0.5 * 5 / 8, 0.5 * 2 / 8]),
        ("softmatch", {}, [0.8, 0.5, 0.2]),
    ],
)
def test_each_rule_has_its_threshold_by_joint(rule, options, thresholds):
    module = steady(rule, **options)
    decision = module(torch.tensor([[t + 0.01 for t in thresholds], [t - 0.01 for t in thresholds]]))
    assert decision.threshold.tolist() == pytest.approx(thresholds, abs=1e-6)
    assert decision.keep[0].all() and decision.weight[0].eq(1).all()
    assert decision.weight[1].lt(1).all() and decision.keep[1].all() == (rule == "softmatch")


def test_softmatch_drops_what_hardly_weighs():
    weight = steady("softmatch")(torch.tensor([[0.75, 0.3, 0.05]])).weight[0]
    expected = [torch.tensor(-((0.05 / 0.1) ** 2) * 2).exp(), 0, torch.tensor(-((0.15 / 0.1) ** 2) * 2).exp()]
    assert weight.tolist() == pytest.approx([float(value) for value in expected], abs=1e-4)


def test_floors_rescue_the_best_and_say_so():
    confidence = torch.tensor([[0.4, 0.3, 0.2], [0.1, 0.9, 0.05]])
    by_sample = KeypointFilter(3, min_keep=0.3).eval()(confidence)
    assert by_sample.keep.tolist() == [[True, False, False], [False, True, False]]
    assert by_sample.rescued.tolist() == [[True, False, False], [False, False, False]]
    by_joint = KeypointFilter(3, percentile=0.5).eval()(confidence)
    assert by_joint.keep.tolist() == [[True, False, True], [False, True, False]]
    assert by_joint.rescued.tolist() == [[True, False, True], [False, False, False]]
    assert by_joint.weight.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_everything_is_kept_while_it_warms_up():
    module, confidence = KeypointFilter(2, warm_up=2), torch.tensor([[0.1, 0.9]])
    kept = [module(confidence).keep.tolist() for _ in range(3)]
    assert kept == [[[True, True]], [[True, True]], [[False, True]]]


def drawn(kind: str, count: int, generator: torch.Generator) -> torch.Tensor:
    """Confidences (count, 1)."""
    uniform, other = torch.rand(2, count, 1, generator=generator)
    if kind == "uniform":
        return uniform
    if kind == "narrow":
        return (0.5 + 0.08 * torch.randn(count, 1, generator=generator)).clamp(0, 1)
    return torch.where(other < 0.6, 0.6 + 0.2 * uniform, 0.2 * uniform)  # two modes


def shares_of(module: KeypointFilter, kind: str, batches: int = 500) -> float:
    generator = torch.Generator().manual_seed(0)
    weights = [module(drawn(kind, 64, generator)).weight.mean() for _ in range(batches)]
    return torch.stack(weights[batches // 2 :]).mean().item()


@pytest.mark.parametrize("wanted", [0.3, 0.7])
@pytest.mark.parametrize("kind", ["uniform", "narrow", "two modes"])
@pytest.mark.parametrize("rule", ["fixed", "adaptive", "softmatch"])
def test_alignment_brings_the_selected_share_to_the_labels(rule, kind, wanted):
    if kind == "two modes":
        wanted = min(wanted, 0.6)  # the lower mode lies beyond twice its confidence
    module = KeypointFilter(1, rule=rule, visible=torch.tensor([wanted]))
    assert shares_of(module, kind) == pytest.approx(wanted, abs=0.05)


def test_alignment_raises_a_confidence_to_its_double_at_most():
    module = KeypointFilter(1, visible=torch.ones(1))
    assert shares_of(module, "uniform") == pytest.approx(0.75, abs=0.03)  # above .25
    assert module.log_factor.exp().item() == pytest.approx(2)


def test_alignment_is_saved_and_moves_in_training_alone():
    module = KeypointFilter(1, visible=torch.tensor([0.3]))
    shares_of(module, "uniform", 20)
    other = KeypointFilter(1, visible=torch.tensor([0.3])).eval()
    other.load_state_dict(module.state_dict())
    confidence = torch.rand(64, 1)
    assert torch.equal(other(confidence).keep, module.eval()(confidence).keep)
    assert other.log_factor == module.log_factor < 0 and "log_factor" not in KeypointFilter(1).state_dict()


def _one_of_two(rank: int, batches: torch.Tensor, port: int, queue) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    module = KeypointFilter(3, visible=torch.tensor([0.3, 0.5, 0.9]))
    for batch in batches[rank]:
        module(batch)
    queue.put((rank, {name: value.tolist() for name, value in module.state_dict().items()}))
    torch.distributed.destroy_process_group()


def test_two_processes_keep_the_statistics_of_both():
    torch.manual_seed(0)
    batches = torch.rand(2, 5, 4, 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_one_of_two, args=(rank, batches, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    alone = KeypointFilter(3, visible=torch.tensor([0.3, 0.5, 0.9]))
    for both in batches.transpose(0, 1):
        alone(both.flatten(0, 1))
    assert found[0] == found[1]
    for name, value in alone.state_dict().items():
        assert torch.tensor(found[0][name]).tolist() == pytest.approx(value.tolist(), abs=1e-5)


RULES = ("fixed", "adaptive", "flexmatch", "freematch", "softmatch")


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_is_dropped_and_leaves_no_trace(rule):
    generator = torch.Generator().manual_seed(0)
    module, other = KeypointFilter(3, rule=rule), KeypointFilter(3, rule=rule)
    for _ in range(5):
        batch = torch.rand(8, 3, generator=generator)
        module(batch), other(batch)
    batch = torch.rand(8, 3, generator=generator)
    batch[2:4, 1] = torch.tensor([math.nan, math.inf])
    assert module(batch).weight[2:4, 1].eq(0).all()
    counted = torch.cat([batch[:2], batch[4:]])
    other(counted)
    before = {name: value[1] for name, value in other.statistics.named_buffers() if value.ndim}
    for name, value in before.items():
        assert getattr(module.statistics, name)[1].item() == pytest.approx(value.item(), abs=1e-6)


def test_what_is_not_finite_takes_no_place_of_a_floor():
    confidence = torch.tensor([[math.nan, 0.3, 0.2, 0.1]])
    assert KeypointFilter(4, min_keep=0.25).eval()(confidence).keep.tolist() == [[False, True, False, False]]
    by_joint = KeypointFilter(1, percentile=0.25).eval()(confidence.T)
    assert by_joint.keep.flatten().tolist() == [False, True, False, False]


@pytest.mark.parametrize("empty", [torch.empty(0, 3), torch.full((2, 3), math.nan)])
def test_statistics_stand_still_where_nothing_is_counted(empty):
    module, batch = KeypointFilter(3), torch.rand(4, 3)
    for confidence in (empty, batch, empty):
        module(confidence)
    torch.testing.assert_close(module.statistics.mean, batch.mean(0))
    assert module.statistics.updates == 1


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(rule="fancy"), "unknown rule 'fancy'"),
        (dict(limits=(0.6, 0.5)), "limits are"),
        (dict(min_keep=1.5), "min_keep"),
        (dict(warm_up=-1), "warm_up and beta"),
    ],
)
def test_impossible_options_are_named(options, told):
    with pytest.raises(SagecacheError, match=told):
        KeypointFilter(2, **options)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("align", [False, True])
def test_what_is_measured_at_once_is_exact_whatever_came_before(rule, align):
    generator = torch.Generator().manual_seed(0)
    confidence, visible = torch.rand(500, 3, generator=generator), torch.tensor([0.3, 0.5, 0.7])
    module = KeypointFilter(3, rule=rule, visible=visible if align else None)
    for _ in range(3):
        module(torch.rand(8, 3, generator=generator) / 4)
    module.eval()
    assert module.measure(confidence) == (align or rule != "fixed")
    torch.testing.assert_close(module.statistics.mean, confidence.mean(0))
    torch.testing.assert_close(module.statistics.variance, confidence.var(0, correction=0))
    share = torch.cat([module(part).weight for part in confidence.split(64)]).mean(0)
    if align:
        torch.testing.assert_close(share, visible, atol=0.01, rtol=0)


def test_a_measurement_counts_as_one_batch_of_the_warm_up():
    module, confidence = KeypointFilter(2, warm_up=1).eval(), torch.tensor([[0.1, 0.9]])
    assert module.measure(confidence) and module(confidence).keep.all()
    assert module.measure(confidence) and module(confidence).keep.tolist() == [[False, True]]
