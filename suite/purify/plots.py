"""The page's figures, in the report's style."""

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from baselines.records import FloatArray
from suite.purify.files import Mask
from suite.purify.verify import Arm
from suite.report.plots import Plot, short
from suite.report.svg import MUTED, TEXT, color_of, figure, inline, style


def distribution(
    title: str, score: FloatArray, dropped: Mask, color: int, *, at: float | None, controls: FloatArray | None
) -> Plot:
    """All scores [n] in grey, the dropped in colour, the cut as a line where there is one; underneath, where rows known
    to degrade safety would stand."""
    everything = score if controls is None else np.concatenate([score, controls])
    edges = np.histogram_bin_edges(everything, bins=40)
    with style():
        drawn = figure(2.3 if controls is not None else 1.9)
        if controls is None:
            axis, low = drawn.subplots(), None
        else:
            axis, low = drawn.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        counts, gone = np.histogram(score, edges)[0], np.histogram(score[dropped], edges)[0]
        axis.stairs(counts, edges, fill=True, color=MUTED, alpha=0.45)
        axis.stairs(gone, edges, fill=True, color=color_of(color))
        if gone.max() * 30 < counts.max():  # a small part of a large set would not be seen
            axis.set_yscale("log", nonpositive="clip")
            axis.yaxis.set_major_formatter("{x:,.0f}")  # the default writes powers in TeX
        if at is not None and np.isfinite(at):
            axis.axvline(at, color=TEXT, linewidth=1)
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_ylabel("rows")
        axis.grid(axis="y")
        axis.tick_params(length=0)
        if low is None:
            axis.set_xlabel(f"score: {len(score):,} rows, {int(dropped.sum()):,} dropped (coloured)")
        else:
            assert controls is not None
            low.plot(controls, np.zeros(len(controls)), "|", color=TEXT, markersize=12, alpha=0.6)
            low.set_yticks([0], ["controls"], fontsize=8)
            low.set_ylim(-1, 1)
            low.set_xlabel(f"score: {len(score):,} rows, {int(dropped.sum()):,} dropped (coloured)")
            low.tick_params(length=0)
        told = f"Histogram of {len(score)} scores, {int(dropped.sum())} dropped"
        return Plot(title, inline(drawn, told))


def votes(first: str, second: str, ranks: Mapping[str, np.ndarray], dropped: Mask) -> Plot:
    """Every row's place in two rankings, the dropped in colour; at most 2,000 rows, evenly chosen."""
    x, y = ranks[first], ranks[second]
    shown = np.unique(np.linspace(0, len(x) - 1, min(2000, len(x))).astype(int))
    with style():
        drawn = figure(3.2)
        axis = drawn.subplots()
        for mask, color, size in ((~dropped, MUTED, 6.0), (dropped, color_of(0), 9.0)):
            mine = shown[mask[shown]]
            axis.scatter(x[mine], y[mine], s=size, color=color, linewidths=0)
        axis.set_xlabel(f"rank by {short(first)}")
        axis.set_ylabel(f"rank by {short(second)}")
        axis.invert_xaxis()
        axis.invert_yaxis()
        axis.tick_params(length=0)
        return Plot(f"{first} and {second}", inline(drawn, f"Ranks of {len(x)} rows by {first} and by {second}"))


def damage(arms: list[Arm]) -> list[Plot]:
    """Attack success and false refusals of every arm with their intervals."""
    titles = {"asr": "Attack success, % (lower is safer)", "false_refusal": "False refusals, % (lower is more helpful)"}
    plots = []
    for name in arms[0].rates:
        kind, benchmark = name.split("/", 1)
        if kind in titles:
            plots.append(Plot(f"{titles[kind]}: {benchmark}", _dots(arms, name)))
    return plots


def _dots(arms: list[Arm], rate: str) -> Markup:
    with style():
        drawn = figure(0.28 * len(arms) + 0.5)
        axis = drawn.subplots()
        for place, arm in enumerate(arms):
            found = arm.rates[rate]
            low, high = max(0, found.value - found.low), max(0, found.high - found.value)
            axis.errorbar(
                100 * found.value, place, xerr=[[100 * low], [100 * high]], fmt="o", markersize=5,
                color=color_of(place), elinewidth=1.4, capsize=2,
            )  # fmt: skip
        axis.set_yticks(range(len(arms)), [arm.name for arm in arms])
        axis.set_ylim(len(arms) - 0.4, -0.6)
        axis.set_xlim(-2, 102)
        axis.grid(axis="x")
        axis.tick_params(length=0)
        return inline(drawn, f"{rate}: " + "; ".join(f"{a.name} {100 * a.rates[rate].value:.0f} %" for a in arms))
