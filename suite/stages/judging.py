"""Verdicts on stored completions: no model of the run is needed, so another judge can be asked at any time."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from eval.flops import Shape, Work
from eval.judges import Judge
from eval.judges.model_judge import ModelJudge
from eval.metrics import Mean, mean_scores
from eval.records import Completion, Prompt, Usage, Verdict, Verdicts, as_rows
from suite.conditions import devices
from suite.progress import progress
from suite.sources import resolve_model_folder
from suite.stages.data import ids_key
from suite.stages.models import folder_fingerprint
from suite.storage.cache import Entry, StageCache, fingerprint
from suite.storage.tables import read_table, write_table

USAGE = "usage.json"


def with_weights(judge: Judge) -> Judge:
    """The judge, told where its model's weights are, if it has a model and that runs in this process.

    Raises:
        MissingWeightsError: they are not there.
    """
    if isinstance(judge, ModelJudge) and judge.server is None:
        return replace(judge, weights=resolve_model_folder(judge.model, judge.revision))  # type: ignore[return-value]
    return judge


def judge_inputs(judge: Judge, prompts: Sequence[Prompt], completions_key: str) -> dict[str, object]:
    """What verdicts depend on."""
    inputs: dict[str, object] = {"completions": completions_key, "judge": judge.name, "judge_version": judge.version}
    if isinstance(judge, ModelJudge):
        inputs |= judge.identity()
        inputs["weights"] = folder_fingerprint(judge.weights) if judge.weights is not None else None
        inputs["asked"] = ids_key([p.id for p in prompts if p.expected in judge.judged])
    return inputs


def judge_tag(judge: Judge) -> str:
    """A name of its own for every judge that could judge otherwise: its name and, where it has a model, the hash of
    what its verdicts depend on."""
    if not isinstance(judge, ModelJudge):
        return judge.name
    return f"{judge.name}-{fingerprint(judge_inputs(judge, [], ''))[:8]}"


def judge_completions(
    judge: Judge, prompts: Sequence[Prompt], completions: Sequence[Completion], completions_key: str, cache: StageCache
) -> tuple[Verdicts, Entry]:
    """The judge's verdicts, in the prompts' order."""

    if isinstance(judge, ModelJudge) and judge.server is not None:
        kept = cache.root / "judge_replies" / f"{judge_tag(judge)}.jsonl"
        judge = replace(judge, kept=kept)  # type: ignore[assignment]

    def compute_stage(out: Path) -> Work:
        with progress(f"judging by {judge.name}", len(prompts)) as advance:
            verdicts = judge(prompts, completions, advance)
        write_table(out / "verdicts.parquet", as_rows(verdicts))
        (out / USAGE).write_text(json.dumps(asdict(verdicts.usage)))
        return _work(judge, verdicts.usage)

    inputs = judge_inputs(judge, prompts, completions_key)
    entry = cache.entry("verdicts", "1", inputs, compute_stage, f"{judge.name} ({len(prompts)} completions)")
    usage = entry.path / USAGE
    return Verdicts(
        (Verdict(**row) for row in read_table(entry.path / "verdicts.parquet")),
        Usage(**json.loads(usage.read_text())) if usage.is_file() else None,
    ), entry


def _work(judge: Judge, usage: Usage) -> Work:
    """A judge without a model multiplies nothing; what a server computes, nobody here knows. Attention's own products
    are those of questions and answers of mean length."""
    read, written = usage.prompt_tokens, usage.completion_tokens
    if not isinstance(judge, ModelJudge) or not usage.requests:
        return Work(0, 0.0)
    shape = Shape.of_folder(judge.weights) if judge.weights is not None else None
    if shape is None:
        return Work(read + written)
    n = usage.requests
    flops = n * shape.answering([round(read / n)], [round(written / n)])
    return Work(read + written, flops, devices(judge.device)[1])


def score_means(
    judge: Judge, prompts: Mapping[str, Sequence[Prompt]], verdicts: Mapping[str, Sequence[Verdict]]
) -> dict[str, Mean]:
    """``<the judge's name for its score>/<benchmark>``, of judges whose score is more than 0 and 1."""
    if judge.score_name is None:
        return {}
    means: dict[str, Mean] = {}
    for name, asked in prompts.items():
        means |= {f"{judge.score_name}/{b}": mean for b, mean in mean_scores(asked, verdicts[name]).items()}
    return means


def total_usage(verdicts: Mapping[str, Verdicts]) -> Usage:
    """What all verdicts took together; the price where every part has one."""
    parts: Iterable[Usage] = [v.usage for v in verdicts.values() if v.usage.requests]
    prices = [u.dollars for u in parts]
    dollars = None if not prices or None in prices else sum(p for p in prices if p is not None)
    return Usage(
        sum(u.requests for u in parts),
        sum(u.prompt_tokens for u in parts),
        sum(u.completion_tokens for u in parts),
        dollars,
    )
