"""What the three trainings share: a learning rate that follows the clock, an average of the weights,
checkpoints that survive a kill, and a printed curve. Knows nothing of the networks' tasks.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

Losses = tuple[Tensor, dict[str, Tensor]]

PAUSE = 10.0  # seconds: a step that took longer was a machine that slept


@dataclass(frozen=True)
class Schedule:
    """minutes of training (evaluation not counted), a mark on the curve every `every` minutes.

    peak: learning rate of AdamW.
    """

    minutes: float
    every: float = 5.0
    peak: float = 3e-3
    weight_decay: float = 0.02
    muon: float = 0.0  # peak rate of hidden convolutions by Muon; 0: AdamW for them too
    decay: float = 0.998  # of the average of the weights
    warmup: float = 0.05  # share of the minutes

    def share(self, progress: float) -> float:
        """Of the peak rates: warm-up, then a cosine down to 1 %; progress in [0, 1]."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.02)
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        return max(cosine, 0.01)


class Batches(IterableDataset):
    """Endless batches by make(rng) in worker processes.

    start: samples that the run has seen; part of the seed, so that a resumed run does not see them again.
    """

    def __init__(self, make: Callable[[np.random.Generator], tuple], seed: int) -> None:
        self.make, self.seed, self.start = make, seed, 0

    def __iter__(self) -> Iterator[tuple]:
        worker = get_worker_info()
        torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, worker.id if worker else 0, self.start])
        while True:
            yield self.make(rng)

    def loader(self, workers: int) -> Iterable[tuple]:
        options = dict(num_workers=workers, prefetch_factor=3) if workers else {}
        return DataLoader(self, batch_size=None, **options)


@torch.no_grad()
def average(ema: nn.Module, net: nn.Module, step: int, decay: float) -> None:
    """Move ema towards net, weights and BatchNorm statistics alike; faster while the run is young."""
    keep = min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - keep)
        else:
            ours.copy_(theirs)


class Muon(torch.optim.Optimizer):
    """Steps of orthogonal matrices for convolutions (Jordan et al. 2024); torch's own takes no kernels.

    A kernel is one matrix with a row per output channel. 10,000 samples bring the geometry teacher 0.3
    degrees further than AdamW's.
    """

    def __init__(self, params: list[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                direction = weight.grad.lerp(mean, group["momentum"]).flatten(1)  # Nesterov
                rows, columns = direction.shape
                length = group["lr"] * max(1.0, rows / columns) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(orthogonal(direction).view_as(weight), alpha=length)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrix of unit singular values, nearly (0.7 to 1.2): Newton-Schulz iterations, quintic."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def make_optimizers(net: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW, without weight decay for vectors; with `schedule.muon`, Muon for hidden convolutions."""
    hidden, rest = [], []
    for name, weight in net.named_parameters():
        kernel = weight.ndim == 4 and not name.startswith(("stem", "output"))
        (hidden if schedule.muon and kernel else rest).append(weight)
    groups = [
        dict(params=[p for p in rest if p.ndim > 1], weight_decay=schedule.weight_decay),
        dict(params=[p for p in rest if p.ndim < 2], weight_decay=0.0),
    ]
    optimizers = [torch.optim.AdamW(groups, schedule.peak)]
    if hidden:
        optimizers.append(Muon(hidden, schedule.muon, schedule.weight_decay))
    return optimizers


def save_half(state: dict[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, floats in half precision; the file appears whole or not at all."""
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    part = path.with_suffix(".part")
    save_file(half, part)
    os.replace(part, path)


class Run:
    """One training that can be killed: network, average, optimiser, seconds spent and curve."""

    def __init__(self, net: nn.Module, schedule: Schedule, folder: Path, name: str, resume: bool) -> None:
        self.net, self.schedule, self.name = net, schedule, name
        self.ema = copy.deepcopy(net).eval()
        self.optimizers = make_optimizers(net, schedule)
        self.peaks = [optimizer.defaults["lr"] for optimizer in self.optimizers]
        self.step, self.samples, self.spent, self.curve = 0, 0, 0.0, []
        self.checkpoint = folder / f"{name}.ckpt"
        self.curve_file = folder / f"{name}_curve.json"
        folder.mkdir(parents=True, exist_ok=True)
        if resume and self.checkpoint.exists():
            self._load()

    @property
    def progress(self) -> float:
        return min(self.spent / (60 * self.schedule.minutes), 1.0)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.samples, self.spent = state["step"], state["samples"], state["spent"]
        self.curve = state["curve"]
        print(f"{self.name}: resumed at step {self.step}, {self.spent / 60:.1f} min", flush=True)

    def save(self) -> None:
        state = dict(net=self.net.state_dict(), ema=self.ema.state_dict())
        state.update(optimizers=[optimizer.state_dict() for optimizer in self.optimizers], curve=self.curve)
        state.update(step=self.step, samples=self.samples, spent=self.spent)
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)
        self.curve_file.write_text(json.dumps(self.curve, indent=1))

    def learn(self, loss: Tensor, count: int) -> None:
        """One optimiser step on a batch of `count` samples."""
        self.net.zero_grad()
        loss.backward()
        if dist.is_initialized():
            self._agree()
            count *= dist.get_world_size()
        share = self.schedule.share(self.progress)  # of the clock that all agree on
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * peak
        nn.utils.clip_grad_norm_(self.net.parameters(), 2.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        self.samples += count
        average(self.ema, self.net, self.step, self.schedule.decay)

    def _agree(self) -> None:
        """Take the mean of all processes' gradients and clocks."""
        gradients = [p.grad for p in self.net.parameters()]
        sizes = [g.numel() for g in gradients] + [1]
        flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor([self.spent])])
        dist.all_reduce(flat)
        *parts, spent = (flat / dist.get_world_size()).split(sizes)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        self.spent = spent.item()


def fit(
    run: Run,
    batches: Batches,
    loss: Callable[[nn.Module, tuple], Losses],
    evaluate: Callable[[nn.Module], dict[str, float]],
    publish: Callable[[nn.Module], None],
    workers: int = 1,
) -> dict[str, float]:
    """Train until the schedule's minutes are spent; returns the last mark of the curve.

    Every `schedule.every` minutes: evaluate the averaged network, print a mark, write the checkpoint
    and publish the weights, so that a kill loses that much at most. Under torchrun the first process does so.
    """
    schedule, running = run.schedule, {}
    rank = dist.get_rank() if dist.is_initialized() else 0
    batches.start = run.samples + rank
    next_mark = run.spent + 60 * schedule.every
    run.net.train()
    last = time.perf_counter()
    for batch in batches.loader(workers):
        value, parts = loss(run.net, batch)
        now = time.perf_counter()
        run.spent, last = run.spent + min(now - last, PAUSE), now
        run.learn(value, len(batch[0]))
        for key, part in parts.items():
            running[key] = 0.98 * running.get(key, float(part)) + 0.02 * float(part)
        if rank == 0 and (run.spent >= next_mark or run.progress >= 1):
            next_mark = run.spent + 60 * schedule.every
            mark = dict(minute=round(run.spent / 60, 1), samples=run.samples)
            mark.update({f"loss_{key}": round(part, 3) for key, part in running.items()})
            mark.update({key: round(part, 4) for key, part in evaluate(run.ema).items()})
            run.curve.append(mark)
            print(run.name, json.dumps(mark), flush=True)
            run.save()
            publish(run.ema)
            last = time.perf_counter()
        if run.progress >= 1:
            break
    return run.curve[-1] if rank == 0 else {}
