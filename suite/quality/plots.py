"""Plots of filter quality, in the report's style."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.patches import Rectangle

from baselines.records import FloatArray
from suite.quality.metrics import BoolArray
from suite.report.plots import CURVE_POINTS, Plot, histogram, short
from suite.report.svg import GRID, MUTED, PALETTE, WIDTH, color_of, dash_of, figure, inline, style


def curves(scores: Mapping[str, FloatArray], planted: BoolArray, colors: Mapping[str, int]) -> list[Plot]:
    """ROC and precision-recall curve of every score, side by side; dotted: a random order."""
    return [Plot(name, _curve(values, planted, colors[name], name)) for name, values in scores.items()]


def _curve(score: FloatArray, planted: BoolArray, color: int, name: str) -> Markup:
    from sklearn.metrics import precision_recall_curve, roc_curve

    false_alarms, found, _ = roc_curve(planted, score)
    precision, recall, _ = precision_recall_curve(planted, score)
    share = float(planted.mean())
    with style():
        drawn = figure(2.1)
        roc, pr = drawn.subplots(1, 2)
        roc.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
        pr.plot([0, 1], [share, share], color=MUTED, linestyle=":", linewidth=1)
        for axis, x, y in ((roc, false_alarms, found), (pr, recall[::-1], precision[::-1])):
            kept = np.unique(np.linspace(0, len(x) - 1, min(CURVE_POINTS, len(x))).astype(int))
            axis.plot(x[kept], y[kept], color=color_of(color), linestyle=dash_of(color), linewidth=1.5)
            axis.set_xlim(-0.02, 1.02)
            axis.set_ylim(-0.02, 1.02)
            axis.set_xticks([0, 0.5, 1])
            axis.set_yticks([0, 0.5, 1])
            axis.set_aspect("equal")
            axis.grid()
            axis.tick_params(length=0)
        roc.set_xlabel("false alarms")
        roc.set_ylabel("planted found")
        pr.set_xlabel("planted found")
        pr.set_ylabel("precision")
        return inline(drawn, f"ROC and precision-recall curve of {short(name)}")


def histograms(scores: Mapping[str, FloatArray], planted: BoolArray, colors: Mapping[str, int]) -> list[Plot]:
    """Every score's distribution, the planted rows' in its colour."""
    return [Plot(name, histogram(values, planted, colors[name], "planted")) for name, values in scores.items()]


def heat_map(title: str, names: Sequence[str], values: Mapping[tuple[str, str], float | None]) -> Plot:
    """A symmetric matrix of values from -1 to 1, 1 on its diagonal: the further from 0 the deeper the colour, another
    one below 0; a dash where there is no value. Columns are numbered as the rows are."""
    side = len(names)
    cells = [
        (x, y, 1.0 if a == b else values.get((a, b), values.get((b, a))))
        for y, a in enumerate(names)
        for x, b in enumerate(names)
    ]
    with style():
        drawn = figure(0.35 + 0.62 * WIDTH * min(1, 0.25 + side / 12))
        axis = drawn.subplots()
        for x, y, value in cells:
            fill = PALETTE[0] if (value or 0) >= 0 else PALETTE[1]
            # Paler than the palette, so that the figures on it are read in light and dark.
            axis.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, alpha=0.65 * abs(value or 0), linewidth=0)
            )
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=GRID, linewidth=0.6))
            text = "–" if value is None else f"{value:.2f}".replace("0.", ".", 1)
            axis.text(x, y, text, ha="center", va="center", fontsize=8 if side < 9 else 6.5)
        axis.set_xticks(range(side), [str(i + 1) for i in range(side)])
        axis.set_yticks(range(side), [f"{short(name)} {i + 1}" for i, name in enumerate(names)], fontsize=8)
        axis.set_xlim(-0.5, side - 0.5)
        axis.set_ylim(side - 0.5, -0.5)
        axis.set_frame_on(False)
        axis.tick_params(length=0)
        told = "; ".join(f"{short(a)} and {short(b)} {_told(v)}" for (a, b), v in values.items())
        return Plot(title, inline(drawn, f"{title}: {told}"))


def _told(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
