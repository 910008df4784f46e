"""A measurement of filter quality: plant → score with every method → compare → record."""

import json
import logging
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from baselines import get_method
from baselines.records import FloatArray, response_lengths
from eval.errors import KeelBenchError
from suite.provenance import code_fingerprint
from suite.quality.metrics import METRICS, Detection, agreement, detection, random_detection, spearman
from suite.quality.mixture import Mixture, check_anchors, load_planted, plant
from suite.quality.page import write_page
from suite.quality.plan import QualityPlan
from suite.stages.data import load_data
from suite.stages.models import LoadedModel, prepare
from suite.stages.scoring import Scored, missing_files, score
from suite.storage.cache import Entry, StageCache, fingerprint
from suite.storage.tables import write_table
from suite.tracking.run import Tracker

log = logging.getLogger(__name__)

Row = dict[str, Any]


def check(plan: QualityPlan, *, files_only: bool = False) -> Mixture:
    """Read all inputs and list every problem that can be found before a model is loaded.

    Args:
        files_only: leave weights to the caller, which looks at them without fetching any.

    Raises:
        KeelBenchError: one or more problems, one a line.
    """
    problems: list[str] = []
    mixture: Mixture | None = None
    try:
        planted = load_planted(plan.planted)
        mixture = plant(load_data(plan.dataset, plan.paths.data), planted, plan.share)
        check_anchors(plan.methods, planted)
    except KeelBenchError as error:
        problems.append(str(error))
    problems += missing_files([] if files_only else [plan.model], plan.methods)
    if problems or mixture is None:
        raise KeelBenchError("\n".join(problems))
    return mixture


def run(plan: QualityPlan, folder: Path, sweep: str) -> str:
    """Carry out ``plan``. Its tables and its page lie in ``folder`` when it returns, and also when it raises because
    some methods failed: a failing method does not keep the others from scoring.

    Returns:
        The run's id.

    Raises:
        KeelBenchError: anything a user can mend, or methods that failed, each named with its error.
    """
    mixture = check(plan)
    cache = StageCache(plan.paths.cache)
    name = f"{plan.model.name}-{plan.dataset.name}-planted{plan.share:g}-seed{plan.seed}"
    with Tracker(
        plan.tracking, folder=folder, name=name, sweep=sweep, job_type="filter_quality", config=_public(plan)
    ) as tracker:
        scored, errors = _score_all(plan, mixture, cache, folder)
        tables = {
            "filter_quality": quality_rows(plan, mixture, scored, errors),
            "agreement": agreement_rows(plan, mixture, scored),
        }
        for name, rows in tables.items():
            write_table(folder / f"{name}.parquet", rows)
            tracker.table(name, rows)
        write_table(folder / "rankings.parquet", ranking_rows(plan, mixture, scored))
        tracker.summary(_summary(tables["filter_quality"]))
        write_page(folder)
        if errors:
            told = "\n".join(f"{name}: {error}" for name, error in errors.items())
            raise KeelBenchError(f"{len(errors)} of {len(plan.methods)} methods failed\n{told}")
    return fingerprint([e.key for s in scored.values() for e in s.entries])[:12]


def _score_all(
    plan: QualityPlan, mixture: Mixture, cache: StageCache, folder: Path
) -> tuple[dict[str, Scored], dict[str, str]]:
    """Every method's scores, or its error."""
    scored: dict[str, Scored] = {}
    errors: dict[str, str] = {}
    model = LoadedModel(prepare(plan.model, plan.compute, cache), plan.model, plan.compute)
    for name, method in plan.methods.items():
        try:
            if method.uses_model:
                model.get()  # here, so that loading it is nobody's scoring time
            scored[name] = score(method, model, mixture.data, seed=plan.seed, compute=plan.compute, cache=cache)
        except Exception as error:  # whatever one method runs into, out of memory included, the others are measured
            told = str(error) if isinstance(error, KeelBenchError) else f"{type(error).__name__}: {error}"
            errors[name] = told.removeprefix(f"{method.name}: ")
            log.error("%s: %s", name, errors[name])
            if not isinstance(error, KeelBenchError):
                (folder / f"traceback-{name}.txt").write_text(traceback.format_exc())
            model.drop()  # it may have been left with adapters or hooks
    return scored, errors


def quality_rows(
    plan: QualityPlan, mixture: Mixture, scored: Mapping[str, Scored], errors: Mapping[str, str]
) -> list[Row]:
    """One row a method, in the plan's order, then the references; a failed method's row has its error and no metric."""
    labels, lengths = mixture.labels, response_lengths(mixture.data.samples)
    common: Row = {
        "model": plan.model.name,
        "aligned": plan.model.align.name if plan.model.align else "none",
        "dataset": plan.dataset.name,
        "share": plan.share,
        "planted": int(labels.sum()),
        "samples": len(labels),
        "seed": plan.seed,
        "data": mixture.data.key,
        "planted_from": _planted_from(plan),
        "code": code_fingerprint(),
    }

    def row(name: str, kind: str, found: Detection | None, **more: Any) -> Row:
        metrics: Row = dict.fromkeys(METRICS) if found is None else asdict(found)
        about: Row = {"length_correlation": None, "seconds": None, "options": "{}", "info": "{}", "stages": "[]",
                      "error": ""}  # fmt: skip
        return {"name": name, "kind": kind, **metrics, **about, **more, **common}

    def reference(name: str, values: FloatArray) -> Row:
        found = detection(values, labels, seed=plan.seed)
        return row(name, "reference", found, length_correlation=spearman(values, lengths))

    rows = []
    for name, method in plan.methods.items():
        if name in errors:
            rows.append(row(name, "method", None, options=_text(asdict(method)), error=errors[name]))
            continue
        done = scored[name]
        rows.append(
            row(
                name,
                "method",
                detection(done.scores.score, labels, seed=plan.seed),
                length_correlation=spearman(done.scores.score, lengths),
                seconds=_seconds(done.entries),
                options=_text(asdict(done.method)),
                info=_text(done.scores.info),
                stages=_text([f"{e.stage}/{e.key}" for e in done.entries]),
            )
        )
    oracle = labels.astype(np.float64)
    return [
        *rows,
        reference("oracle", oracle),
        row("random", "reference", random_detection(labels, seed=plan.seed), length_correlation=0.0),
        reference("length", lengths),
        reference("inverted", -oracle),
    ]


def agreement_rows(plan: QualityPlan, mixture: Mixture, scored: Mapping[str, Scored]) -> list[Row]:
    """One row for each pair of methods, and of a method with a score that knows nothing: length and random."""
    ids = [s.id for s in mixture.data.samples]
    return agreement(ids, _columns(plan, mixture, scored), int(mixture.labels.sum()))


def ranking_rows(plan: QualityPlan, mixture: Mixture, scored: Mapping[str, Scored]) -> list[Row]:
    """One row a sample: whether it is planted, each method's score, the text."""
    columns = _columns(plan, mixture, scored)
    return [
        {
            "id": sample.id,
            "planted": sample.id in mixture.planted_ids,
            **{name: float(values[i]) for name, values in columns.items()},
            "category": sample.category,
            "prompt": sample.prompt,
            "response": sample.response,
        }
        for i, sample in enumerate(mixture.data.samples)
    ]


def _columns(plan: QualityPlan, mixture: Mixture, scored: Mapping[str, Scored]) -> dict[str, FloatArray]:
    """Every method's scores in the mixture's order, [n] each; then those of length and of one random draw."""
    samples = mixture.data.samples
    columns: dict[str, FloatArray] = {}
    for name, done in scored.items():
        if done.scores.ids != tuple(s.id for s in samples):
            raise ValueError(f"{name} returned its scores in another order than the samples'")
        columns[name] = done.scores.score
    draw = get_method("random")().score(None, None, samples, seed=plan.seed)
    return {**columns, "length": response_lengths(samples), "random": draw.score}


def _seconds(entries: tuple[Entry, ...]) -> float:
    """What scoring took when it was computed, calibration included."""
    return sum(entry.cost.seconds for entry in entries)


def _summary(rows: list[Row]) -> Row:
    """The figures a dashboard compares runs by."""
    shown = ("auroc", "average_precision", "precision_at_planted", "seconds")
    figures = {f"{name}/{row['name']}": row[name] for name in shown for row in rows if row[name] is not None}
    return {k: rows[0][k] for k in ("model", "dataset", "share", "planted", "samples", "seed")} | figures


def _public(plan: QualityPlan) -> Row:
    """The plan as JSON for W&B, without local paths."""
    values = asdict(plan)
    values["methods"] = {name: {"name": m.name, **asdict(m)} for name, m in plan.methods.items()}
    values["dataset"] = {k: v for k, v in values["dataset"].items() if not k.endswith("source")}
    values["planted"] = _planted_from(plan)
    for private in ("paths", "tracking"):
        del values[private]
    if Path(plan.model.source).is_absolute():
        values["model"]["source"] = Path(plan.model.source).name
    public: Row = json.loads(_text(values))
    return public


def _planted_from(plan: QualityPlan) -> str:
    return "embedded" if plan.planted.path is None else Path(plan.planted.path).name


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
