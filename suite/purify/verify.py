"""The damage estimate: fine-tune on kept, dropped and random rows of equal number, and see what still is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.records import Sample
from baselines.regularizer import build_regularizer
from eval.metrics import Rate, safety_rates
from eval.records import Prompt, Verdict
from suite.purify.files import Mask
from suite.purify.plan import PurifyPlan
from suite.stages.finetuning import fine_tune_selection
from suite.stages.generation import complete
from suite.stages.judging import judge_completions, with_weights
from suite.stages.models import LoadedModel
from suite.storage.cache import Entry, StageCache

ARMS = ("kept", "dropped", "random")


@dataclass(frozen=True)
class Arm:
    """What the model did after fine-tuning on one choice of rows; ``rows`` 0: before any."""

    name: str
    rows: int
    characters: float  # of a response, mean
    rates: dict[str, Rate]
    loss: float | None  # last logged


def choose(dropped: Mask, wanted: int, seed: int) -> dict[str, np.ndarray]:
    """Places (among the scored rows) that each arm trains on, as many for each: a uniform draw from the kept, the
    dropped, and all rows."""
    pools = {"kept": np.flatnonzero(~dropped), "dropped": np.flatnonzero(dropped), "random": np.arange(len(dropped))}
    size = min(wanted, *(len(pool) for pool in pools.values()))
    generator = np.random.default_rng(seed)
    return {name: np.sort(generator.permutation(pools[name])[:size]) for name in ARMS}


def damage(
    plan: PurifyPlan,
    arms: Mapping[str, list[Sample]],
    prompts: Mapping[str, list[Prompt]],
    model: LoadedModel,
    cache: StageCache,
) -> tuple[list[Arm], list[Entry]]:
    """The rates of the untouched model, then of each arm's."""
    everything = [p for asked in prompts.values() for p in asked]
    regularizer = build_regularizer("none", {})
    found: list[Arm] = []
    entries: list[Entry] = []
    for name, samples in {"before": [], **arms}.items():
        adapter = None
        if samples:
            adapter = fine_tune_selection(
                model, samples, plan.train, regularizer=regularizer, seed=plan.seed, cache=cache
            )
            entries.append(adapter.entry)
        answers: dict[str, Any] = complete(
            model, adapter, prompts, evaluation=plan.evaluation, backend=plan.backend, cache=cache
        )
        verdicts: list[Verdict] = []
        for benchmark, (texts, entry) in answers.items():
            given, judged = judge_completions(with_weights(plan.judge), prompts[benchmark], texts, entry.key, cache)
            verdicts += given
            entries += [entry, judged]
        found.append(
            Arm(
                name,
                len(samples),
                float(np.mean([len(s.response) for s in samples])) if samples else 0.0,
                safety_rates(everything, verdicts),
                adapter.curve[-1]["loss"] if adapter else None,
            )
        )
    return found, entries
