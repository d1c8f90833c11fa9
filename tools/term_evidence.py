#!/usr/bin/env python
"""Ask each term of a stage-1 recipe, where the truth is known, which way it moves the student's joints.

    python tools/term_evidence.py

The student, as the recipe starts from it, sees strong views of persons whose keypoints are known and not
shown. For every joint: does a small step down the term's gradient bring it closer to the truth? Prints a
Markdown table; a coin gives 50 % closer. Run it where the demo ran, or let it make what it needs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sagecache.cli.actions import ensure  # noqa: E402
from sagecache.data.dataset import UnlabeledViews, collate  # noqa: E402
from sagecache.data.sampling import Draw  # noqa: E402
from sagecache.geometry.affine import is_mirrored, swap_mirrored, transform_points  # noqa: E402
from sagecache.geometry.sampling import inside  # noqa: E402
from sagecache.mm.build import build_estimator  # noqa: E402
from sagecache.mm.codecs import codec_of  # noqa: E402
from sagecache.mm.estimator import SemiPoseEstimator  # noqa: E402
from sagecache.mm.outputs import network_maps  # noqa: E402
from sagecache.project import Project, Recipe  # noqa: E402

WRONG = 0.05  # of the box's diagonal, as PCK@0.05


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="stage1-full")
    parser.add_argument("--start", help="a checkpoint for student and teacher. Default: the recipe's")
    parser.add_argument("--split", default="val")
    parser.add_argument("--views", type=int, default=4, help="strong views of each person")
    parser.add_argument("--project", type=Path, help="default: the demo")
    options = parser.parse_args()

    project = Project.open(options.project)
    start = {"load_from": str(Path(options.start).resolve())} if options.start else {}
    recipe, model = project.recipe(options.recipe, start)
    ensure(project, project.requirements(recipe))
    ensure(project, project.split_requirements(options.split, geometry=True))
    estimator = build_estimator(project, recipe, model).eval()
    estimator.step = recipe.train_cfg.max_iters  # past every ramp-up
    views = views_of(project, recipe, model, options)

    torch.manual_seed(0)
    error, rates = [], {name: [] for name in estimator.terms}
    for first in range(0, len(views), recipe.batch.unlabeled):
        indices = range(first, min(first + recipe.batch.unlabeled, len(views)))
        each, moves = directions(estimator, *batch_of(views, indices, options.views))
        error.append(each)
        for name, rate in moves.items():
            rates[name].append(rate)
    write_table(torch.cat(error), {name: torch.cat(each) for name, each in rates.items()})


def views_of(project: Project, recipe: Recipe, model: dict, options: argparse.Namespace) -> UnlabeledViews:
    return UnlabeledViews(
        project.instances(options.split, "annotations"),
        project.targets(options.split),
        tuple(codec_of(model)["input_size"]),
        recipe.views.padding,
        recipe.views.weak,
        recipe.views.strong,
        num_strong_views=options.views,
        on_missing="skip",
    )


def batch_of(views: UnlabeledViews, indices: range, count: int) -> tuple[dict, Tensor, Tensor]:
    """The batch as in training, and each strong view's truth: keypoints (B*M, K, 3), diagonals (B*M,)."""
    batch = collate([views.views(Draw(index, (0, index))) for index in indices])
    batch |= {name: torch.from_numpy(value) for name, value in views.read_targets(indices).items()}
    instances = [views.instances[index] for index in indices]
    truth = torch.stack([torch.from_numpy(one.keypoints).float() for one in instances])
    diagonal = torch.tensor([(one.bbox[2] ** 2 + one.bbox[3] ** 2) ** 0.5 for one in instances])
    return batch, truth.repeat_interleave(count, 0), diagonal.repeat_interleave(count, 0)


def directions(
    estimator: SemiPoseEstimator, unlabeled: dict, truth: Tensor, diagonal: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Errors (B*M, K, 2) of student and EMA teacher in box diagonals, NaN where unknown or out of the view.

    By term, (B*M, K): how fast half the student's squared error falls along the term's weighted descent of
    the student's maps; positive is closer, 0 is left alone.
    """
    network = estimator.student
    with torch.no_grad():
        maps, _ = network_maps(network, estimator.normalise(unlabeled["strong"].flatten(0, 1)))
    maps = maps.requires_grad_()
    batch = estimator.unlabeled_batch(maps, unlabeled, estimator.pseudo_labels(unlabeled))
    view, mirrored = batch.strong_from_image, is_mirrored(batch.strong_from_image)

    def seen(keypoints: Tensor) -> Tensor:
        return swap_mirrored(transform_points(view, keypoints), mirrored, estimator.labeler.flip_indices)

    place = seen(truth[..., :2])
    known = swap_mirrored(truth[..., 2:] > 0, mirrored, estimator.labeler.flip_indices)[..., 0]
    known &= inside(place, tuple(reversed(unlabeled["strong"].shape[-2:])))
    unit = (diagonal * view[:, :2, :2].det().abs().sqrt())[:, None, None]  # view pixels
    student = (batch.student_keypoints - place) / unit
    teacher = (seen(batch.pseudo_labels.keypoints) - place) / unit
    (back,) = torch.autograd.grad(student.square().sum() / 2, maps, retain_graph=True)
    rates = {}
    for name, term in estimator.terms.items():
        loss = estimator.term_weights[name] * term(batch).loss
        (down,) = torch.autograd.grad(loss, maps, retain_graph=True)
        rates[name] = (back * down).sum((-2, -1)) * len(maps)  # a smaller last batch counts alike
    error = torch.stack([student.detach().norm(dim=-1), teacher.norm(dim=-1)], -1)
    return error.masked_fill(~known.unsqueeze(-1), torch.nan), rates


def write_table(error: Tensor, rates: dict[str, Tensor]) -> None:
    student, teacher = error.unbind(-1)
    known, wrong = student.isfinite(), student > WRONG
    groups = {
        "student wrong, teacher right": wrong & (teacher <= WRONG),
        "both wrong": wrong & (teacher > WRONG),
        "student right": student <= WRONG,
    }
    header = [
        "term",
        *(f"{name} ({int(group.sum()):,} joints)" for name, group in groups.items()),
        "strength",
    ]
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    strongest = max(rate[known].abs().sum() for rate in rates.values())
    for name, rate in rates.items():
        row = [name]
        for group in groups.values():
            moved = rate[group] != 0
            closer = (rate[group][moved] > 0).float().mean()
            row.append(f"{100 * moved.float().mean():.0f} % moved, {100 * closer:.0f} % of them closer")
        row.append(f"{rate[known].abs().sum() / strongest:.2f}")
        print("| " + " | ".join(row) + " |")
    print(f"\nWrong is further from the truth than {WRONG} of the box's diagonal.")


if __name__ == "__main__":
    main()
