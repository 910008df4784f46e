"""FlowLens's plots, in the report's style."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from suite.report.plots import Plot
from suite.report.svg import MUTED, color_of, dash_of, figure, inline, style

Row = dict[str, Any]

SHOWN = 3  # components whose trajectories are drawn


def trajectories(layers: Sequence[Row]) -> list[Plot]:
    """A plot a component: the mean projection over normalised depth, a line a group; the band is one standard
    deviation over the prompts."""
    plots = []
    for k in range(1, 1 + min(SHOWN, max(row["component"] for row in layers))):
        mine = [row for row in layers if row["component"] == k]
        groups = list(dict.fromkeys(row["group"] for row in mine))
        groups = groups[1:] or groups  # where there are groups, all of them together would only hide them
        with style():
            drawn = figure(2.2)
            axis = drawn.subplots()
            for i, group in enumerate(groups):
                line = [row for row in mine if row["group"] == group]
                x = np.array([row["depth"] for row in line])
                mean = np.array([row["mean"] for row in line])
                deviation = np.array([row["deviation"] for row in line])
                axis.fill_between(x, mean - deviation, mean + deviation, color=color_of(i), alpha=0.2, linewidth=0)
                axis.plot(
                    x,
                    mean,
                    color=color_of(i),
                    linestyle=dash_of(i),
                    linewidth=1.6,
                    label=f"{group} ({line[0]['prompts']})",
                )
            axis.axhline(0, color=MUTED, linewidth=0.8, linestyle=":")
            axis.set_xlabel("depth (layer / layers)")
            axis.set_ylabel(f"projection on PC{k}")
            axis.grid()
            axis.legend(frameon=False, fontsize=8)
            plots.append(Plot(f"PC{k} through the depth", inline(drawn, f"Mean projection on component {k} by depth")))
    return plots


def spectrum(rows: Sequence[Row], component: int) -> Plot:
    """Each direction's share of the variance and the share of all up to it; dotted: the intrinsic dimension."""
    x = [row["component"] for row in rows]
    with style():
        drawn = figure(2.2)
        axis = drawn.subplots()
        axis.bar(x, [100 * row["explained"] for row in rows], color=color_of(0), width=0.7, label="each")
        axis.plot(
            x, [100 * row["cumulative"] for row in rows], color=color_of(1), marker="o", markersize=3, label="up to"
        )
        axis.axvline(component, color=MUTED, linestyle=":", linewidth=1)
        axis.set_ylim(0, 102)
        axis.set_xticks(x)
        axis.set_xlabel("principal direction")
        axis.set_ylabel("variance, %")
        axis.grid(axis="y")
        axis.legend(frameon=False, fontsize=8, loc="center right")
        told = ", ".join(f"{row['component']}: {100 * row['explained']:.1f} %" for row in rows)
        return Plot("Variance by direction", inline(drawn, f"Share of the variance by direction: {told}"))


def stability(rows: Sequence[Row]) -> Plot:
    """Correlation with and without a question mark, layer by layer."""
    x = [row["layer"] for row in rows]
    lowest = min([0.9, *(row[k] for row in rows for k in ("projection", "mean_cosine") if row[k] == row[k])])
    with style():
        drawn = figure(2.2)
        axis = drawn.subplots()
        for i, (name, label) in enumerate(
            (("projection", "projection on PC1"), ("mean_cosine", "mean pairwise cosine"))
        ):
            axis.plot(
                x, [row[name] for row in rows], color=color_of(i), linestyle=dash_of(i), linewidth=1.6, label=label
            )
        axis.axhline(0.98, color=MUTED, linestyle=":", linewidth=1)
        axis.set_ylim(lowest - 0.03, 1.01)
        axis.set_xlabel("layer")
        axis.set_ylabel("correlation")
        axis.grid()
        axis.legend(frameon=False, fontsize=8)
        return Plot("With and without a question mark", inline(drawn, "Correlation over the prompts, by layer"))
