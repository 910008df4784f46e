"""Scores of a fine-tuning set: computed once for a model, a data set and a method, cut anywhere later."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from baselines.method import Engine, Method
from baselines.records import Scores
from eval.errors import KeelBenchError
from eval.flops import Work
from suite.conditions import devices
from suite.machine import kept_memory
from suite.plan import ComputeSpec, ModelSpec
from suite.progress import progress
from suite.stages.data import Data
from suite.stages.models import LoadedModel, locate
from suite.stages.score_files import read_scores, write_scores
from suite.stages.scoring_ranks import Job, processes, score_over_processes
from suite.storage.cache import Entry, StageCache
from suite.storage.unfinished import Unfinished, without_checksum


def missing_files(models: Iterable[ModelSpec], methods: Mapping[str, Method]) -> list[str]:
    """Why the models or the methods cannot be read, a line each; nothing is loaded."""
    problems = []
    for model in models:
        try:
            locate(model)
        except KeelBenchError as error:
            problems.append(str(error))
    for name, method in methods.items():
        try:
            method.calibration()  # reads the method's own files
        except KeelBenchError as error:
            problems.append(f"methods.{name}: {error}")
    return problems


@dataclass(frozen=True)
class Scored:
    scores: Scores
    entries: tuple[Entry, ...]
    method: Method  # as it scored: with what calibration found


def score(
    method: Method, model: LoadedModel, data: Data, *, seed: int, compute: ComputeSpec, cache: StageCache
) -> Scored:
    """The method's scores of ``data``; calibration (LARF's layer) is a stage of its own, one for all data sets."""
    entries: tuple[Entry, ...] = ()
    asked = method.calibration()
    if asked is not None:
        entry = _calibration(method, asked, model, compute, cache)
        method = method.calibrated(json.loads((entry.path / "calibration.json").read_text()))
        entries = (entry,)

    def compute_stage(out: Path, unfinished: Unfinished) -> Work:
        if method.uses_model and (ranks := processes(compute.scoring_processes, method)) > 1:
            model.drop()  # its memory is the ranks' now
            job = Job(
                method=method,
                samples=data.samples,
                weights=model.weights.folder,
                spec=model.spec,
                compute=compute,
                seed=seed,
            )
            scores = score_over_processes(job, ranks)
            write_scores(out, scores)
            return work(scores, ranks)
        scorer, tokenizer = model.get() if method.uses_model else (None, None)
        resumable = method.resumable_in(str(unfinished.folder))
        with kept_memory(), progress(f"scoring with {method.name}", len(data.samples)) as advance:
            engine = replace(_engine(compute, advance), parts=Rows(unfinished))
            scores = resumable.score(scorer, tokenizer, data.samples, seed=seed, engine=engine)
        write_scores(out, scores)
        for selector in unfinished.folder.glob("selector-*.safetensors"):  # SEAL's: method.selector_file reads it
            shutil.move(selector, out / "selector.safetensors")
        return work(scores, 1)

    def work(scores: Scores, ranks: int) -> Work:
        gpus = ranks if method.uses_model and devices(compute.device)[1] else 0
        return Work(int(scores.info.get("tokens", 0)), scores.info.get("flops"), gpus)

    inputs = {
        "method": method.name,
        "method_version": method.version,
        "options": method_options(method),
        "data": data.key,
        "model": model.weights.key if method.uses_model else None,
        "dtype": model.spec.dtype if method.uses_model else None,
        "attention": model.spec.attention if method.uses_model else None,
        "max_length": compute.max_length if method.uses_model else None,
        "seed": seed if method.uses_seed else None,
    }
    entry = cache.resumable_entry("scores", "1", inputs, compute_stage, f"{method.name} ({len(data.samples)} samples)")
    return Scored(read_scores(entry.path), (*entries, entry), method)


class Rows:
    """``baselines.method.Parts`` in the folder of an unfinished stage."""

    def __init__(self, unfinished: Unfinished):
        self._unfinished = unfinished
        self._found = {without_checksum(file): file for file in unfinished.sound("rows-")}

    def find(self, start: int, count: int) -> Any | None:
        from safetensors.torch import load_file

        file = self._found.get(self._name(start, count))
        return None if file is None else load_file(file)["rows"]

    def keep(self, start: int, rows: Any) -> None:
        from safetensors.torch import save_file

        self._unfinished.keep(self._name(start, len(rows)), lambda path: save_file({"rows": rows.contiguous()}, path))

    @staticmethod
    def _name(start: int, count: int) -> str:
        return f"rows-{start:09d}-{count}.safetensors"


def _calibration(
    method: Method, asked: dict[str, object], model: LoadedModel, compute: ComputeSpec, cache: StageCache
) -> Entry:
    def compute_stage(out: Path) -> Work:
        with progress(f"calibrating {method.name}", None) as advance:
            measured = method.calibrate(*model.get(), engine=_engine(compute, advance))
        (out / "calibration.json").write_text(json.dumps(measured, indent=1))
        return Work(int(measured.get("tokens", 0)), measured.get("flops"), devices(compute.device)[1])

    inputs = {
        "method": method.name,
        "method_version": method.version,
        "options": json.loads(json.dumps(asked)),
        "model": model.weights.key,
        "dtype": model.spec.dtype,
        "attention": model.spec.attention,
    }
    return cache.entry("calibration", "1", inputs, compute_stage, method.name)


def _engine(compute: ComputeSpec, advance: object) -> Engine:
    return Engine(
        tokens_per_batch=compute.scoring_tokens_per_batch,
        max_length=compute.max_length,
        on_progress=advance,  # type: ignore[arg-type]
    )


def method_options(method: Method) -> dict[str, object]:
    """The options that a score depends on, as JSON; a file among them counts by its content."""
    from suite.storage.cache import file_sha256

    idle = {f.name for f in fields(method) if f.metadata.get("identity") is False}  # where a checkpoint goes, say
    options: dict[str, object] = {k: v for k, v in asdict(method).items() if k not in idle}
    for name, value in options.items():
        if isinstance(value, str) and Path(value).is_file():
            options[name] = {"sha256": file_sha256(Path(value))}
    plain: dict[str, object] = json.loads(json.dumps(options))
    return plain
