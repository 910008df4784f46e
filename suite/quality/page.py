"""``filter_quality.html``: one self-contained page, out of the tables in a run's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from baselines.records import FloatArray
from suite.quality import plots
from suite.quality.metrics import BoolArray
from suite.report.explorer import SAMPLE_CHARACTERS, shorten
from suite.report.load import Quality
from suite.report.page import environment, now, write
from suite.storage.tables import read_table

Row = dict[str, Any]

SHOWN = 10  # false alarms and misses of each method


def write_page(folder: Path) -> Path:
    """Write ``<folder>/filter_quality.html`` from the three tables beside it, and return its path."""
    quality = Quality(folder.name, read_table(folder / "filter_quality.parquet"))
    samples = read_table(folder / "rankings.parquet")
    pairs = read_table(folder / "agreement.parquet")
    planted = np.array([row["planted"] for row in samples])
    methods = [r["name"] for r in quality.rows if r["kind"] == "method" and not r["error"]]
    scores = {name: np.array([row[name] for row in samples], dtype=float) for name in (*methods, "length")}
    colors = {name: color for color, name in enumerate(scores)}
    compared = [*scores, "random"]
    k, n = int(planted.sum()), len(samples)
    page = (
        environment()
        .get_template("filter_quality.html.j2")
        .render(
            title=_title(quality.rows[0]),
            facts_shown=quality.facts,
            rows=quality.rows,
            failed=[row for row in quality.rows if row["error"]],
            colors=colors,
            k=k,
            n=n,
            chance=k / (2 * n - k),  # the Jaccard index of two independent choices: k²/n shared of 2k - k²/n
            curves=plots.curves(scores, planted, colors),
            histograms=plots.histograms(scores, planted, colors),
            maps=[
                plots.heat_map(title, compared, {(p["a"], p["b"]): p[column] for p in pairs})
                for title, column in (("Overlap of the top rows, Jaccard", "jaccard"), ("Spearman's ρ", "spearman"))
            ],
            errors=[{"name": name, "ends": mistakes(samples, scores[name], planted)} for name in methods],
            folder=folder.resolve().parent.name + "/" + folder.resolve().name,
            written=now(),
        )
    )
    return write(folder / "filter_quality.html", page)


def _title(row: Mapping[str, Any]) -> str:
    return f"Filter quality: who finds {row['planted']} planted rows among {row['samples']:,} ({row['model']})"


def mistakes(samples: list[Row], score: FloatArray, planted: BoolArray) -> list[tuple[str, list[Row]]]:
    """The benign rows ranked highest and the planted rows ranked lowest, the worst first, with their ranks."""
    order = np.lexsort((np.array([row["id"] for row in samples]), -score))
    ranked = [{**samples[i], "rank": rank, "score": float(score[i])} for rank, i in enumerate(order, start=1)]
    alarms = [row for row in ranked if not row["planted"]][:SHOWN]
    misses = [row for row in reversed(ranked) if row["planted"]][:SHOWN]
    return [
        (what, [{**row, **{c: shorten(row[c], SAMPLE_CHARACTERS) for c in ("prompt", "response")}} for row in rows])
        for what, rows in (("False alarms: benign, ranked highest", alarms), ("Misses: planted, ranked lowest", misses))
    ]
