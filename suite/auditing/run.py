"""An audit: judge the same completions by every judge → compare → tables."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from eval.agreement import Accuracy, Agreement, accuracy, agreement, confusion
from eval.errors import KeelBenchError
from eval.judges import Judge
from eval.metrics import ATTACK_SUCCEEDED, Rate, safety_rates
from eval.records import Prompt, Verdict
from suite.auditing.labelled import Labelled, load_labelled
from suite.auditing.plan import AuditPlan
from suite.judging.rejudging import Answered, stored_answers, verdict_rows
from suite.records import rate_columns
from suite.stages.judging import judge_completions, with_weights
from suite.storage.cache import StageCache, fingerprint
from suite.storage.tables import write_table

Row = dict[str, Any]

# What a judge's label answers to the question that people were asked; a label that is not here answers nothing.
ANSWERS = {
    "refusal": {"refused": True, "complied": False, "incoherent": False},
    "harm": dict.fromkeys(ATTACK_SUCCEEDED, True) | {"not_harmful": False, "refused": False, "incoherent": False},
}


def run(plan: AuditPlan, folder: Path) -> str:
    """Carry out ``plan``; its tables lie in ``folder``: ``verdicts``, ``agreement``, ``confusion``, ``categories`` and,
    with labels, ``accuracy``.

    Returns:
        The audit's id.

    Raises:
        KeelBenchError: one or more problems, one a line.
    """
    cache = StageCache(plan.paths.cache)
    answers, labelled, judges = _check(plan, cache)
    verdicts: dict[str, list[Verdict]] = {}
    keys: list[str] = []
    for name, judge in judges.items():
        verdicts[name] = []
        for answered in answers.values():
            given, entry = judge_completions(judge, answered.prompts, answered.completions, answered.key, cache)
            verdicts[name] += given
            keys.append(entry.key)
    prompts = [p for answered in answers.values() for p in answered.prompts]
    tables = {
        "verdicts": [
            {"as": name, "benchmark": p.benchmark, "category": p.category, "expected": p.expected, **row}
            for name, given in verdicts.items()
            for p, row in zip(prompts, verdict_rows(given), strict=True)
        ],
        "agreement": agreement_rows(prompts, verdicts),
        "confusion": confusion_rows(verdicts),
        "categories": [] if labelled else category_rows(prompts, verdicts),
        "accuracy": accuracy_rows(labelled, verdicts) if labelled else [],
    }
    for name, rows in tables.items():
        if rows:
            write_table(folder / f"{name}.parquet", rows)
    about = {name: f"{judge.name} {judge.described}" for name, judge in judges.items()}
    (folder / "audit.json").write_text(json.dumps({"judges": about, "completions": len(prompts)}, indent=1))
    _print(tables, about, len(prompts), folder)
    return fingerprint(keys)[:12]


def _check(plan: AuditPlan, cache: StageCache) -> tuple[dict[str, Answered], Labelled | None, dict[str, Judge]]:
    """Completions and judges, with every problem told at once and before a model is loaded."""
    problems: list[str] = []
    answers: dict[str, Answered] = {}
    labelled: Labelled | None = None
    judges: dict[str, Judge] = {}
    try:
        answers, labelled = read_answers(plan, cache)
    except KeelBenchError as error:
        problems.append(str(error))
    for name, judge in plan.judges.items():
        try:
            judges[name] = with_weights(judge)
            judges[name].check()
        except KeelBenchError as error:
            problems.append(f"judges.{name}: {error}")
    if problems:
        raise KeelBenchError("\n".join(problems))
    return answers, labelled, judges


def read_answers(plan: AuditPlan, cache: StageCache) -> tuple[dict[str, Answered], Labelled | None]:
    """The completions that every judge is asked about, and people's labels where the plan names a file of them.

    Raises:
        KeelBenchError: a file that cannot be read, or a run that is not finished.
    """
    if plan.labelled is not None:
        labelled = load_labelled(plan.labelled, plan.columns, plan.labels)
        return {"labelled": Answered(labelled.prompts, labelled.completions, labelled.key)}, labelled
    return ({} if plan.run is None else stored_answers(plan.run, cache)), None


def agreement_rows(prompts: Sequence[Prompt], verdicts: Mapping[str, Sequence[Verdict]]) -> list[Row]:
    """One row for each pair of judges, over the prompts to be refused: all judges are asked about those."""
    harmful = [i for i, p in enumerate(prompts) if p.expected == "refuse"]
    rows = []
    for first, second in combinations(verdicts, 2):
        found = agreement([verdicts[first][i] for i in harmful], [verdicts[second][i] for i in harmful])
        rows.append({"first": first, "second": second, **_columns(found)})
    return rows


def confusion_rows(verdicts: Mapping[str, Sequence[Verdict]]) -> list[Row]:
    """One row for each pair of labels that two judges gave the same completion."""
    return [
        {"first": first, "second": second, "first_label": a, "second_label": b, "completions": count}
        for first, second in combinations(verdicts, 2)
        for (a, b), count in confusion(verdicts[first], verdicts[second]).items()
    ]


def category_rows(prompts: Sequence[Prompt], verdicts: Mapping[str, Sequence[Verdict]]) -> list[Row]:
    """One row a judge, benchmark and category: its rates there, each with n and interval."""
    rows = []
    for name, given in verdicts.items():
        groups: dict[tuple[str, str], list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault((prompt.benchmark, prompt.category), []).append(i)
        for (benchmark, category), members in groups.items():
            rates = safety_rates([prompts[i] for i in members], [given[i] for i in members])
            plain = {rate.split("/")[0]: value for rate, value in rates.items()}
            none = Rate.of(0, 0)
            columns = rate_columns({kind: plain.get(kind, none) for kind in ("asr", "false_refusal", "unparsed")})
            rows.append({"judge": name, "benchmark": benchmark, "category": category, **columns})
    return rows


def accuracy_rows(labelled: Labelled, verdicts: Mapping[str, Sequence[Verdict]]) -> list[Row]:
    """One row a judge: accuracy, precision and recall against the file's labels."""
    answers = ANSWERS[labelled.question]
    return [
        {
            "judge": name,
            "question": labelled.question,
            **_columns(accuracy(labelled.truth, [answers.get(v.label) for v in given])),
        }
        for name, given in verdicts.items()
    ]


def _columns(found: Agreement | Accuracy) -> Row:
    """A record with its rates laid out flat."""
    values = {name: getattr(found, name) for name in asdict(found)}
    rates = {name: value for name, value in values.items() if isinstance(value, Rate)}
    return rate_columns(rates) | {k: v for k, v in values.items() if k not in rates}


def _print(tables: Mapping[str, Sequence[Row]], about: Mapping[str, str], completions: int, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"{completions} completions; judges: " + ", ".join(plain(f"{k} = {v}") for k, v in about.items()))
    shown = {
        "accuracy": ("judge", "question", "accuracy", "precision", "recall", "kappa", "true_positive", "false_positive",
                     "false_negative", "true_negative", "left_out"),
        "agreement": ("first", "second", "share", "kappa", "both", "only_first", "only_second", "neither", "left_out"),
        "categories": ("judge", "benchmark", "category", "asr", "false_refusal", "unparsed"),
    }  # fmt: skip
    for name, columns in shown.items():
        rows = tables[name]
        if not rows:
            continue
        table = Table(title=f"{name} (per cent [95 % interval], n)", title_justify="left")
        for column in columns:
            table.add_column(column.replace("_", "\n"))
        for row in rows:
            table.add_row(*(plain(_cell(row, column)) for column in columns))
        console.print(table)
    console.print(f"Tables: {folder}", highlight=False)


def _cell(row: Row, column: str) -> str:
    value = row[column]
    if f"{column}/n" in row:
        n, low, high = (row[f"{column}/{end}"] for end in ("n", "low", "high"))
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}], {n}" if n else "–"
    if column == "kappa":
        return "–" if value != value else f"{value:.2f} [{row['kappa_low']:.2f}, {row['kappa_high']:.2f}]"
    return str(value)
