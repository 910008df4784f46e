"""Safety along the fine-tuning: attack success and false refusals of the adapter every few steps.

The checkpoints are kept while the model is trained and answer afterwards, through the same stages as the finished
model: any back end and any judge will do, neither disturbs the training, and the answers can be judged again. What they
cost is not in the run's own cost of completions and verdicts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from eval.benchmarks import take
from eval.judges import Judge
from eval.metrics import safety_rates
from eval.records import Completion, Prompt, Verdict
from suite.plan import BackendSpec, EvalSpec, VllmSpec
from suite.stages.finetuning import Adapter
from suite.stages.generation import complete
from suite.stages.inference import Inference
from suite.stages.judging import judge_completions
from suite.stages.models import LoadedModel
from suite.storage.cache import Entry, StageCache

Answers = Mapping[str, tuple[list[Completion], Entry]]  # by benchmark


def complete_checkpoints(
    model: LoadedModel,
    adapter: Adapter,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    evaluation: EvalSpec,
    backend: BackendSpec | VllmSpec,
    cache: StageCache,
    inference: Inference,
) -> list[tuple[int, Answers]]:
    """``(step, answers)`` of each checkpoint to the prompts that ``asked_along`` takes; step 0 is the model before."""
    few = asked_along(prompts, evaluation)
    points: list[tuple[int, Adapter | None]] = [(0, None)]
    points += [(c.step, tuned) for c, tuned in zip(adapter.checkpoints, as_adapters(adapter), strict=True)]
    return [
        (
            step,
            complete(model, tuned, few, evaluation=evaluation, backend=backend, cache=cache, inference=inference),
        )
        for step, tuned in points
    ]


def as_adapters(adapter: Adapter) -> list[Adapter]:
    """The adapter's checkpoints as adapters of their own."""
    return [replace(adapter, folder=c.folder, key=c.key) for c in adapter.checkpoints]


def asked_along(prompts: Mapping[str, Sequence[Prompt]], evaluation: EvalSpec) -> dict[str, list[Prompt]]:
    """Of every benchmark ``evaluation.every_limit`` prompts of each expectation, a subset of the run's own."""
    return {name: take(list(asked), evaluation.every_limit) for name, asked in prompts.items()}


def safety_curve(
    answers: Sequence[tuple[int, Answers]],
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    evaluation: EvalSpec,
    judge: Judge,
    cache: StageCache,
) -> list[dict[str, Any]]:
    """Rows (step, metric, benchmark, value, n, low, high) of the checkpoints' answers."""
    few = asked_along(prompts, evaluation)
    everything = [p for asked in few.values() for p in asked]
    rows: list[dict[str, Any]] = []
    for step, completions in answers:
        verdicts: list[Verdict] = []
        for name, (texts, entry) in completions.items():
            verdicts += judge_completions(judge, few[name], texts, entry.key, cache)[0]
        for name, rate in safety_rates(everything, verdicts).items():
            metric, benchmark = name.split("/", 1)
            if metric in ("asr", "false_refusal"):
                rows.append({"step": step, "metric": metric, "benchmark": benchmark, **asdict(rate)})
    return rows


def curve_points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """One point a step, as the tracker's curves go: step, asr/<benchmark>, false_refusal/<benchmark>."""
    points: dict[int, dict[str, float]] = {}
    for row in rows:
        point = points.setdefault(row["step"], {"step": row["step"]})
        point[f"{row['metric']}/{row['benchmark']}"] = row["value"]
    return list(points.values())
