"""The data explorer: the two ends of every ranking, and completions, as plain values that the page lays out.

A page of hundreds of runs still has to open on a phone, so there are limits; what they leave out the page says.
"""

import json
import re
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from suite.report.load import Run, by_name
from suite.results import Row

Cells = dict[str, Any]

RANKED = 20  # samples shown from either end of a ranking
RANKINGS = 24  # rankings shown
SELECTORS = 12  # points that a sample is said to be selected by
COMPLETIONS = 12  # completions shown of a run and benchmark
COMPLETIONS_IN_ALL = 600  # above that, one seed of each point, and fewer of each
SAMPLE_CHARACTERS = 300
TEXT_CHARACTERS = 1500

_ITEM = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,3}[.):]|[a-zA-Z][.)])\s+\S", re.MULTILINE)
_LINE = re.compile(r"^.*\S.*$", re.MULTILINE)


def list_share(text: str) -> float:
    """The share of a text's non-empty lines that are items of a list, in [0, 1]; 0 of an empty text.

    Ranking by gradients or representations is known to favour lists (LARF, Table 4), so they are counted.
    """
    lines = len(_LINE.findall(text))
    return len(_ITEM.findall(text)) / lines if lines else 0.0


def rankings(runs: Sequence[Run]) -> tuple[list[Cells], int]:
    """The two ends of rankings, once for each method, options, data and model; and how many are not shown."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.scoring:
            row = run.row
            key = tuple(str(row.get(c)) for c in ("method", "options", "fingerprint/data", "fingerprint/model"))
            groups.setdefault(key, []).append(run)
    shown = [ranking for same in list(groups.values())[:RANKINGS] if (ranking := _ranking(same)) is not None]
    return shown, max(0, len(groups) - RANKINGS)


def _ranking(runs: Sequence[Run]) -> Cells | None:
    # A method that draws lots ranks anew for every seed; the first seed's ranking stands for them.
    same = [run for run in runs if run.scoring == runs[0].scoring]
    columns = ["rank", "id", "score", "category", "prompt", "response", "response_characters"]
    first, found = next(
        ((run, t) for run in same if (t := run.ends("scores", columns, RANKED)) is not None), (None, None)
    )
    if first is None or found is None:
        return None
    n, top, bottom = found
    points = {run.name: run for run in reversed(same)}  # of seeds, the first
    chosen: list[tuple[str, Any]] = []
    for name in list(by_name(same))[:SELECTORS]:
        flags = points[name].table("scores", ["selected"])
        if flags is not None and flags.num_rows == n:
            chosen.append((name, flags["selected"].to_numpy(zero_copy_only=False)))

    def rows(table: pa.Table, start: int) -> list[Cells]:
        return [
            {
                **sample,
                "list_share": list_share(sample["response"]),
                "prompt": shorten(sample["prompt"], SAMPLE_CHARACTERS),
                "response": shorten(sample["response"], SAMPLE_CHARACTERS),
                "selected_by": [name for name, flags in chosen if flags[place]],
            }
            for place, sample in enumerate(table.to_pylist(), start)
        ]

    ends = [
        {"title": title, "rows": found, "characters": statistics.mean(r["response_characters"] for r in found),
         "lists": 100 * statistics.mean(r["list_share"] > 0 for r in found)}
        for title, found in (("highest", rows(top, 0)), ("lowest", rows(bottom, n - bottom.num_rows)))
        if found
    ]  # fmt: skip
    row = first.row
    return {
        "method": row["method"],
        "options": json.loads(row.get("options") or "{}"),
        "dataset": row["dataset"],
        "model": row["model"],
        "info": json.loads(row.get("scorer_info") or "{}"),
        "n": n,
        "seed": row["seed"] if len({run.scoring for run in runs}) > 1 else None,
        "ends": ends,
        "more_selectors": max(0, len(by_name(same)) - SELECTORS),
    }


def completions(runs: Sequence[Run]) -> tuple[list[Cells], int]:
    """Some completions of runs and benchmarks: those of the first prompts by id (ids are content hashes, so that this
    is an arbitrary choice, yet the same one in every run and report); and how many runs are not shown.

    Where all runs would be too many, one seed of each point is shown, and then the first points.
    """
    whole = runs
    benchmarks = max([1, *(len(_benchmarks(run)) for run in runs)])  # 1 where nothing could be judged
    if len(runs) * benchmarks * COMPLETIONS > COMPLETIONS_IN_ALL:
        runs = [same[0] for same in by_name(runs).values()]
    runs = runs[: max(1, COMPLETIONS_IN_ALL // (2 * benchmarks))]
    limit = max(2, min(COMPLETIONS, COMPLETIONS_IN_ALL // max(1, len(runs) * benchmarks)))
    groups = []
    for run in runs:
        table = run.table("completions")
        if table is not None:
            parts = _by_benchmark(table, limit)
            groups.append({"run": run, "benchmarks": parts})
    return groups, len(whole) - len(runs)


def _benchmarks(run: Run) -> set[str]:
    return {k.split("/")[1] for k in run.row if k.startswith(("asr/", "false_refusal/"))}


def _by_benchmark(table: pa.Table, limit: int) -> list[Cells]:
    parts = []
    for name in table["benchmark"].unique().to_pylist():
        mine = table.filter(pc.equal(table["benchmark"], name))
        first = np.argsort(mine["prompt_id"].to_numpy(zero_copy_only=False), kind="stable")[:limit]
        rows = [_completion(row) for row in mine.take(pa.array(first)).to_pylist()]
        parts.append({"name": str(name), "n": mine.num_rows, "rows": rows})
    return parts


def _completion(row: Row) -> Row:
    return row | {k: shorten(row[k], TEXT_CHARACTERS) for k in ("prompt", "completion")}


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` characters of ``text``, and how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]}… (+{len(text) - limit:,} characters)"
