from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from sagecache.cli.output import progress
from sagecache.errors import SagecacheError
from sagecache.mm.hooks import IntervalRuntimeInfoHook, JointLogHook, ProgressHook, SemiHook, StreamTrainLoop
from sagecache.mm.samples import EncodedSteps


class Wrapper:
    """An optimiser wrapper that steps every ``counts`` iterations."""

    def __init__(self, counts: int) -> None:
        self._accumulative_counts, self.done = counts, 0

    def should_update(self) -> bool:
        return self.done % self._accumulative_counts == 0


@pytest.mark.parametrize("counts, expected", [(1, [0, 1, 2, 3]), (2, [0, 1])])
def test_steps_and_moves_of_the_ema_are_counted_by_optimiser_step(counts, expected):
    updates: list[int] = []
    model = SimpleNamespace(step=-1, update_ema=updates.append)
    runner = SimpleNamespace(model=model, optim_wrapper=Wrapper(counts), iter=0)
    hook = SemiHook()
    for iteration in range(4):
        runner.iter = iteration
        hook.before_train_iter(runner, iteration)
        assert model.step == iteration // counts
        runner.optim_wrapper.done += 1
        hook.after_train_iter(runner, iteration)
    assert updates == expected


def test_a_step_s_randomness_is_a_function_of_seed_rank_and_step():
    def draw(seed, rank, step):
        runner = SimpleNamespace(model=SimpleNamespace(step=0), optim_wrapper=Wrapper(1), iter=step)
        SemiHook(seed, rank).before_train_iter(runner, step)
        return torch.rand(3).tolist()

    assert draw(1, 0, 7) == draw(1, 0, 7)
    assert len({tuple(draw(*key)) for key in [(1, 0, 7), (2, 0, 7), (1, 1, 7), (1, 0, 8)]}) == 4


class Untouchable:
    """A scalar that must not be copied to the host before the log interval."""

    def __init__(self) -> None:
        self.allowed = False

    def numel(self) -> int:
        return 1

    def item(self) -> float:
        assert self.allowed, "copied to the host within the interval"
        return 2.0


def test_scalars_stay_on_the_device_until_the_log_interval():
    hub = MessageHub.get_instance("test_hooks_interval")
    runner = SimpleNamespace(message_hub=hub, iter=0, max_iters=100)
    runner.train_loop = SimpleNamespace(max_iters=100)
    hook, values = IntervalRuntimeInfoHook(interval=3), [Untouchable() for _ in range(3)]
    for iteration, value in enumerate(values):
        runner.iter = iteration
        if iteration == 2:
            for one in values:
                one.allowed = True
        hook.after_train_iter(runner, iteration, None, {"loss": value})
    history, counts = hub.get_scalar("train/loss").data
    assert list(history) == [2.0, 2.0, 2.0] and len(counts) == 3


def test_progress_names_the_losses():
    hub = MessageHub.get_instance("test_hooks_progress")
    hub.update_scalar("train/loss_consistency", 0.25)
    hub.update_scalar("train/lr", 1e-3)
    said = []
    runner = SimpleNamespace(message_hub=hub, iter=9, max_iters=50)
    hook = ProgressHook(lambda *words: said.append(words), interval=10)
    hook.after_train_iter(runner, 9)
    assert said == [(10, 50, "consistency 0.25")]
    hub.update_scalar("train/loss_cmgc_depth", float("nan"))
    hook.after_train_iter(SimpleNamespace(message_hub=hub, iter=10, max_iters=50), 10)  # not its turn
    with pytest.raises(SagecacheError, match="loss_cmgc_depth is nan at iteration 20"):
        hook.after_train_iter(SimpleNamespace(message_hub=hub, iter=19, max_iters=50), 19)
    assert len(said) == 1


def test_a_run_of_one_interval_has_a_speed(capsys):
    hub = MessageHub.get_instance("one interval")
    with progress("train x") as report:
        hook = ProgressHook(report, interval=10)
        hook.before_train(SimpleNamespace(iter=0, max_iters=4))
        time.sleep(0.02)
        last = SimpleNamespace(message_hub=hub, iter=3, max_iters=4, train_loop=SimpleNamespace(max_iters=4))
        hook.after_train_iter(last, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert 10 < float(line.removeprefix("train x: 4/4, ").removesuffix("/s")) <= 200


def test_a_resumed_stream_starts_at_its_step_and_reads_nothing_before():
    class Sampler:
        start_step = 0

        def __iter__(self):
            step = self.start_step
            while True:
                yield step
                step += 1

    class Loader:
        sampler = Sampler()
        dataset = SimpleNamespace(metainfo=None)

        def __init__(self):
            self.read = []

        def __iter__(self):
            for step in self.sampler:
                self.read.append(step)
                yield {"step": step}

    seen = []
    loader = Loader()
    runner = SimpleNamespace(
        visualizer=SimpleNamespace(dataset_meta=None),
        call_hook=lambda *a, **k: None,
        model=SimpleNamespace(
            train=lambda: None, train_step=lambda batch, optim_wrapper: seen.append(batch["step"])
        ),
        optim_wrapper=None,
        val_loop=None,
    )
    loop = StreamTrainLoop(runner, loader, max_iters=5)
    loop._iter = 3  # as a resumed run finds it
    loop.run()
    assert seen == [3, 4]
    assert loader.read == [3, 4]


class Failing(Dataset):
    def __getitem__(self, index):
        raise SagecacheError("can't be read", file="a.jpg", fix="Mend it.")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_loader_s_worker_met_stays_one_line(workers):
    steps = EncodedSteps(Failing(), encode=None)
    loader = DataLoader(steps, batch_size=None, sampler=SequentialSampler([0, 1]), num_workers=workers)
    runner = SimpleNamespace(
        visualizer=SimpleNamespace(dataset_meta=None),
        call_hook=lambda *a, **k: None,
        model=SimpleNamespace(train=lambda: None),
    )
    loader.dataset.metainfo = None
    with pytest.raises(SagecacheError, match=r"^a.jpg: can't be read. Mend it.$") as caught:
        StreamTrainLoop(runner, loader, max_iters=2).run()
    assert caught.value.fix == "Mend it."


def test_joints_are_logged_as_means_since_the_last_interval():
    logged, hook = [], JointLogHook(["nose", "wrist"], interval=2)
    keypoint_filter = SimpleNamespace(threshold_by_joint=torch.tensor([0.5, 0.4]))
    model = SimpleNamespace(last_labels=None, labeler=SimpleNamespace(keypoint_filter=keypoint_filter))
    visualizer = SimpleNamespace(add_scalars=lambda figures, step: logged.append((step, figures)))
    runner = SimpleNamespace(model=model, visualizer=visualizer, iter=0, max_iters=5)
    runner.train_loop = SimpleNamespace(max_iters=5)
    keeps = [[[1, 0], [1, 1]], [[0, 0], [1, 1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]], [[1, 0], [1, 0]]]
    for runner.iter, keep in enumerate(keeps):
        keep = torch.tensor(keep).bool()
        model.last_labels = SimpleNamespace(keep=keep, confidence=torch.full((2, 2), 0.1 * runner.iter))
        hook.after_train_iter(runner, runner.iter)
    assert [step for step, _ in logged] == [2, 4, 5]
    assert [figures["joints/kept/wrist"] for _, figures in logged] == [0.5, 0.5, 0.0]
    assert [figures["joints/kept/nose"] for _, figures in logged] == [0.75, 0.5, 1.0]
    confidence = [figures["joints/confidence/nose"] for _, figures in logged]
    assert confidence == pytest.approx([0.05, 0.25, 0.4])
    assert logged[0][1]["joints/threshold/wrist"] == pytest.approx(0.4)
