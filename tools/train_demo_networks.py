#!/usr/bin/env python
"""Train the three networks of the demo project, as the committed ones were trained.

    python tools/train_demo_networks.py all --data /path/to/scratch --threads 2

Renders what it needs into --data, trains, prints a curve against the unseen target look, and writes
<name>.safetensors to --out (the package's own folder by default). `--resume` goes on after a kill.
Under torchrun (`torchrun --nproc-per-node 2 tools/train_demo_networks.py geometry …`, once the pictures are
rendered) the processes share each step.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # one thread a process; --threads counts processes' threads below

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import cv2  # noqa: E402
import torch  # noqa: E402
from demo_networks import detector, geometry, student  # noqa: E402
from demo_networks.training import Batches, Run, Schedule, fit, save_half  # noqa: E402
from demo_networks.world import World, render_world  # noqa: E402

from sagecache.models.convnet import GeometryNet, PersonDetector  # noqa: E402

# Seeds of the looks. The project's own splits have other seeds; VALIDATION is never trained on.
GENERIC = dict(look="generic", seed=11, count=6000)
INFANTS = dict(look="infants", seed=21, count=6000)
SOURCE = dict(look="source", seed=12, count=3200)
SOURCE_HELD_OUT = dict(look="source", seed=13, count=200)
VALIDATION = dict(look="target", seed=900, count=300)

# The committed geometry teacher had started on the look `generic` before `infants` was there, and took three
# hours of two cores in all.
MINUTES = dict(geometry=150.0, detector=20.0, student=10.0)


def train_geometry(options: argparse.Namespace) -> None:
    world = _world(options, INFANTS).readable()
    evaluation = geometry.Evaluation(_world(options, VALIDATION).readable())
    schedule = Schedule(
        minutes=options.minutes or MINUTES["geometry"], peak=2e-3, muon=0.015, every=options.every
    )
    run = _run(options, "geometry", GeometryNet(), schedule)
    batches = Batches(geometry.CropSource(world, 20), seed=1)
    if fit(run, batches, geometry.loss, evaluation, _publisher(options, "geometry"), options.workers):
        print("with the mirror image:", evaluation(run.ema, flip_test=True))


def train_detector(options: argparse.Namespace) -> None:
    frames = detector.Frames([_world(options, GENERIC), _world(options, SOURCE)])
    evaluation = detector.Evaluation(_world(options, VALIDATION))
    schedule = Schedule(minutes=options.minutes or MINUTES["detector"], peak=2e-3, every=options.every)
    run = _run(options, "detector", PersonDetector(), schedule)
    batches = Batches(detector.FrameSource(frames), seed=2)
    fit(run, batches, detector.loss, evaluation, _publisher(options, "detector"), options.workers)


def train_student(options: argparse.Namespace) -> None:
    table = student.CropTable(_world(options, SOURCE).readable(900))
    held_out = student.CropTable(_world(options, SOURCE_HELD_OUT).readable(900))
    target = student.CropTable(_world(options, VALIDATION).readable(900))
    evaluation = student.Evaluation(dict(source=held_out, target=target))
    schedule = Schedule(minutes=options.minutes or MINUTES["student"], peak=1.5e-3, every=options.every)
    run = _run(options, "student", student.PoseModel(), schedule)
    batches = Batches(student.ViewSource(table), seed=3)
    fit(run, batches, student.loss, evaluation, _publisher(options, "student"), options.workers)


def _world(options: argparse.Namespace, split: dict) -> World:
    count = split["count"] if options.images is None else min(options.images, split["count"])
    return render_world(options.data, split["look"], split["seed"], count, options.render_workers)


def _run(options: argparse.Namespace, name: str, net: torch.nn.Module, schedule: Schedule) -> Run:
    net = net.to(memory_format=torch.channels_last)
    run = Run(net, schedule, options.data / "runs", name, options.resume)
    if options.compile:
        run.net.compile(dynamic=False)
    return run


def _publisher(options: argparse.Namespace, name: str):
    options.out.mkdir(parents=True, exist_ok=True)
    return lambda net: save_half(net.state_dict(), options.out / f"{name}.safetensors")


TASKS = dict(student=train_student, detector=train_detector, geometry=train_geometry)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=[*TASKS, "all"])
    parser.add_argument("--minutes", type=float, help=f"of training (default {MINUTES})")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    parser.add_argument("--render-workers", type=int, default=2, help="processes that render")
    parser.add_argument("--every", type=float, default=4.0, help="minutes between marks and checkpoints")
    parser.add_argument("--images", type=int, help="render at most so many images a look (for a trial)")
    parser.add_argument("--data", type=Path, default=Path("demo_networks_data"), help="scratch folder, 4 GB")
    parser.add_argument("--out", type=Path, default=ROOT / "sagecache" / "models" / "weights")
    parser.add_argument("--compile", action="store_true", help="half again as fast; needs a C++ compiler")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --data")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(options.threads)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    for name in TASKS if options.network == "all" else [options.network]:
        torch.manual_seed(0)
        TASKS[name](options)


if __name__ == "__main__":
    main()
