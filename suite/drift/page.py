"""``drift.html``: the prompts of every model on two common directions, and how far they moved."""

from pathlib import Path
from typing import Any

import numpy as np

from suite.flowlens.page import write_sections
from suite.report.plots import Plot
from suite.report.svg import MUTED, TEXT, color_of, figure, inline, style
from suite.storage.tables import read_table

Row = dict[str, Any]

SHOWN = {
    "label": "fine-tuned on",
    "shift": "mean move",
    "distance": "a prompt's move",
    "towards_compliance": "cos with compliance",
}


def shown(row: Row) -> dict[str, str]:
    """A row's figures as they are printed."""
    return {name: (f"{row[k]:.3f}" if isinstance(row[k], float) else str(row[k])) for k, name in SHOWN.items()}


def write_page(folder: Path) -> Path:
    """Write ``<folder>/drift.html`` from the run's tables, and return its path."""
    rows, points = (read_table(folder / f"{name}.parquet") for name in ("drift", "drift_points"))
    first = rows[0]
    return write_sections(
        folder / "drift.html",
        title=f"Representation drift: {first['model']} over {first['prompts']} harmful prompts of {first['data']}",
        facts_shown=[
            ("model", first["model"]),
            ("aligned", first["aligned"]),
            ("state", f"behind block {first['layer']}, where the answer begins"),
            ("variance in the two directions", f"{100 * first['explained']:.1f} %"),
            ("seed", str(first["seed"])),
        ],
        reading="Each dot is a harmful prompt's hidden state, projected on the first two principal directions of all "
        "models' states together; grey is the model before fine-tuning, the arrow joins the means. Moves are in units "
        "of the un-tuned states' spread. The last column is the cosine of the mean move with the direction from "
        "refusal to compliance (LARF's anchors, un-tuned model).",
        sections=[("Drift", "", [_plot(row["label"], points) for row in rows])],
        table=[shown(row) for row in rows],
        table_title="Moves",
    )


def _plot(label: str, points: list[Row]) -> Plot:
    before, after = (
        np.array([(p["pc1"], p["pc2"]) for p in points if p["label"] == name]) for name in (points[0]["label"], label)
    )
    x, y = (np.array([p[k] for p in points]) for k in ("pc1", "pc2"))
    with style():
        drawn = figure(2.6)
        axis = drawn.subplots()
        axis.scatter(before[:, 0], before[:, 1], s=10, color=MUTED, linewidths=0, alpha=0.7, label="un-tuned")
        axis.scatter(after[:, 0], after[:, 1], s=10, color=color_of(0), linewidths=0, alpha=0.7, label=label)
        start, end = before.mean(axis=0), after.mean(axis=0)
        arrow = {"arrowstyle": "->", "linewidth": 1.6, "color": TEXT}
        axis.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=arrow)
        # The same frame in every panel, so that moves can be compared.
        for low_high, values in ((axis.set_xlim, x), (axis.set_ylim, y)):
            margin = 0.05 * float(np.ptp(values))
            low_high(values.min() - margin, values.max() + margin)
        axis.set_xlabel("PC1")
        axis.set_ylabel("PC2")
        axis.grid()
        axis.legend(frameon=False, fontsize=8)
        told = f"{label}: the mean moves by {end[0] - start[0]:.1f} on PC1 and {end[1] - start[1]:.1f} on PC2"
        return Plot(label, inline(drawn, told))
