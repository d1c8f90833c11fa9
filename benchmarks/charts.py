"""The charts of RESULTS.md, drawn from the sections' values: one a section that has something to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

OWN_COLOUR, COLOUR, COLD = "#c44e52", "#8c9bb0", "#3d5a80"


def draw(folder: Path, values: Mapping[str, dict]) -> dict[str, str]:
    """Write PNGs for the sections that are there; returns section -> path beside RESULTS.md."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for name, chart in CHARTS.items():
        if name in values:
            figure = chart(pyplot, values[name])
            figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
            pyplot.close(figure)
            pictures[name] = f"{folder.name}/{name}.png"
    return pictures


def reading(pyplot, values: dict):
    """CPU of a random read against ours, a panel a size."""
    figure, axes = pyplot.subplots(1, len(values), figsize=(6 * len(values), 4.5), squeeze=False)
    for axis, (size, ways) in zip(axes[0], values.items(), strict=True):
        ratios = sorted(((one["cpu_ratio"], name) for name, one in ways.items()), reverse=True)
        colours = [OWN_COLOUR if name == "sagecache" else COLOUR for _, name in ratios]
        axis.barh([name for _, name in ratios], [ratio for ratio, _ in ratios], color=colours)
        axis.set(xscale="log", xlabel="CPU of a random read, sagecache = 1", title=size)
        axis.axvline(1, color=OWN_COLOUR, linewidth=0.8)
    figure.tight_layout()
    return figure


def loading(pyplot, values: dict):
    """Instances a second of the two-worker loader, warm and cold."""
    figure, axes = pyplot.subplots(1, len(values), figsize=(6 * len(values), 4.5), squeeze=False)
    for axis, (size, states) in zip(axes[0], values.items(), strict=True):
        warm, cold = states["2 workers, warm"], states["2 workers, cold"]
        names = sorted(warm, key=warm.get)
        places = range(len(names))
        axis.barh([k + 0.2 for k in places], [warm[name] for name in names], 0.4, label="warm", color=COLOUR)
        axis.barh([k - 0.2 for k in places], [cold[name] for name in names], 0.4, label="cold", color=COLD)
        axis.set_yticks(list(places), names)
        axis.set(xlabel="instances a second, two workers", title=size)
        axis.legend()
    figure.tight_layout()
    return figure


def encoding(pyplot, values: dict):
    """Bytes of each setting at the first size, by field, beside raw values."""
    size, settings = next(iter(values.items()))
    figure, axis = pyplot.subplots(figsize=(6, 2.2 + 0.4 * len(settings)))
    left = dict.fromkeys(settings, 0.0)
    for field, colour in (("depth", COLD), ("normal", OWN_COLOUR), ("mask", COLOUR)):
        widths = {name: one[f"{field} bytes"] / 1e3 for name, one in settings.items()}
        axis.barh(list(widths), list(widths.values()), left=list(left.values()), label=field, color=colour)
        left = {name: left[name] + width for name, width in widths.items()}
    axis.set(xlabel="KB an instance (raw float16: 246)", title=size)
    axis.legend()
    figure.tight_layout()
    return figure


def opening(pyplot, values: dict):
    """Seconds and memory by number of instances."""
    counts = [int(count) for count in values]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    left.plot(counts, [one["open s"] for one in values.values()], "o-", color=OWN_COLOUR, label="open")
    left.plot(counts, [one["resume s"] for one in values.values()], "o-", color=COLD, label="resume writing")
    left.axhline(0.5, color=COLOUR, linewidth=0.8)
    left.set(xscale="log", yscale="log", xlabel="instances", ylabel="seconds")
    left.legend()
    for kind, colour in (("rss", OWN_COLOUR), ("uss", COLD)):
        right.plot(counts, [one[f"read {kind}"] for one in values.values()], "o-", color=colour, label=kind)
    right.set(xscale="log", xlabel="instances", ylabel="MiB of a process that has read", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    return figure


def training(pyplot, values: dict):
    """A step's wall time: no geometry, cached, online."""
    arms = {
        "no geometry": "no geometry s",
        "cached targets": "cached s",
        "demo teacher online": "demo online s",
    }
    arms |= {"ViT-L: cached": "vit cached s", "ViT-L: online": "vit online s"}
    arms = {name: values[key] for name, key in arms.items() if key in values}
    figure, axis = pyplot.subplots(figsize=(6, 3))
    colours = [OWN_COLOUR if "cached" in name else COLOUR for name in arms]
    axis.barh(list(arms)[::-1], list(arms.values())[::-1], color=colours[::-1])
    axis.set(xscale="log", xlabel="seconds a training step")
    figure.tight_layout()
    return figure


def semi(pyplot, values: dict):
    """How much of a step is network passes, and what it does beside them."""
    ratios = {name: one["ratio"] for name, one in values["steps"].items()}
    figure, axis = pyplot.subplots(figsize=(6, 0.8 + 0.5 * len(ratios)))
    names = list(ratios)[::-1]
    axis.barh(names, [ratios[name] for name in names], color=COLOUR, label="all else")
    axis.barh(names, [1] * len(names), color=COLD, label="network passes")
    axis.axvline(1.1, color=OWN_COLOUR, linewidth=0.8)
    axis.set(xlabel="a training step, its network passes = 1", xlim=(0, None))
    axis.legend(loc="lower left")
    figure.tight_layout()
    return figure


CHARTS: dict[str, Callable] = {
    "reading": reading,
    "loading": loading,
    "encoding": encoding,
    "opening": opening,
    "training": training,
    "semi": semi,
}
