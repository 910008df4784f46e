"""The report's plots. One colour a name, the same on the whole page, so that one legend serves all."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from suite.report.load import Run, by_name
from suite.report.svg import MUTED, alpha_of, color_of, dash_of, figure, inline, style
from suite.results import metrics

CURVE_POINTS = 200  # of a loss curve; longer ones are thinned, which no screen shows
NAME_CHARACTERS = 28
DOTTED, BARRED, HISTOGRAMS, CURVES = 120, 12, 24, 60  # runs, points, histograms, curves that a page can show

Counts = dict[tuple[str, str], dict[str, dict[str, tuple[int, int]]]]  # benchmark and rate: category: name: hits of n


@dataclass(frozen=True)
class Plot:
    title: str
    svg: Markup


def left_out(runs: Sequence[Run]) -> list[str]:
    """What a page of so many runs does not plot, in words."""
    names = by_name(runs)
    scored = len({(run.scoring, run.name) for run in runs if run.scoring})
    trained = sum(run.row.get("train_loss") is not None for run in runs)
    notes = [
        (len(_dotted(runs)), len(runs), "runs have their rates plotted"),
        (min(BARRED, len(names)), len(names), "points have bars by category"),
        (min(CURVES, trained), trained, "training curves are drawn"),
        (min(HISTOGRAMS, scored), scored, "histograms of scores are drawn"),
    ]
    return [f"the first {some} of {every} {what}" for some, every, what in notes if some < every]


def _dotted(runs: Sequence[Run]) -> list[Run]:
    """The first points' runs, at most ``DOTTED`` of them."""
    kept: list[Run] = []
    for same in by_name(runs).values():
        if kept and len(kept) + len(same) > DOTTED:
            break
        kept += same
    return kept


def rates(runs: Sequence[Run]) -> list[Plot]:
    """A panel for attack success and one for false refusals: every run's rate with its interval."""
    runs = _dotted(runs)
    columns = metrics([run.row for run in runs])
    plots = []
    for prefix, title in _PANELS.items():
        mine = [c for c in columns if c.startswith(f"{prefix}/")]
        if mine:
            plots.append(Plot(title, _dots(runs, mine)))
    return plots


_PANELS = {
    "asr": "Attack success rate, % (lower is safer)",
    "false_refusal": "False refusal rate, % (lower is more helpful)",
}


def _dots(runs: Sequence[Run], columns: Sequence[str]) -> Markup:
    names = by_name(runs)
    lanes = [sum(1 for same in names.values() for run in same if run.row.get(c) is not None) for c in columns]
    step = 0.14 if len(runs) > len(names) else 0.24  # inches a dot: seeds stand close together
    with style():
        drawn = figure(sum(lanes) * step + 0.45 * len(columns) + 0.35)
        axes = drawn.subplots(
            len(columns), 1, sharex=True, squeeze=False, height_ratios=[n * step + 0.1 for n in lanes]
        )[:, 0]
        for axis, column in zip(axes, columns, strict=True):
            y, ticks = 0.0, {}
            for name, same in names.items():
                present = [run for run in same if run.row.get(column) is not None]
                if present:
                    ticks[name] = y + (len(present) - 1) / 2
                    value, low, high = (
                        np.array([100 * run.row[f"{column}{s}"] for run in present]) for s in ("", "/low", "/high")
                    )
                    axis.errorbar(
                        value, y + np.arange(len(present)), xerr=np.maximum(0, (value - low, high - value)), fmt="o",
                        markersize=5, color=color_of(same[0].color), alpha=alpha_of(same[0].color), elinewidth=1.4,
                        capsize=2,
                    )  # fmt: skip
                    y += len(present)
                y += 0.6 if len(present) > 1 else 0
            axis.set_title(column.split("/", 1)[1])
            axis.set_yticks(list(ticks.values()), [short(n) for n in ticks])
            axis.set_ylim(y - 0.2, -0.8)
            axis.tick_params(length=0)
            axis.grid(axis="x")
        highest = max(100 * run.row[f"{c}/high"] for c in columns for run in runs if run.row.get(c) is not None)
        axes[-1].set_xlim(-0.02 * highest, 1.03 * highest)
        described = "; ".join(
            f"{name}, {c}: " + ", ".join(f"{100 * r.row[c]:.1f}" for r in same if r.row.get(c) is not None)
            for c in columns
            for name, same in names.items()
        )
        return inline(drawn, f"Rates in per cent: {described}")


def losses(runs: Sequence[Run]) -> list[Plot]:
    """The training loss of every fine-tuned run, in one panel."""
    trained = [run for run in runs if run.row.get("train_loss") is not None]
    curves = [
        (run, table) for run in trained[:CURVES] if (table := run.table("training", ["step", "loss"])) is not None
    ]
    if not curves:
        return []
    with style():
        drawn = figure(2.6)
        axis = drawn.subplots()
        for run, table in curves:
            steps, loss = (table[c].to_numpy() for c in ("step", "loss"))
            kept = np.unique(np.linspace(0, len(steps) - 1, min(CURVE_POINTS, len(steps))).astype(int))
            axis.plot(
                steps[kept], loss[kept], color=color_of(run.color), linestyle=dash_of(run.color), linewidth=1.3,
                marker="o" if len(kept) < 3 else None, markersize=3.5,
            )  # fmt: skip
        axis.set_xlabel("optimiser step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="y")
        axis.tick_params(length=0)
        return [Plot("Training loss, nats a token", inline(drawn, f"Training loss of {len(curves)} runs by step"))]


def score_distributions(runs: Sequence[Run]) -> list[Plot]:
    """A histogram of every scored run's scores, the selected part in the run's colour. Seeds that share scores and
    selection share a plot."""
    plots: dict[tuple[str, str], Plot] = {}
    several_seeds = len({run.row["seed"] for run in runs}) > 1
    for run in runs:
        key = (run.scoring, run.name)
        if not run.scoring or key in plots or len(plots) == HISTOGRAMS:
            continue
        table = run.table("scores", ["score", "selected"])
        if table is None:
            continue
        seeds = [r.row["seed"] for r in runs if (r.scoring, r.name) == key]
        title = run.name + (f", seed {', '.join(map(str, seeds))}" if several_seeds else "")
        scores, selected = (table[c].to_numpy(zero_copy_only=False) for c in ("score", "selected"))
        plots[key] = Plot(title, histogram(scores, selected, run.color, "selected"))
    return list(plots.values())


def histogram(scores: Any, marked: Any, color: int, mark: str) -> Markup:
    """All scores [n] in grey, those ``marked`` [n] in the colour, which the axis says ``mark`` of."""
    with style():
        drawn = figure(1.9)
        axis = drawn.subplots()
        edges = np.histogram_bin_edges(scores, bins=40)
        everything, chosen = (np.histogram(s, edges)[0] for s in (scores, scores[marked]))
        axis.stairs(everything, edges, fill=True, color=MUTED, alpha=0.45)
        axis.stairs(chosen, edges, fill=True, color=color_of(color))
        if chosen.max() * 30 < everything.max():  # a small part of a large set would not be seen
            axis.set_yscale("log", nonpositive="clip")
            axis.yaxis.set_major_formatter("{x:,.0f}")  # the default writes powers in TeX
        axis.set_xlabel(f"score: {len(scores):,} samples, {int(marked.sum()):,} {mark} (coloured)")
        axis.grid(axis="y")
        axis.tick_params(length=0)
        return inline(drawn, f"Histogram of {len(scores)} scores, {int(marked.sum())} {mark}")


def categories(runs: Sequence[Run]) -> list[Plot]:
    """Attack success and false refusals by category of each benchmark that has categories; seeds are pooled."""
    counts: Counts = {}
    names = list(by_name(runs))[:BARRED]
    for run in runs:
        if run.name in names:
            _count(run, counts)
    colors = {run.name: run.color for run in runs}
    return [
        Plot(f"{benchmark}: {kind} by category, %", _bars(by_category, colors, f"{benchmark}, {kind}"))
        for (benchmark, kind), by_category in counts.items()
        if len(by_category) > 1
    ]


def _count(run: Run, counts: Counts) -> None:
    """Add what happened to a run's prompts, by benchmark and rate, category and name."""
    table = run.table("completions", ["benchmark", "category", "expected", "label", "attack_succeeded"])
    if table is None:
        return
    keys = ["benchmark", "category", "expected", "label", "attack_succeeded"]
    for row in table.group_by(keys).aggregate([([], "count_all")]).to_pylist():
        harmful = row["expected"] == "refuse"
        kind = "attack success" if harmful else "false refusal"
        outcome = row["attack_succeeded"] if harmful else row["label"] == "refused"
        by_category = counts.setdefault((row["benchmark"], kind), {})
        hits, n = by_category.setdefault(row["category"], {}).get(run.name, (0, 0))
        by_category[row["category"]][run.name] = (hits + row["count_all"] * bool(outcome), n + row["count_all"])


def _bars(by_category: dict[str, dict[str, tuple[int, int]]], colors: dict[str, int], what: str) -> Markup:
    names = [n for n in colors if any(n in found for found in by_category.values())]
    ordered = sorted(by_category)
    height = max(0.055, 0.11 - 0.004 * len(names))  # inches a bar
    with style():
        drawn = figure(len(ordered) * (len(names) * height + 0.12) + 0.35)
        axis = drawn.subplots()
        unit = 1 / (len(names) + 0.12 / height)
        for place, name in enumerate(names):
            middles = [i + (place - (len(names) - 1) / 2) * unit for i in range(len(ordered))]
            values = [100 * _share(*by_category[c].get(name, (0, 0))) for c in ordered]
            color, alpha = color_of(colors[name]), alpha_of(colors[name])
            axis.barh(middles, values, unit * 0.9, color=color, alpha=alpha)
        axis.set_yticks(range(len(ordered)), [f"{short(c)} ({_sizes(by_category[c].values())})" for c in ordered])
        axis.set_ylim(len(ordered) - 0.5, -0.5)
        axis.set_xlim(left=0, right=max(5, axis.get_xlim()[1]))
        axis.grid(axis="x")
        axis.tick_params(length=0)
        return inline(drawn, f"Bars of {what} for {len(ordered)} categories and {', '.join(names)}")


def _share(hits: int, n: int) -> float:
    return hits / n if n else float("nan")


def _sizes(found: Iterable[tuple[int, int]]) -> str:
    return "/".join(map(str, sorted({n for _, n in found})))


def short(name: str) -> str:
    """A name from data on an axis: without control characters, of which the bidirectional ones would turn the figures
    beside it round."""
    shown = "".join(" " if unicodedata.category(c).startswith("C") else c for c in name)
    name = " ".join(shown.split()) or "(none)"
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"
