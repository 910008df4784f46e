"""What the page's tables and lists show, as plain values; the template escapes and lays them out."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from suite.report.load import Run, by_name
from suite.results import Row, conditions, metrics
from suite.statistics.compare import Comparison
from suite.statistics.paired import ALPHA, POWER, least_discordant
from suite.statistics.terminal import shown_p, shown_smallest, why_not

Cells = dict[str, Any]


def title(runs: Sequence[Run]) -> str:
    """What the page is about, in a line."""
    if not runs:
        return "A sweep without a finished run"
    tuned = [run for run in runs if run.row.get("n_selected")]
    what = f"{_values(runs, 'model')} fine-tuned on {_values(tuned, 'dataset')}" if tuned else _values(runs, "model")
    points = len(by_name(runs))
    return f"{what}: {points} ways compared" if points > 1 else f"{what}: {runs[0].name}"


def heading(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What was compared: one value each, or all that occur."""
    days = sorted({str(run.row.get("finished", ""))[:10] for run in runs})
    return [
        ("model", _values(runs, "model")),
        ("alignment", _values(runs, "aligned")),
        ("fine-tuning data", _values(runs, "dataset")),
        ("judge", _values(runs, "judge")),
        ("backend", _values(runs, "backend")),
        ("max_new_tokens", _values(runs, "max_new_tokens")),
        ("date", " to ".join(dict.fromkeys((days[0], days[-1])))),
    ]


def _values(runs: Sequence[Run], column: str) -> str:
    return ", ".join(dict.fromkeys(str(run.row.get(column)) for run in runs))


def comparison(runs: Sequence[Run], found: Comparison | None = None) -> Cells:
    """One row a run, one column a rate; of names with one run, rates that differ from the reference's are marked."""
    rows = [run.row for run in runs]
    columns = metrics(rows)
    alone = {name for name, same in by_name(runs).items() if len(same) == 1}
    return {
        "columns": [
            {
                "kind": KINDS.get(name.split("/")[0], name.split("/")[0]),
                "benchmark": name.split("/", 1)[1],
                "n": "/".join(map(str, sorted({n for row in rows if (n := row.get(f"{name}/n")) is not None}))),
            }
            for name in columns
        ],
        "rows": [
            {
                "run": run,
                "rates": [
                    _marked(_rate(run.row, c), found if run.name in alone else None, run.name, c) for c in columns
                ],
            }
            for run in runs
        ],
        "unequal": conditions(rows),
    }


KINDS = {"asr": "ASR", "false_refusal": "false refusal", "incoherent": "incoherent", "unparsed": "unparsed"}


def _rate(row: Row, name: str) -> Cells | None:
    """A rate in per cent, with its interval; None where the run has none."""
    value = row.get(name)
    if value is None or math.isnan(value):
        return None
    return {k: 100 * row[f"{name}{s}"] for k, s in (("value", ""), ("low", "/low"), ("high", "/high"))}


def _marked(cell: Cells | None, found: Comparison | None, name: str, rate: str) -> Cells | None:
    """The cell, and whether its difference from the reference's survives correction."""
    if cell is None:
        return None
    difference = found.against_reference(name, rate) if found is not None else None
    return cell | {"survives": difference is not None and difference.survives}


def over_seeds(runs: Sequence[Run], found: Comparison | None = None, *, always: bool = False) -> list[Cells]:
    """Mean, standard deviation and interval of each rate over a name's seeds; empty unless some name has several, or
    ``always``. The interval is bootstrapped over seeds × prompts; of one run it is Wilson's."""
    columns = metrics([run.row for run in runs])
    rows: list[Cells] = []
    several = False
    for name, same in by_name(runs).items():
        # A seed that ran twice counts once, and so does the un-tuned model, which no seed changes.
        one_each = list({run.row["seed"] if run.row.get("n_selected") else 0: run for run in same}.values())
        several |= len(one_each) > 1
        cells: list[Cells | None] = []
        for column in columns:
            given = [rate for run in one_each if (rate := _rate(run.row, column)) is not None]
            values = [rate["value"] for rate in given]
            if not values:
                cells.append(None)
                continue
            mean, sd = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
            low, high = _interval(given, found, name, column)
            cell = {"mean": mean, "sd": sd, "low": low, "high": high}
            cells.append(_marked(cell, found, name, column))
        rows.append({"name": name, "color": same[0].color, "seeds": len(one_each), "cells": cells})
    return rows if several or always else []


def _interval(rates: Sequence[Cells], found: Comparison | None, name: str, column: str) -> tuple[Any, Any]:
    if len(rates) == 1:
        return rates[0]["low"], rates[0]["high"]
    low, high = (found.intervals if found is not None else {}).get((name, column), (None, None))
    return (None, None) if low is None or high is None else (100 * low, 100 * high)


def differences(found: Comparison) -> Cells:
    """The tests, as text; those against a reference first."""
    rows = [
        {
            "pair": f"{d.point} − {d.reference}",
            "kind": KINDS.get(d.rate.split("/")[0], ""),
            "benchmark": d.rate.split("/", 1)[1],
            "rates": f"{100 * d.point_rate:.1f} − {100 * d.reference_rate:.1f}",
            "difference": f"{100 * d.difference:+.1f}",
            "interval": f"{100 * d.low:.1f} to {100 * d.high:.1f}",
            "discordant": f"{d.more} : {d.fewer}",
            "size": f"{d.prompts} × {d.seeds}",
            "p": shown_p(d.p),
            "p_holm": shown_p(d.p_holm),
            "smallest": shown_smallest(d),
            "survives": d.survives,
        }
        for d in sorted(found.differences, key=lambda d: d.reference not in found.references)
    ]
    tests = len(found.differences)
    return {
        "rows": rows,
        "references": found.references,
        "not_compared": [why_not(pair) for pair in found.not_compared],
        "tests": tests,
        "one_seed": any(d.seeds == 1 for d in found.differences),
        "alpha": f"{ALPHA / max(1, tests):.2g}",
        "power": f"{100 * POWER:.0f}",
        "least": least_discordant(ALPHA / max(1, tests)),
    }


def costs(runs: Sequence[Run]) -> Cells:
    """Seconds, tokens and peak memory of every run's stages."""
    # The run with most stages first: it has them in the pipeline's order, which one without scores would upset.
    longest = sorted(runs, key=lambda run: -len(run.stages))
    stages = list(dict.fromkeys(s.split("/", 1)[0] for run in longest for s in run.stages))
    rows = []
    for run in runs:
        cells = [_cost(run.row, stage) for stage in stages]
        rows.append(
            {
                "run": run,
                "cells": cells,
                "seconds": sum(cell["seconds"] for cell in cells if cell),
                "cached": run.row.get("stages_from_cache", 0),
                "stages": len(run.stages),
            }
        )
    return {"stages": stages, "rows": rows}


def _cost(row: Row, stage: str) -> Cells | None:
    if row.get(f"cost/{stage}/seconds") is None:
        return None
    values = ("seconds", "tokens", "peak_memory_mb", "gpu_peak_memory_mb", "gpus", "flops", "mfu")
    return {k: row.get(f"cost/{stage}/{k}") or 0 for k in values}


def trace(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """What a run's figures rest on, in groups of names and values."""
    row = run.row

    def prefixed(prefix: str) -> list[tuple[str, str]]:
        return [(k.removeprefix(prefix), str(v)) for k, v in row.items() if k.startswith(prefix)]

    def values(*columns: str) -> list[tuple[str, str]]:
        return [(c, str(row.get(c))) for c in columns]

    return [
        ("run", [("folder", run.place), ("typed", run.task), *values("run_id", "sweep", "finished")]),
        ("choices", values("model", "aligned", "dataset", "method", "options", "selection", "seed", "judge",
                           "judge_version", "prompt_limit", "max_new_tokens", "backend", "dtype", "device")),
        ("found while scoring", values("scorer_info") if run.scoring else []),
        ("fingerprints", prefixed("fingerprint/")),
        ("stages", [(s.split("/", 1)[0], s.split("/", 1)[1]) for s in run.stages]),
        ("versions", prefixed("version/")),
    ]  # fmt: skip
