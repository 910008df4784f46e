"""Plots of what is given for what: safety against false refusals and utility, safety against the share of data kept."""

import re
import statistics
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from suite.report.load import Run, by_name
from suite.report.plots import Plot, short
from suite.report.svg import TEXT, alpha_of, color_of, dash_of, figure, inline, style
from suite.results import metrics

# Means over benchmarks, and whether more of it is better.
_AXES = {
    "asr": ("attack success, %", False),
    "false_refusal": ("false refusals, %", False),
    "utility": ("utility, %", True),
}
LABELLED = 14  # with more points than that, none is named in the plot; the front's names stand beside it


def pareto(runs: Sequence[Run]) -> list[Plot]:
    """Attack success against false refusals, and against utility where it was measured: each point's mean over
    benchmarks and seeds, its seeds as small dots, and a line through the points that no other beats in both."""
    plots = []
    for other in ("false_refusal", "utility"):
        points = _points(runs, other)
        if len(points) > 1:
            title = f"Attack success against {_AXES[other][0].removesuffix(', %')}, means over benchmarks"
            plots.append(Plot(title, _scatter(points, other)))
    return plots


def _points(runs: Sequence[Run], other: str) -> dict[str, tuple[int, list[tuple[float, float]]]]:
    """Colour and one (other, ASR) a seed, by name; of names that have both."""
    columns = metrics([run.row for run in runs])
    found: dict[str, tuple[int, list[tuple[float, float]]]] = {}
    for name, same in by_name(runs).items():
        seeds = [(x, y) for run in same if (x := _mean(run, columns, other)) is not None
                 and (y := _mean(run, columns, "asr")) is not None]  # fmt: skip
        if seeds:
            found[name] = (same[0].color, seeds)
    return found


def _mean(run: Run, columns: Sequence[str], kind: str) -> float | None:
    """A run's mean over the benchmarks of a kind, in per cent; None where it lacks one that another run has."""
    values = [run.row.get(c) for c in columns if c.startswith(f"{kind}/")]
    numbers = [100 * v for v in values if v is not None and v == v]
    return statistics.mean(numbers) if numbers and len(numbers) == len(values) else None


def front(points: Sequence[tuple[float, float]], *, more_is_better: bool) -> list[int]:
    """Places of the points (x, y) that no other is at least as good as in both and better in one; y: less is better."""
    sign = -1 if more_is_better else 1
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any(sign * a <= sign * x and b <= y and (a, b) != (x, y) for j, (a, b) in enumerate(points) if j != i)
    ]


def _scatter(points: dict[str, tuple[int, list[tuple[float, float]]]], other: str) -> Markup:
    label, more_is_better = _AXES[other]
    means = [(statistics.mean(x for x, _ in s), statistics.mean(y for _, y in s)) for _, s in points.values()]
    best = front(means, more_is_better=more_is_better)
    with style():
        drawn = figure(3.4)
        axis = drawn.subplots()
        line = sorted(means[i] for i in best)
        few = len(points) <= LABELLED
        offsets = _apart(means)
        for i, (name, (color, seeds)) in enumerate(points.items()):
            paint: dict[str, Any] = {"color": color_of(color), "alpha": alpha_of(color)}
            if few and len(seeds) > 1:
                axis.plot(*zip(*seeds, strict=True), ".", markersize=3, **paint)
            axis.plot(*means[i], "o", markersize=(7 if i in best else 5) if few else 4, **paint)
            if few:
                left = _crowded_on_the_right(means, i)
                axis.annotate(
                    short(name), means[i], xytext=(-7 if left else 7, offsets[i]), textcoords="offset points",
                    va="center", ha="right" if left else "left", fontsize=8, color=TEXT,
                )  # fmt: skip
        axis.plot([x for x, _ in line], [y for _, y in line], color=TEXT, linewidth=1, linestyle="--", alpha=0.6)
        axis.set_xlabel(f"{label} ({'right' if more_is_better else 'left'} is better)")
        axis.set_ylabel("attack success, % (lower is safer)")
        axis.set_xlim(left=min(0, *axis.get_xlim()))
        axis.set_ylim(bottom=min(0, *axis.get_ylim()), top=1.1 * axis.get_ylim()[1])
        axis.grid()
        axis.tick_params(length=0)
        shown = "; ".join(f"{n}: {x:.1f}, {y:.1f}" for n, (x, y) in zip(points, means, strict=True))
        return inline(drawn, f"Scatter of {label} and attack success: {shown}")


def _apart(points: Sequence[tuple[float, float]]) -> list[float]:
    """Vertical offsets, in points of type, that keep the labels of neighbours from lying on each other."""
    line, height = 10.0, 170.0  # of a label and of the panel, in points of type
    top = max(y for _, y in points) or 1.0
    offsets = [0.0] * len(points)
    lowest = None
    for i in sorted(range(len(points)), key=lambda i: points[i][1]):
        at = points[i][1] / top * height
        shown = at if lowest is None else max(at, lowest + line)
        offsets[i], lowest = shown - at, shown
    return offsets


def _crowded_on_the_right(points: Sequence[tuple[float, float]], place: int) -> bool:
    """Whether a label to the right of a point would run off the panel or into another point."""
    wide, high = (max(p[axis] for p in points) or 1.0 for axis in (0, 1))
    x, y = points[place]
    return x > 0.66 * wide or any(0 < a - x < 0.3 * wide and abs(b - y) < 0.06 * high for a, b in points)


def on_the_front(runs: Sequence[Run]) -> list[str]:
    """Names on the front of attack success and false refusals."""
    points = _points(runs, "false_refusal")
    means = [(statistics.mean(x for x, _ in s), statistics.mean(y for _, y in s)) for _, s in points.values()]
    names = list(points)
    return [names[i] for i in front(means, more_is_better=False)] if len(names) > 1 else []


def keep_fractions(runs: Sequence[Run]) -> list[Plot]:
    """Each rate over the share of the data that was trained on, for selections that were made at several sizes."""
    families: dict[str, list[Run]] = {}
    for run in runs:
        if run.row.get("n_selected") and run.row.get("n_samples"):
            families.setdefault(re.sub(r" · \d+ samples", "", run.name), []).append(run)
    families = {n: same for n, same in families.items() if len({_kept(run) for run in same}) > 1}
    columns = [c for c in metrics([r.row for r in runs]) if c.startswith(("asr/", "false_refusal/", "utility/"))]
    return [Plot(f"{c.replace('/', ', ')}, % by share kept", _curves(families, c)) for c in columns if families]


def _kept(run: Run) -> float:
    return float(100 * run.row["n_selected"] / run.row["n_samples"])


def _curves(families: dict[str, list[Run]], column: str) -> Markup:
    with style():
        drawn = figure(2.6)
        axis = drawn.subplots()
        for place, (name, same) in enumerate(families.items()):
            by_share: dict[float, list[float]] = {}
            for run in same:
                if run.row.get(column) is not None:
                    by_share.setdefault(_kept(run), []).append(100 * run.row[column])
            shares = sorted(by_share)
            means = [statistics.mean(by_share[s]) for s in shares]
            axis.plot(shares, means, marker="o", markersize=4, color=color_of(place), linestyle=dash_of(place),
                      linewidth=1.3, label=short(name))  # fmt: skip
            axis.fill_between(
                shares, [min(by_share[s]) for s in shares], [max(by_share[s]) for s in shares],
                color=color_of(place), alpha=0.15, linewidth=0,
            )  # fmt: skip
        axis.set_xlabel("share of the data trained on, % (band: all seeds)")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, frameon=False)
        axis.grid(axis="y")
        axis.tick_params(length=0)
        return inline(drawn, f"{column} by share of data kept, for {', '.join(families)}")
