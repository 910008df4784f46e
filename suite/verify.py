"""``python -m suite.verify TABLE``: rebuild a table's figures from stored completions, and compare.

python -m suite.verify runs/2025-01-31_12-00-00/results.parquet
python -m suite.verify demo                      # an experiment, a sweep or its folder: all its tables
python -m suite.verify runs/2025-01-31_12-00-00 --verdicts stored   # count what the judge said; do not ask it again

No model is needed: the raw completions are taken from the stage cache (paths.cache), whose checksums are verified, and
judged again; rates, intervals and paired tests are computed anew. A judge with a model is not asked again: its stored
replies are read again, and the output says what that does not show.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval.errors import KeelBenchError
from eval.judges import Judge
from eval.metrics import safety_rates
from eval.records import Completion, Prompt, Verdict
from suite.command_line import one_line_errors, parser_of, runs_folder
from suite.judging.again import judge_again
from suite.records import mean_columns
from suite.report.find import find_sweep
from suite.report.load import Run, load_sweep
from suite.stages.judging import score_means
from suite.statistics.compare import compare, difference_rows
from suite.statistics.outcomes import points_of
from suite.storage.cache import MANIFEST, file_sha256, stage_and_key
from suite.storage.tables import read_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Verified:
    """One run, verified: what was found to differ, and on what it rests."""

    place: str
    cells: int  # figures compared
    problems: tuple[str, ...]
    unverified: tuple[str, ...] = ()  # what the comparison takes on trust


def verify_run(run: Run, cache: Path, *, again: bool) -> Verified:
    """Compare a run's rates with those of its stored completions, and its verdicts with the judge's of today."""
    try:
        prompts, stored = _stored(run.folder)
        completions, verdicts = _from_cache(run, cache)
        missing = [p.id for p in prompts if p.id not in completions or p.id not in verdicts]
        if missing:
            raise KeelBenchError(f"{len(missing)} prompts have no completion or verdict in the stages that it names")
        unverified: tuple[str, ...] = ("the verdicts are those of then: the judge was not asked again",)
        means: dict[str, Any] = {}
        if again:
            judged = judge_again(run.folder, run.row, prompts, completions, verdicts, cache)
            verdicts, unverified = judged.verdicts, judged.unverified
            means = _means(judged.judge, prompts, verdicts)
    except (KeelBenchError, OSError) as error:
        return Verified(run.place, 0, (str(error),))
    problems = [
        f"{prompt.benchmark}, prompt {prompt.id}: the table says {label}, now {verdicts[prompt.id].label}"
        for prompt, label in zip(prompts, stored, strict=True)
        if verdicts[prompt.id].label != label
    ]
    cells = 0
    for name, rate in safety_rates(prompts, [verdicts[p.id] for p in prompts]).items():
        for suffix, value in (("", rate.value), ("/n", rate.n), ("/low", rate.low), ("/high", rate.high)):
            cells += 1
            if not _equal(run.row.get(f"{name}{suffix}"), value):
                problems.append(f"{name}{suffix}: the record says {run.row.get(f'{name}{suffix}')}, rebuilt {value}")
    for name, value in means.items():
        cells += 1
        if not _equal(run.row.get(name), value):
            problems.append(f"{name}: the record says {run.row.get(name)}, rebuilt {value}")
    return Verified(run.place, cells, tuple(problems), unverified)


def _means(judge: Judge, prompts: Sequence[Prompt], verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """Columns of the means of a judge that gives scores."""
    asked: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        asked.setdefault(prompt.benchmark, []).append(prompt)
    given = {name: [verdicts[p.id] for p in mine] for name, mine in asked.items()}
    return mean_columns(score_means(judge, asked, given))


def verify_tables(sweep: Path, runs: Sequence[Run]) -> Verified:
    """Compare ``results.parquet`` with the runs' records, and ``comparison.parquet`` with the tests made anew."""
    cells, problems = 0, []
    expected: dict[str, tuple[Sequence[Row], tuple[str, ...]]] = {
        "results.parquet": ([run.row for run in runs], ("run_id", "seed", "label")),
        "comparison.parquet": (difference_rows(compare(points_of(runs))), ("point", "reference", "rate")),
    }
    for name, (rebuilt, identity) in expected.items():
        if not (sweep / name).is_file():
            continue
        table = read_table(sweep / name)
        if len(table) != len(rebuilt):
            problems.append(f"{name}: {len(table)} rows, rebuilt {len(rebuilt)}")
            continue
        for i, (row, anew) in enumerate(zip(table, rebuilt, strict=True)):
            who = ", ".join(str(row.get(k)) for k in identity)
            for column in row.keys() | anew.keys():
                cells += 1
                if not _equal(row.get(column), anew.get(column)):
                    problems.append(f"{name}, row {i} ({who}), {column}: {row.get(column)}, rebuilt {anew.get(column)}")
    return Verified(sweep.name, cells, tuple(problems))


def _stored(folder: Path) -> tuple[list[Prompt], list[str]]:
    """The prompts of a run and the labels in its table."""
    columns = ["benchmark", "prompt_id", "category", "expected", "prompt", "label"]
    try:
        rows = pq.read_table(folder / "completions.parquet", columns=columns).to_pylist()
    except (OSError, ValueError) as error:
        raise KeelBenchError(f"completions.parquet: {error}") from error
    prompts = [Prompt(r["prompt_id"], r["benchmark"], r["prompt"], r["category"], r["expected"]) for r in rows]
    return prompts, [r["label"] for r in rows]


def _from_cache(run: Run, cache: Path) -> tuple[dict[str, Completion], dict[str, Verdict]]:
    """A run's raw completions and verdicts by prompt, out of the stages it names, their checksums verified.

    Raises:
        KeelBenchError: a stage is not in the cache, or damaged.
    """
    completions: dict[str, Completion] = {}
    verdicts: dict[str, Verdict] = {}
    for stage in run.stages:
        kind, key = stage_and_key(stage)
        if kind in ("completions", "verdicts"):
            rows = _rows(cache / kind / key, f"{kind}.parquet")
            if kind == "completions":
                completions |= {r["prompt_id"]: Completion(**r) for r in rows}
            else:
                verdicts |= {r["prompt_id"]: Verdict(**r) for r in rows}
    return completions, verdicts


def _rows(folder: Path, file: str) -> list[Row]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        intact = file_sha256(folder / file) == manifest["files"][file]["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise KeelBenchError(f"{folder} is not in the cache (--cache, SUITE_CACHE): {error}") from error
    if not intact:
        raise KeelBenchError(f"{folder / file} fails its checksum")
    return read_table(folder / file)


def _equal(one: Any, other: Any) -> bool:
    """Equality of cells: floats to nine digits, NaN and null alike."""
    one, other = (None if isinstance(v, float) and math.isnan(v) else v for v in (one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other)


@one_line_errors
def main() -> int:
    parser = parser_of("suite.verify", __doc__)
    parser.add_argument("table", help="results.parquet, comparison.parquet, report.html, a sweep or an experiment")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("SUITE_CACHE", "cache")))
    parser.add_argument("--verdicts", choices=("again", "stored"), default="again", help="ask the judge again, or not")
    options = parser.parse_args()
    table = Path(options.table)
    sweep = table.parent if table.is_file() else find_sweep(options.table, runs_folder())
    runs, failures = load_sweep(sweep)
    verified = [verify_run(run, options.cache, again=options.verdicts == "again") for run in runs]
    verified.append(verify_tables(sweep, runs))
    for one in verified:
        print(
            f"{one.place}: {one.cells} figures, {'all equal' if not one.problems else f'{len(one.problems)} PROBLEMS'}"
        )
        for problem in one.problems:
            print(f"  {problem}")
        for note in one.unverified:
            print(f"  on trust: {note}")
    if failures:
        print(f"{len(failures)} runs without a result were left out")
    bad = sum(bool(one.problems) for one in verified)
    print(
        f"{sum(one.cells for one in verified)} figures of {len(runs)} runs: {'verified' if not bad else 'NOT verified'}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
