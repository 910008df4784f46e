"""Every pair of points that may be compared, in every rate, with Holm's correction over all of them."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from suite.statistics.outcomes import Point
from suite.statistics.paired import (
    ALPHA,
    RESAMPLES,
    Array,
    bootstrap_intervals,
    exact_p,
    holm,
    smallest_difference,
)
from suite.storage.tables import write_table

# A difference in one of these could make the difference in the rates: such points are not tested against each other.
MEASURED_ALIKE = {
    "judge": "judge",
    "judge_version": "judge's version",
    "fingerprint/judge": "judge's settings",
    "fingerprint/template": "chat template",
    "backend": "back end",
    "decoding": "decoding",
    "max_new_tokens": "max_new_tokens",
    "gpus": "number of GPUs",
    "device": "device",
    "dtype": "dtype",
}
# Points are compared within the same model and data.
SAME_TASK = ("model", "aligned", "fingerprint/model", "dataset", "fingerprint/data")
ALL_PAIRS = 5  # with more points of one task each is tested against the reference alone


@dataclass(frozen=True)
class Difference:
    """``point`` less ``reference`` in one rate; rates in [0, 1]."""

    point: str
    reference: str
    rate: str  # asr/harmbench
    prompts: int
    seeds: int
    point_rate: float
    reference_rate: float
    difference: float
    low: float  # paired bootstrap over seeds × prompts, 95 %
    high: float
    more: int  # (seed, prompt) pairs in which only the point did it
    fewer: int  # in which only the reference did
    p: float  # exact
    p_holm: float
    survives: bool  # p_holm below 0.05, and the interval leaves out 0
    smallest: float  # what this n could show, at the level that Holm asks of the smallest p


@dataclass(frozen=True)
class NotCompared:
    """Two points that are not tested, and why."""

    point: str
    reference: str
    rate: str  # "" = no rate of theirs
    reasons: tuple[str, ...]


@dataclass
class Comparison:
    """All differences of a sweep."""

    differences: list[Difference] = field(default_factory=list)
    not_compared: list[NotCompared] = field(default_factory=list)
    references: list[str] = field(default_factory=list)  # one for each model and data set
    # Of points with several seeds: each rate's 95 % interval, bootstrapped over seeds × prompts; by (point, rate).
    intervals: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def against_reference(self, point: str, rate: str) -> Difference | None:
        """The tested difference of ``point`` from its task's reference."""
        for d in self.differences:
            if d.rate == rate and d.reference in self.references and d.point == point:
                return d
        return None


def compare(points: Sequence[Point], *, resamples: int = RESAMPLES) -> Comparison:
    """Test pairs of points, each pair within one model and data set.

    The pairs are fixed before any outcome is seen: up to ``ALL_PAIRS`` points, all of them; of more, each with the
    reference (random choice where there is one, else the un-tuned model, else the first). Holm's family is every test
    of every pair and rate.
    """
    result = Comparison()
    tested: list[tuple[Point, Point, str, Array, Array]] = []
    for task in _tasks(points):
        reference = _reference(task)
        result.references.append(reference.name)
        for one, other in _pairs(task, reference):
            reasons = _unlike(one, other)
            if reasons:
                result.not_compared.append(NotCompared(one.name, other.name, "", reasons))
                continue
            for rate in _rates(one, other):
                outcomes = _paired(one, other, rate)
                if isinstance(outcomes, str):
                    result.not_compared.append(NotCompared(one.name, other.name, rate, (outcomes,)))
                else:
                    tested.append((one, other, rate, *outcomes))
    result.differences = _tested(tested, resamples)
    result.intervals = _rate_intervals(points, resamples)
    return result


def _rate_intervals(points: Sequence[Point], resamples: int) -> dict[tuple[str, str], tuple[float, float]]:
    found: dict[tuple[str, str], Array] = {}
    for point in points:
        for rate in _rates(point, point) if len(point.answers) > 1 and not point.seedless else []:
            outcomes = _paired(point, point, rate)
            if not isinstance(outcomes, str):
                found[point.name, rate] = outcomes[0]
    return dict(zip(found, _bootstrapped(list(found.values()), resamples), strict=True))


def _bootstrapped(outcomes: Sequence[Array], resamples: int) -> list[tuple[float, float]]:
    """Intervals of entries of several shapes, those of one shape with the same draws."""
    intervals: dict[int, tuple[float, float]] = {}
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, given in enumerate(outcomes):
        by_shape[given.shape].append(i)
    for places in by_shape.values():
        found = bootstrap_intervals([outcomes[i] for i in places], resamples=resamples)
        intervals.update(zip(places, found, strict=True))
    return [intervals[i] for i in range(len(outcomes))]


def _tested(pairs: Sequence[tuple[Point, Point, str, Array, Array]], resamples: int) -> list[Difference]:
    differences = [mine.astype(np.int8) - theirs.astype(np.int8) for *_, mine, theirs in pairs]
    intervals = _bootstrapped(differences, resamples)
    p_values = [exact_p(d) for d in differences]
    adjusted = holm(p_values)
    return [
        Difference(
            point=one.name,
            reference=other.name,
            rate=rate,
            prompts=d.shape[1],
            seeds=d.shape[0],
            point_rate=float(mine.mean()),
            reference_rate=float(theirs.mean()),
            difference=float(d.mean()),
            low=intervals[i][0],
            high=intervals[i][1],
            more=int((d > 0).sum()),
            fewer=int((d < 0).sum()),
            p=p_values[i],
            p_holm=adjusted[i],
            survives=adjusted[i] < ALPHA and not intervals[i][0] <= 0 <= intervals[i][1],
            smallest=smallest_difference(d, alpha=ALPHA / len(pairs)),
        )
        for i, ((one, other, rate, mine, theirs), d) in enumerate(zip(pairs, differences, strict=True))
    ]


def _tasks(points: Sequence[Point]) -> list[list[Point]]:
    tasks: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for point in points:
        tasks[tuple(str(point.rows[0].get(c)) for c in SAME_TASK)].append(point)
    return [task for task in tasks.values() if len(task) > 1]


def _reference(task: Sequence[Point]) -> Point:
    plain = [p for p in task if p.rows[0].get("regularizer") in ("none", None)]
    for wanted in ("random", "none"):
        for point in plain:
            if point.rows[0].get("method") == wanted:
                return point
    return task[0]


def _pairs(task: Sequence[Point], reference: Point) -> list[tuple[Point, Point]]:
    with_reference = [(p, reference) for p in task if p is not reference]
    if len(task) > ALL_PAIRS:
        return with_reference
    return with_reference + list(itertools.combinations([p for p in task if p is not reference], 2))


def _unlike(one: Point, other: Point) -> tuple[str, ...]:
    """What differs in how the two were measured."""
    reasons = []
    for column, shown in MEASURED_ALIKE.items():
        values = {str(row.get(column)) for point in (one, other) for row in point.rows}
        if len(values) > 1:
            reasons.append(f"{shown}: {' and '.join(sorted(values))}")
    return tuple(reasons)


def _rates(one: Point, other: Point) -> list[str]:
    asked = [set().union(*(answers for answers in p.answers.values())) for p in (one, other)]
    return sorted(asked[0] & asked[1])


def _paired(one: Point, other: Point, rate: str) -> tuple[Array, Array] | str:
    """Both points' outcomes [n_seeds, n_prompts] under the seeds they share, or why there are none."""
    found = [{seed: a[rate] for seed, a in p.answers.items() if rate in a} for p in (one, other)]
    seeds = sorted(set(found[0]) & set(found[1]))
    # The un-tuned model has no seed: its one answer is every seed's.
    if one.seedless and not other.seedless:
        seeds = sorted(found[1])
    elif other.seedless and not one.seedless:
        seeds = sorted(found[0])
    elif one.seedless:
        seeds = [0]
    if not seeds:
        return "no seed in common"
    mine, theirs = (
        [_answer(by_seed, seed, point.seedless) for seed in seeds]
        for by_seed, point in zip(found, (one, other), strict=True)
    )
    if len({a.prompts for a in (*mine, *theirs)}) > 1:
        return "not the same prompts"
    return np.stack([a.outcomes for a in mine]), np.stack([a.outcomes for a in theirs])


def _answer(by_seed: Mapping[int, Any], seed: int, seedless: bool) -> Any:
    return by_seed[min(by_seed)] if seedless else by_seed[seed]


def difference_rows(found: Comparison) -> list[dict[str, Any]]:
    """Flat rows of the tested differences: ``comparison.parquet``, and W&B's table ``comparison``."""
    return [asdict(d) for d in found.differences]


def write_differences(sweep: Path, found: Comparison) -> None:
    """``comparison.parquet`` beside the runs, where anything was tested."""
    if found.differences:
        write_table(sweep / "comparison.parquet", difference_rows(found))
