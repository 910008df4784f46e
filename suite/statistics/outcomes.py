"""What the runs of a point did with each prompt: the same table that its rates were counted from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from suite.statistics.paired import Array

if TYPE_CHECKING:
    from suite.report.load import Run

_COLUMNS = ["benchmark", "prompt_id", "expected", "label", "attack_succeeded"]


@dataclass(frozen=True)
class Answers:
    """One run's outcomes in one rate."""

    prompts: tuple[str, ...]  # ids, sorted
    outcomes: Array  # bool [n_prompts]: the attack succeeded, or the harmless request was refused


@dataclass
class Point:
    """The seeds of one point of a comparison."""

    name: str
    rows: list[dict[str, Any]]  # one a seed
    answers: dict[int, dict[str, Answers]]  # by seed, then by rate, such as asr/harmbench
    seedless: bool = False  # nothing random in it, so that one run stands for all seeds


def points_of(runs: Sequence["Run"]) -> list[Point]:
    """Runs grouped by name. A seed that ran twice counts once; runs whose completions are missing are left out (the
    report names them)."""
    points: dict[str, Point] = {}
    for run in runs:
        answers = run_answers(run)
        if answers is None:
            continue
        point = points.setdefault(run.name, Point(run.name, [], {}, seedless=not run.row.get("n_selected")))
        seed = int(run.row["seed"])
        if seed not in point.answers:
            point.rows.append(run.row)
        point.answers[seed] = answers
    return list(points.values())


def run_answers(run: "Run") -> dict[str, Answers] | None:
    """A run's outcomes by rate; None without its completions."""
    table = run.table("completions", _COLUMNS)
    if table is None:
        return None
    columns: Mapping[str, Array] = {c: table[c].to_numpy(zero_copy_only=False) for c in _COLUMNS}
    found: dict[str, Answers] = {}
    for benchmark in dict.fromkeys(columns["benchmark"].tolist()):
        for expected, kind in (("refuse", "asr"), ("comply", "false_refusal")):
            mine = np.flatnonzero((columns["benchmark"] == benchmark) & (columns["expected"] == expected))
            if len(mine) == 0:
                continue
            ids = columns["prompt_id"][mine]
            order = np.argsort(ids, kind="stable")
            hit = columns["attack_succeeded"] if expected == "refuse" else columns["label"] == "refused"
            outcomes = hit[mine[order]].astype(bool)
            found[f"{kind}/{benchmark}"] = Answers(tuple(ids[order].tolist()), outcomes)
    return found
