"""What an ablation found, one content in three forms: JSON, Markdown, tables of the console."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from sagecache.errors import SagecacheError, counted
from sagecache.evaluation.bootstrap import ArmBootstrap, Estimate
from sagecache.evaluation.keypoints import KeypointReport
from sagecache.store.files import write_whole

if TYPE_CHECKING:
    from sagecache.project.ablation import Ablation

METRICS = ("AP", "AP50", "PCK@0.05", "PCK@0.1")
JUDGED = {
    "PCK@0.05": 1000,
    "AP": 300,
}  # with intervals, from so many draws: those of AP cost a hundred times more
Row = list[str]


@dataclass(frozen=True)
class Found:
    """reports: arm -> draw -> report. missing: what has none, with the reason."""

    name: str
    command: str
    ablation: Ablation
    split: str
    draws: Sequence[int]
    labels: int | None
    reports: Mapping[str, Mapping[int, KeypointReport]]
    missing: Mapping[str, str]


def summary(found: Found) -> dict[str, Any]:
    """Plain values, fractions. 'arms' holds each arm's means under the metrics' names."""
    ablation, some = found.ablation, {name: one for name, one in found.reports.items() if one}
    judges = {metric: ArmBootstrap(some, metric, n) for metric, n in JUDGED.items()} if some else {}

    def compared(weights: Mapping[str, float]) -> dict[str, dict] | None:
        if not all(arm in some for arm in weights):
            return None
        return {metric: _plain(judge.contrast(weights)) for metric, judge in judges.items()}

    arms = {}
    for name, reports in some.items():
        arm = ablation.arms[name]
        arms[name] = dict(
            recipe=arm.recipe, overrides=dict(arm.overrides), asks=arm.asks, seeds=sorted(reports)
        )
        arms[name] |= _means(list(reports.values()))
        if name != ablation.control:
            arms[name]["difference"] = compared({name: 1.0, ablation.control: -1.0})
        ends = (ablation.floor, ablation.ceiling)
        if name not in ends and all(end in some for end in ends):
            arms[name]["gap_closed"] = {
                metric: _plain(judge.gap_closed(name, *ends)) for metric, judge in judges.items()
            }
    groups = {
        name: dict(
            asks=group.asks,
            first=group.arms[0],
            differences={arm: compared({arm: 1.0, group.arms[0]: -1.0}) for arm in group.arms[1:]},
        )
        for name, group in ablation.groups.items()
    }
    contrasts = {
        name: dict(asks=one.asks, weights=dict(one.weights), estimate=compared(one.weights))
        for name, one in ablation.contrasts.items()
    }
    content = dict(name=found.name, command=found.command, seeds=len(found.draws), labels=found.labels)
    content |= dict(
        split=found.split, control=ablation.control, floor=ablation.floor, ceiling=ablation.ceiling
    )
    content |= _conventions(some)
    return content | dict(arms=arms, groups=groups, contrasts=contrasts, missing=dict(found.missing))


def _conventions(reports: Mapping[str, Mapping[int, KeypointReport]]) -> dict[str, Any]:
    first = next((report for seeds in reports.values() for report in seeds.values()), None)
    if first is None:
        return {}
    return dict(
        images=len(first.image_ids),
        persons=first.persons,
        area_rule=first.area_rule,
        pck_normaliser=first.normaliser,
    )


def _means(reports: Sequence[KeypointReport]) -> dict[str, float | None]:
    """None where a figure can't be measured."""
    each = [report.as_dict() for report in reports]
    return {
        metric: None if any(one[metric] is None for one in each) else sum(o[metric] for o in each) / len(each)
        for metric in METRICS
    }


def _plain(estimate: Estimate) -> dict[str, Any]:
    return asdict(estimate)


# -- tables ------------------------------------------------------------------------------------------


def arm_table(content: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Columns and rows of the arms, percent."""
    control, gaps = content["control"], content["floor"] is not None
    columns = ["arm", "what it asks", *METRICS]
    columns += ["gap closed, PCK@0.05", "gap closed, AP"] if gaps else []
    columns += [f"PCK@0.05 by seed, less {control}", "mean, 95% interval", "AP, 95% interval"]
    rows = []
    for name, arm in content["arms"].items():
        row = [name, arm["asks"], *("-" if arm[m] is None else f"{100 * arm[m]:.1f}" for m in METRICS)]
        if gaps:
            gap = arm.get("gap_closed") or {}
            row += [_share(gap.get("PCK@0.05")), _share(gap.get("AP"))]
        difference = arm.get("difference") or {}
        pck = difference.get("PCK@0.05")
        row += [_by_seed(pck), _interval(pck), _interval(difference.get("AP"))]
        rows.append(row)
    return columns, rows


def group_table(content: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Columns and rows of the questions: each arm less the first of its group, and the contrasts."""
    rows = []
    for name, group in content["groups"].items():
        for arm, difference in group["differences"].items():
            if difference is not None:
                rows.append([name, group["asks"], f"{arm} - {group['first']}", *_both(difference)])
    for name, one in content["contrasts"].items():
        if one["estimate"] is not None:
            rows.append([name, one["asks"], _formula(one["weights"]), *_both(one["estimate"])])
    return ["ablation", "question", "difference", "PCK@0.05, 95% interval", "AP, 95% interval"], rows


def _both(difference: Mapping) -> Row:
    return [_interval(difference[metric]) for metric in JUDGED]


def _formula(weights: Mapping[str, float]) -> str:
    signs = ("-" if weight < 0 else "+" for weight in weights.values())
    counts = ("" if abs(weight) == 1 else f"{abs(weight):g} " for weight in weights.values())
    return " ".join(f"{s} {c}{arm}" for s, c, arm in zip(signs, counts, weights, strict=True)).removeprefix(
        "+ "
    )


def _by_seed(estimate: Mapping | None) -> str:
    return "" if estimate is None else ", ".join(_signed(100 * one) for one in estimate["by_seed"].values())


def _interval(estimate: Mapping | None) -> str:
    return "" if not _known(estimate) else "{} [{}, {}]".format(*map(_signed, _percent(estimate)))


def _share(estimate: Mapping | None) -> str:
    return "" if not _known(estimate) else "{:.0f}% [{:.0f}, {:.0f}]".format(*_percent(estimate))


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # no -0.0


def _known(estimate: Mapping | None) -> bool:
    return estimate is not None and not math.isnan(estimate["value"])


def _percent(estimate: Mapping) -> list[float]:
    return [100 * estimate[key] for key in ("value", "low", "high")]


def footnotes(content: Mapping[str, Any]) -> list[str]:
    """What was measured, how, and what is missing."""
    lines = []
    if "images" in content:
        lines.append(
            f"Split `{content['split']}`: {content['images']} images, {content['persons']} persons; mean of "
            f"{counted(content['seeds'], 'seed')}; percent. OKS area {content['area_rule']}; PCK of "
            f"{content['pck_normaliser']}. Remade by `{content['command']}`."
        )
    if content.get("max_iters"):
        lines.append(f"Trials: every arm was trained for {counted(content['max_iters'], 'iteration')} alone.")
    lines.append(_about_intervals(content["seeds"]))
    fewer = {name: len(arm["seeds"]) for name, arm in content["arms"].items()}
    fewer = [f"{name} {count}" for name, count in fewer.items() if count < content["seeds"]]
    if fewer:
        lines.append(
            f"Fewer seeds: {', '.join(fewer)}. Their means are of these alone, and a difference is of the "
            "seeds that both arms have, its interval as wide as these ask."
        )
    for name, why in content["missing"].items():
        lines.append(f"Missing: {name} ({why}).")
    return lines


def _about_intervals(seeds: int) -> str:
    if seeds == 1:
        return "Intervals are over test images alone: one seed says nothing of how far seeds lie apart."
    within = 100 - 200 / 2**seeds  # the mean of a symmetric distribution is its median
    coarse = (
        f"; the true mean lies between the least and the largest of {seeds} seeds {within:.0f}% of the time"
    )
    return (
        "Intervals: bootstrap over test images and over seeds, each with labels of its own, the same draws "
        f"for both arms; the seeds' part as wide as Student's with {counted(seeds - 1, 'degree')} of "
        f"freedom{coarse}."
    )


def markdown(content: Mapping[str, Any]) -> list[str]:
    lines = _markdown_table(*arm_table(content))
    columns, rows = group_table(content)
    if rows:
        lines += ["", *_markdown_table(columns, rows)]
    for line in footnotes(content):
        lines += ["", line]
    return lines


def _markdown_table(columns: Row, rows: Sequence[Row]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]


def check_page(page: Path, name: str) -> None:
    """Raise SagecacheError where `write_table` could not write: before a training, rather than after it."""
    _around(page, name)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=page.parent):
            pass
    except OSError as error:
        raise SagecacheError(
            f"no file can be written into its folder ({error.strerror})", file=page, fix="Name another."
        ) from error


def write_table(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between the ablation's markers; without markers, add it at the page's end.

    The words around it are written by hand: the whole page is written, or none. Raises SagecacheError for a
    page that is no UTF-8, or whose markers are no pair.
    """
    before, after = _around(page, name)
    begin, end = _markers(name)
    page.parent.mkdir(parents=True, exist_ok=True)
    text = before + begin + "\n" + "\n".join(lines) + f"\n{end}" + after
    write_whole(page.resolve(), text.encode("utf-8"))


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- ablate {name}: begin -->", f"<!-- ablate {name}: end -->"


def _around(page: Path, name: str) -> tuple[str, str]:
    """What stands on the page before the ablation's table and after it."""
    begin, end = _markers(name)
    try:
        text = page.read_bytes().decode("utf-8") if page.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise SagecacheError(
            f"can't be read as UTF-8 text: {error}", file=page, fix="Convert it, or name another page."
        ) from error
    if begin not in text and end not in text:
        return f"{text.rstrip()}\n\n## Ablation {name}\n\n".lstrip(), "\n"
    for marker, other in ((begin, end), (end, begin)):
        if text.count(marker) != 1:
            raise SagecacheError(
                f"'{marker}' stands there {text.count(marker)} times",
                file=page,
                fix=f"The table goes between this marker and '{other}': leave one of each, or neither.",
            )
    before, rest = text.split(begin)
    if end not in rest:
        raise SagecacheError(f"'{end}' stands before '{begin}'", file=page, fix="Swap them.")
    return before, rest.split(end)[1]
