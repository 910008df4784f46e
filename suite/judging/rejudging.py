"""Finished runs judged again: stored completions in, verdicts and rates beside the run's own."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from eval.judges import Judge
from eval.metrics import safety_rates
from eval.records import Completion, Prompt, Verdict, Verdicts, as_rows
from suite.records import mean_columns, rate_columns, read_row, usage_columns
from suite.results import means, metrics, show, show_mean
from suite.stages.judging import judge_completions, judge_tag, score_means, total_usage
from suite.storage.cache import StageCache, stage_and_key
from suite.storage.tables import read_table, write_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Answered:
    """A benchmark's prompts and completions, in one order."""

    prompts: list[Prompt]
    completions: list[Completion]
    key: str  # of the completions' stage


@dataclass(frozen=True)
class Judged:
    """A run with what one judge said later."""

    folder: Path
    label: str
    judge: Judge
    columns: Row  # its rates, means and costs, without the judge's name
    verdicts: dict[str, Verdicts]
    answers: dict[str, Answered]


def stored_answers(run: Path, cache: StageCache) -> dict[str, Answered]:
    """What a finished run asked and was answered, by benchmark. The run's own table may be redacted, so the answers
    come out of the stage cache; the prompts are in the table.

    Raises:
        KeelBenchError: the run is not finished, or its completions are no longer in the cache.
    """
    row = read_row(run)
    table = run / "completions.parquet"
    if row is None or not table.is_file():
        raise KeelBenchError(f"{run} is no finished run: it has no record.json or no completions.parquet")
    texts: dict[str, tuple[Completion, str]] = {}
    for stage in json.loads(row["stages"]):
        name, key = stage_and_key(stage)
        if name == "completions":
            entry = cache.find(name, key)
            if entry is None:
                raise KeelBenchError(
                    f"{run}: its completions are not in the cache {cache.root} (any more). paths.cache=<folder> names "
                    "another; running the same command again generates what is missing"
                )
            for found in read_table(entry.path / "completions.parquet"):
                texts[found["prompt_id"]] = (Completion(**found), key)
    answers: dict[str, Answered] = {}
    for shown in read_table(table):
        prompt = Prompt(shown["prompt_id"], shown["benchmark"], shown["prompt"], shown["category"], shown["expected"])
        if prompt.id not in texts:
            raise KeelBenchError(f"{run}: no stored completion for prompt {prompt.id} of {prompt.benchmark}")
        completion, key = texts[prompt.id]
        mine = answers.setdefault(prompt.benchmark, Answered([], [], key))
        mine.prompts.append(prompt)
        mine.completions.append(completion)
    return answers


def judge_answers(
    answers: dict[str, Answered], judge: Judge, cache: StageCache
) -> tuple[dict[str, Verdicts], dict[str, Any]]:
    """The verdicts by benchmark, and the columns they make: rates, means, costs."""
    verdicts = {
        name: judge_completions(judge, a.prompts, a.completions, a.key, cache)[0] for name, a in answers.items()
    }
    prompts = {name: a.prompts for name, a in answers.items()}
    rates = safety_rates([p for asked in prompts.values() for p in asked], [v for g in verdicts.values() for v in g])
    columns = rate_columns(rates) | mean_columns(score_means(judge, prompts, verdicts))
    return verdicts, {"described": judge.described, **columns, **usage_columns(total_usage(verdicts))}


def rejudge(run: Path, judge: Judge, cache: StageCache) -> Judged:
    """Judge a run's stored completions. ``judged/<judge>/`` gets ``verdicts.parquet`` and ``rates.json``;
    ``record.json`` gets the same columns behind ``judged/<judge>/``.

    Raises:
        KeelBenchError: as ``stored_answers``, or from the judge.
    """
    answers = stored_answers(run, cache)
    verdicts, columns = judge_answers(answers, judge, cache)
    tag = judge_tag(judge)
    out = run / "judged" / tag
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"benchmark": p.benchmark, "category": p.category, "expected": p.expected, **v}
        for name, a in answers.items()
        for p, v in zip(a.prompts, verdict_rows(verdicts[name]), strict=True)
    ]
    write_table(out / "verdicts.parquet", rows)
    _replace(out / "rates.json", columns)
    record = read_row(run) or {}
    record = {k: v for k, v in record.items() if not k.startswith(f"judged/{tag}/")}
    _replace(run / "record.json", record | {f"judged/{tag}/{k}": v for k, v in columns.items()})
    return Judged(run, str(record["label"]), judge, columns, verdicts, answers)


def verdict_rows(verdicts: Sequence[Verdict]) -> list[Row]:
    """Verdict rows whose ``category`` (the judge's) does not hide the benchmark's."""
    rows = as_rows(list(verdicts))
    for row in rows:
        row["judge_category"] = row.pop("category")
    return rows


def _replace(path: Path, row: Row) -> None:
    """Written whole or not at all: a record must survive a kill."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(row, indent=1))
    os.replace(beside, path)


def print_rates(judged: Sequence[Judged]) -> None:
    """One row a run, on the terminal."""
    import sys

    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    rows = [j.columns for j in judged]
    names, scores = metrics(rows), means(rows)
    first = judged[0].judge
    title = f"judge {first.name} ({first.described}), per cent [Wilson 95 % interval]; scores: mean"
    table = Table(title=plain(title), title_justify="left")
    table.add_column("run")
    for name in (*names, *scores):
        sizes = sorted({row[f"{name}/n"] for row in rows if f"{name}/n" in row})
        table.add_column(f"{plain(name.replace('/', chr(10)))}\nn={'/'.join(map(str, sizes))}", justify="right")
    for run in judged:
        rates, given = (show(run.columns, n) for n in names), (show_mean(run.columns, n) for n in scores)
        table.add_row(plain(f"{run.folder.name} {run.label}"), *rates, *given)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for run in judged:
        if run.columns.get("judge/requests"):
            dollars = run.columns["judge/dollars"]
            price = "no price configured" if dollars is None else f"{dollars:.4f} dollars"
            tokens = f"{run.columns['judge/prompt_tokens']:,} + {run.columns['judge/completion_tokens']:,} tokens"
            console.print(f"{run.folder.name}: {run.columns['judge/requests']} requests, {tokens}, {price}")
