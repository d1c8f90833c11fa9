"""Which of the scalars that a run logged stand together in a chart, and in which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sagecache.project.run_log import Curve
from sagecache.visualization.charts import Chart, Line

# Shown joint by joint in a table, or the sum of what is shown.
_ELSEWHERE = ("joints/", "probe/precision/", "probe/kept/")
_SUM = ("loss",)
WIDE = 20.0  # values this many times apart need a logarithmic axis


class _Panel(NamedTuple):
    """names: logged name -> words; a name that ends in * stands for all that begin so. log: where needed."""

    title: str
    names: Mapping[str, str]
    note: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False


PANELS = (
    _Panel(
        "Validation",
        {
            "keypoints/PCK@0.05": "PCK@0.05",
            "keypoints/PCK@0.1": "PCK@0.1",
            "keypoints/AP": "AP",
            "keypoints/AR": "AR",
        },
        "of the EMA teacher, on the labeled validation split",
        low=0.0,
    ),
    _Panel("Losses", {"loss_*": ""}, "times weight and ramp", log=True),
    _Panel(
        "Joints learned from",
        {"keep_mean": "kept", "rescued_share": "rescued"},
        "share of all joints of the unlabeled batch",
        low=0.0,
        high=1.0,
    ),
    _Panel(
        "Confidence",
        {
            "confidence_mean": "teacher, mean",
            "confidence_max": "teacher, highest",
            "consistency_student_peak": "student's peak",
            "plausibility_mean": "plausibility (KPS)",
        },
        "1 is the peak of a perfect map",
        low=0.0,
        high=1.0,
    ),
    _Panel(
        "Who teaches",
        {
            "num_use_teacherA": "A, the EMA teacher",
            "num_use_teacherB": "B, by the prior",
            "num_unused": "nobody",
        },
        "persons of an unlabeled batch",
        low=0.0,
    ),
    _Panel(
        "Labeled probe",
        {"probe/precision": "right among kept", "probe/kept": "kept"},
        "labeled persons treated as unlabeled ones",
        low=0.0,
        high=1.0,
    ),
    _Panel("What the filters did", {"fate/*": ""}, "share of all joints", log=True),
    _Panel("Learning rate", {"lr": "learning rate"}, low=0.0),
)


def charts_of(
    curves: Mapping[str, Curve],
    weights: Mapping[str, float],
    ramp_end: int = 0,
    fates: Mapping[str, str] = MappingProxyType({}),
) -> tuple[list[Chart], list[Chart]]:
    """The panels that have data, and a small chart for every scalar that is in none of them.

    weights: of terms, told beside their losses. ramp_end: step at which they are full; 0: from the start.
    fates: name of a filter's reason -> words, in the order in which they are listed.
    """
    main, used = [], set()
    for panel in PANELS:
        found = _found(panel, curves, fates)
        used |= {name for name, _ in found}
        lines = [_line(name, words, curves, weights, fates) for name, words in found]
        if lines:
            marks = [(ramp_end, "full weight")] if ramp_end and panel.title == "Losses" and weights else []
            log = panel.log and _spread(lines) > WIDE
            note = f"{panel.note}; logarithmic axis" if log else panel.note
            main.append(Chart(panel.title, lines, note, log, panel.low, panel.high, marks))
    rest = [name for name in curves if name not in used and name not in _SUM]
    rest = [name for name in rest if not name.startswith(_ELSEWHERE)]
    more = [Chart(_words(name), [Line(_words(name), *curves[name])]) for name in sorted(rest)]
    return main, more


def _spread(lines: Sequence[Line]) -> float:
    """The largest over the smallest value above 0."""
    values = np.concatenate([line.values for line in lines])
    values = values[np.isfinite(values) & (values > 0)]
    return float(values.max() / values.min()) if len(values) else 1.0


def _found(panel: _Panel, curves: Mapping[str, Curve], fates: Mapping[str, str]) -> list[tuple[str, str]]:
    order = {f"fate/{name}": place for place, name in enumerate(fates)}
    found: list[tuple[str, str]] = []
    for name, words in panel.names.items():
        if name.endswith("*"):
            begun = [one for one in sorted(curves) if one.startswith(name[:-1])]
            found += [(one, "") for one in sorted(begun, key=lambda one: order.get(one, len(order)))]
        elif name in curves:
            found.append((name, words))
    return found


def _line(
    name: str,
    words: str,
    curves: Mapping[str, Curve],
    weights: Mapping[str, float],
    fates: Mapping[str, str],
) -> Line:
    if name.startswith("loss_"):
        term = name.removeprefix("loss_")
        note = f"× {weights[term]:g}" if term in weights else ""
        return Line("labels (kpt)" if term == "kpt" else _words(term), *curves[name], note)
    if name.startswith("fate/"):
        own = name.removeprefix("fate/")
        return Line(fates.get(own, _words(own)), *curves[name])
    return Line(words or _words(name), *curves[name])


def _words(name: str) -> str:
    return name.removeprefix("keypoints/").replace("_", " ").replace("/", ": ")


def last_values(curves: Mapping[str, Curve], prefix: str, names: Sequence[str]) -> list[float | None]:
    """What was last logged of prefix + name, for each name; None where nothing was."""
    found = (curves.get(prefix + name) for name in names)
    return [None if curve is None else float(curve.values[-1]) for curve in found]
