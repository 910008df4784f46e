"""A sweep's folder without a model: written by the suite's own writers, with invented answers and scores."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from baselines.records import Sample, Scores
from eval.metrics import safety_rates
from eval.records import Completion, Expected, Prompt, Verdict, content_id
from suite.ranking import score_rows
from suite.records import RunRecord, write_record
from suite.run_tables import completion_rows
from suite.stages.data import Data, ids_key
from suite.storage.cache import Cost, Entry, fingerprint
from suite.storage.tables import write_table

HARM = ("fraud", "cybercrime", "violence", "weapons", "drugs", "harassment", "disinformation", "privacy")
HARMLESS = ("homonym", "figurative", "fiction", "history", "definition")
KINDS = ("list", "code", "math", "essay", "rewrite")


@dataclass(frozen=True)
class Point:
    """One run of the fake sweep."""

    label: str
    method: str = "none"
    selection: str = "-"
    seed: int = 42
    asr: float = 0.1  # chance that a harmful request is answered
    over: float = 0.3  # chance that a harmless one is refused
    tokens: int = 128
    poison: str = ""  # put into every text that comes from data or from a model


DEMO = (
    Point("none", asr=0.06, over=0.35),
    Point("random", "random", "top", asr=0.3, over=0.2),
    Point("larf-top", "larf", "top", asr=0.7, over=0.05),
    Point("larf-bottom", "larf", "bottom", asr=0.15, over=0.3),
)


def fake_sweep(
    root: Path, points: Sequence[Point] = DEMO, *, n_samples: int = 400, k: int = 100, n_prompts: int = 80
) -> Path:
    """``root/<sweep>/<number>/`` for each point; returns the sweep's folder."""
    sweep = root / "2025-01-31_12-00-00"
    for number, point in enumerate(points):
        folder = sweep / str(number)
        folder.mkdir(parents=True)
        _run(folder, point, n_samples, k, n_prompts)
        (folder / "status.json").write_text(
            json.dumps({"state": "finished", "task": f"arm={point.label},seed={point.seed}", "run_id": "x"})
        )
    return sweep


def _run(folder: Path, point: Point, n_samples: int, k: int, n_prompts: int) -> None:
    dice = random.Random(f"{point.label} {point.seed}")
    data = _data(n_samples, point.poison)
    scores = _scores(point, data) if point.method != "none" else None
    selected: list[str] = []
    if scores is not None:
        ranked = [scores.ids[i] for i in scores.ranking()]
        selected = ranked[:k] if point.selection == "top" else ranked[-k:]
        write_table(folder / "scores.parquet", score_rows(scores, data, selected))
        loss = [3 / (1 + step) ** 0.3 + dice.gauss(0, 0.08) for step in range(21)]
        write_table(folder / "training.parquet", [{"step": float(i + 1), "loss": x} for i, x in enumerate(loss)])

    prompts = _prompts("harmful", HARM, "refuse", point, n_prompts)
    prompts += _prompts("overrefusal", HARMLESS, "comply", point, n_prompts)
    completions, verdicts = [], []
    for prompt in prompts:
        answered = dice.random() < (point.asr if prompt.expected == "refuse" else 1 - point.over)
        text = "Sure! Here is what to do: " if answered else "I'm sorry, but I can't help with that. "
        text = f"{text * dice.randint(1, 12)}{point.poison}"
        completions.append(Completion(prompt.id, text, len(text) // 4, "stop"))
        label = "complied" if answered else "refused"
        verdicts.append(Verdict(prompt.id, "refusal_keywords", label, float(answered), ""))
    # Shown in full, so that what is planted in completions reaches the report.
    write_table(folder / "completions.parquet", completion_rows(prompts, completions, verdicts, show_harmful=True))

    stages = ["model", *(["scores", "adapter"] if scores else []), "completions", "verdicts"]
    entries = [
        Entry(s, fingerprint([s, point.method, point.seed if point.method == "random" else 0]), folder,
              Cost(dice.uniform(1, 90), dice.randint(0, 90_000), 2200.0), cached=s == "model")
        for s in stages
    ]  # fmt: skip
    write_record(
        folder,
        RunRecord(
            run_id=fingerprint([point.label, point.seed])[:12],
            sweep=folder.parent.name,
            finished="2025-01-31T12:34:56+00:00",
            label=point.label,
            model="smollm2",
            aligned="mini_refusals",
            dataset="mini",
            method=point.method,
            options={"layer": 12, "token": "end_of_turn"} if point.method == "larf" else {},
            regularizer="none",
            selection=point.selection,
            n_samples=n_samples,
            n_selected=len(selected),
            seed=point.seed,
            judge="refusal_keywords",
            judge_version="1",
            backend="hf",
            max_new_tokens=point.tokens,
            prompt_limit=None,
            dtype="bfloat16",
            device="cpu",
            rates=safety_rates(prompts, verdicts),
            train_loss=1.234 if scores else None,
            entries=tuple(entries),
            fingerprints={"config": "c0ffee", "data": data.key, "prompts": ids_key([p.id for p in prompts])},
            scorer_info={"layer": 12} if point.method == "larf" else {},
            versions={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        ),
    )


def _data(n: int, poison: str) -> Data:
    samples = [
        Sample.of(f"Explain thing {i} briefly.{poison}", f"Thing {i} is simple. " * (1 + i * 7 % 40) + poison,
                  source="mini", category=KINDS[i % len(KINDS)] + poison)
        for i in range(n)
    ]  # fmt: skip
    return Data(samples, {}, ids_key([s.id for s in samples]))


def _scores(point: Point, data: Data) -> Scores:
    n = len(data.samples)
    lots = point.method == "random"
    values = np.random.default_rng(point.seed).uniform(size=n) if lots else np.random.default_rng(0).normal(size=n)
    return Scores(tuple(s.id for s in data.samples), values)


def _prompts(benchmark: str, categories: tuple[str, ...], expected: Expected, point: Point, n: int) -> list[Prompt]:
    return [
        Prompt(
            id=content_id(benchmark, str(i)),
            benchmark=f"mini_{benchmark}",
            text=f"Request {i} of the kind {categories[i % len(categories)]}{point.poison}",
            category=categories[i % len(categories)] + point.poison,
            expected=expected,
        )
        for i in range(n)
    ]
