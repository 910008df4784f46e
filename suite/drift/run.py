"""A measurement of drift: find the adapters → read states → move, direction, coordinates → record."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from baselines.method import Engine
from eval.errors import KeelBenchError
from eval.records import Prompt
from suite.drift.measure import Floats, common_directions, compliance_direction, drift, prompt_states
from suite.drift.page import write_page
from suite.drift.plan import DriftPlan
from suite.progress import progress
from suite.records import adapter_key
from suite.report.find import find_sweep
from suite.results import collect
from suite.stages.data import ids_key, load_prompts
from suite.stages.inference import with_adapter
from suite.stages.models import LoadedModel, prepare
from suite.storage.cache import Entry, StageCache, fingerprint
from suite.storage.tables import write_table
from suite.tracking.run import Tracker

Row = dict[str, Any]

UNTUNED = "un-tuned"


def find_adapters(plan: DriftPlan) -> dict[str, str]:
    """Label -> key of the adapter of every fine-tuned run of the plan's model and seed; equal adapters stand once.

    Raises:
        KeelBenchError: no such run, or two of one label.
    """
    found: dict[str, str] = {}
    for name in plan.experiments:
        for row in collect(find_sweep(name, plan.runs)):
            key = adapter_key(row)
            aligned = plan.model.align.name if plan.model.align else "none"
            if key is None or (row["model"], row["aligned"], row["seed"]) != (plan.model.name, aligned, plan.seed):
                continue
            label = str(row["label"])
            if found.setdefault(label, key) != key:
                raise KeelBenchError(
                    f"two runs called {label}, of different adapters, in {', '.join(plan.experiments)}"
                )
    if not found:
        raise KeelBenchError(
            f"{', '.join(plan.experiments)}: no fine-tuned run of {plan.model.name} with seed {plan.seed}"
        )
    return found


def check(plan: DriftPlan) -> tuple[dict[str, str], list[Prompt]]:
    """Read all inputs and list every problem that can be found before a model is loaded.

    Returns:
        ``find_adapters``'s, and the prompts to be refused.

    Raises:
        KeelBenchError: one or more problems, one a line.
    """
    problems: list[str] = []
    adapters: dict[str, str] = {}
    prompts: list[Prompt] = []
    try:
        adapters = find_adapters(plan)
    except KeelBenchError as error:
        problems.append(str(error))
    unread = False
    for benchmark in plan.benchmarks:
        try:
            asked = load_prompts(benchmark, plan.limit, plan.paths.data)
            prompts += [p for p in asked if p.expected == "refuse"]
        except KeelBenchError as error:
            problems.append(str(error))
            unread = True
    if len(prompts) < 3 and not unread:
        problems.append(f"{plan.data or 'no benchmark'} has {len(prompts)} harmful prompts: at least 3")
    cache = StageCache(plan.paths.cache)
    missing = [key for key in adapters.values() if cache.find("adapter", key) is None]
    if missing:
        problems.append(f"{plan.paths.cache} has no adapter {', '.join(missing)}: run the experiment with this cache")
    if problems:
        raise KeelBenchError("\n".join(problems))
    return adapters, prompts


def run(plan: DriftPlan, folder: Path, sweep: str) -> str:
    """Carry out ``plan``; its tables and page lie in ``folder`` when it returns, and the tables in W&B.

    Returns:
        The run's id.

    Raises:
        KeelBenchError: anything a user can mend.
    """
    adapters, prompts = check(plan)
    cache = StageCache(plan.paths.cache)
    name = f"{plan.model.name}-{plan.data}-drift"
    with Tracker(
        plan.tracking,
        folder=folder,
        name=name,
        sweep=sweep,
        job_type="drift",
        config={"model": plan.model.name, "data": plan.data, "layer": plan.layer, "seed": plan.seed},
    ) as tracker:
        weights = prepare(plan.model, plan.compute, cache)
        model = LoadedModel(weights, plan.model, plan.compute)
        texts = [p.text for p in prompts]
        key = ids_key([p.id for p in prompts])
        entries = [_states_entry(plan, model, None, texts, key, cache)]
        entries += [_states_entry(plan, model, adapter, texts, key, cache) for adapter in adapters.values()]
        loaded = [np.load(entry.path / "states.npz", allow_pickle=False) for entry in entries]
        states: dict[str, Floats] = dict(zip([UNTUNED, *adapters], (each["states"] for each in loaded), strict=True))
        principal = common_directions(states)
        run_id = fingerprint([e.key for e in entries])[:12]
        stages = [*weights.entries, *entries]
        about = {
            "run_id": run_id,
            "model": plan.model.name,
            "aligned": plan.model.align.name if plan.model.align else "none",
            "data": plan.data,
            "prompts": len(prompts),
            "layer": plan.layer,
            "seed": plan.seed,
        }
        measured = {
            "explained": float(principal.explained.sum()),
            "stages": json.dumps([f"{e.stage}/{e.key}" for e in stages]),
            "stages_from_cache": sum(e.cached for e in stages),
        }
        rows: list[Row] = [
            {
                **about,
                "label": label,
                "adapter": adapter,
                **asdict(drift(states[UNTUNED], states[label], loaded[0]["compliance"])),
                **measured,
            }
            for label, adapter in adapters.items()
        ]
        points: list[Row] = [
            {"label": label, "prompt_id": prompt.id, "category": prompt.category, "pc1": float(x), "pc2": float(y)}
            for label, each in states.items()
            for prompt, (x, y) in zip(prompts, principal.project(each), strict=True)
        ]
        for name, table in (("drift", rows), ("drift_points", points)):
            write_table(folder / f"{name}.parquet", table)
            tracker.table(name, table)
        tracker.summary({f"drift/{row['label']}/{k}": row[k] for row in rows for k in ("shift", "towards_compliance")})
        write_page(folder)
    return run_id


def _states_entry(
    plan: DriftPlan, model: LoadedModel, adapter: str | None, texts: list[str], key: str, cache: StageCache
) -> Entry:
    """The prompts' states under one adapter; of the un-tuned model also the direction towards compliance."""

    def compute_stage(out: Path) -> int:
        loaded, tokenizer = model.get()
        if adapter is not None:
            model.drop()  # the adapter lives in the base model's modules
            loaded = with_adapter(loaded, cache.root / "adapter" / adapter).eval()
        with progress("reading hidden states", len(texts)) as advance:
            engine = Engine(
                tokens_per_batch=plan.compute.scoring_tokens_per_batch,
                max_length=plan.compute.max_length,
                on_progress=advance,
            )
            arrays = {"states": prompt_states(loaded, tokenizer, texts, plan.layer, engine)}
        if adapter is None:
            arrays["compliance"] = compliance_direction(loaded, tokenizer, plan.layer)
        np.savez(out / "states.npz", **arrays)  # type: ignore[arg-type]
        return 0

    inputs = {
        "model": model.weights.key,
        "dtype": model.spec.dtype,
        "attention": model.spec.attention,
        "adapter": adapter,
        "prompts": key,
        "layer": plan.layer,
        "max_length": plan.compute.max_length,
    }
    return cache.entry("prompt_states", "1", inputs, compute_stage, f"({len(texts)} prompts)")
