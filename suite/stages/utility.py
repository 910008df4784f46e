"""Utility tasks on the un-tuned or the fine-tuned model; one stage a task."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.method import Method
from eval.errors import KeelBenchError
from eval.flops import Shape, Work
from eval.metrics import Rate
from eval.sandbox import Sandbox
from eval.utility.harness import run_task
from eval.utility.language_models import through_transformers, through_vllm
from eval.utility.tasks import RUNS_CODE, UtilityTask, build_task, harness_version
from suite.conditions import devices
from suite.plan import BackendSpec, UtilitySpec, VllmSpec
from suite.progress import progress
from suite.stages.finetuning import Adapter
from suite.stages.generation import intervention
from suite.stages.inference import Inference
from suite.stages.models import LoadedModel
from suite.storage.cache import Entry, StageCache
from suite.storage.tables import read_table, write_table


@dataclass(frozen=True)
class Utility:
    """What a run keeps of its utility tasks."""

    rates: dict[str, Rate]  # utility/<task>
    stderr: dict[str, float | None]  # lm-eval's own, under the same names
    settings: dict[str, Any]  # what the rates rest on: harness, few-shot numbers, chat template, sources
    samples: list[dict[str, Any]]  # one row a document and filter
    entries: tuple[Entry, ...]


def load_tasks(spec: UtilitySpec, data_root: Path | None) -> dict[str, UtilityTask]:
    """The tasks with their documents, and the sandbox tried where one of them runs code.

    Raises:
        KeelBenchError: all that is missing, one a line.
    """
    problems: list[str] = []
    tasks: dict[str, UtilityTask] = {}
    sandbox = Sandbox(spec.sandbox)
    if any(name in RUNS_CODE for name in spec.tasks):
        try:
            sandbox.check()
        except KeelBenchError as error:
            problems.append(str(error))
    for name, asked in spec.tasks.items():
        local = data_root / name if data_root is not None and (data_root / name).is_dir() else None
        try:
            tasks[name] = build_task(
                name,
                local=local,
                fewshot=asked.fewshot,
                chat_template=spec.chat_template,
                sandbox=sandbox,
                parts=asked.parts,
            )
        except KeelBenchError as error:
            problems.append(str(error))
    if problems:
        raise KeelBenchError("\n".join(dict.fromkeys(problems)))
    return tasks


def measure_utility(
    tasks: Mapping[str, UtilityTask],
    model: LoadedModel,
    adapter: Adapter | None,
    *,
    spec: UtilitySpec,
    system: str | None,
    backend: BackendSpec | VllmSpec,
    cache: StageCache,
    inference: Inference,
    method: Method,
) -> Utility:
    """Every task's scores, through the back end that answers the benchmarks (with vLLM, the same running engine), under
    the run's system turn and with what ``method`` does to the model as it answers."""
    made: list[Any] = []
    intervenes = method if method.intervenes else None

    def subject() -> Any:
        if not made:
            if isinstance(backend, VllmSpec):
                made.append(through_vllm(*inference.vllm(adapter)))
            else:
                loaded = inference.transformers(adapter, intervenes)
                steering = inference.steering
                lm = through_transformers(*loaded, batch_size=spec.batch_size, steering=steering, system=system)
                made.append(lm)
        return made[0]

    def work(lengths: Sequence[int]) -> Work:
        """Every document's text forward once, with logits at all of its positions; twice for a method with a second
        pass."""
        lora = adapter.folder if adapter and not backend.merge_adapter else None
        shape = Shape.of_folder(model.weights.folder, lora)
        passes = 1 if method.second_system is None else 2
        flops = None if shape is None else passes * shape.forward(lengths, sum(lengths))
        return Work(sum(lengths), flops, devices(model.compute.device, backend)[1])

    rates: dict[str, Rate] = {}
    stderr: dict[str, float | None] = {}
    settings: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    entries = []
    for name, task in tasks.items():
        limit = spec.tasks[name].limit

        def compute_stage(out: Path, task: UtilityTask = task, limit: int | None = limit) -> Work:
            with progress(f"utility: {task.name}", None):
                found = run_task(
                    task,
                    subject(),
                    limit=limit,
                    chat_template=spec.chat_template,
                    max_new_tokens=spec.max_new_tokens,
                    system=system,
                )
            (out / "scores.json").write_text(json.dumps(found.scores, indent=1))
            write_table(out / "samples.parquet", found.samples)
            return work(found.lengths)

        measured_with = {
            "backend": backend.name,
            "harness": f"lm-eval {harness_version()}",
            "task_version": task.version,
            "metric": task.metric,
            "fewshot": task.fewshot,
            "limit": limit,
            "parts": list(spec.tasks[name].parts or ["all"]),
            "documents": task.key,
            "chat_template": spec.chat_template,
            **_how_run(spec, backend),
            "max_new_tokens": spec.max_new_tokens,
            "sandbox": spec.sandbox if name in RUNS_CODE else None,
            **({} if system is None else {"system": system}),
        }
        inputs = {
            "model": model.weights.key,
            "dtype": model.spec.dtype,
            "attention": None if isinstance(backend, VllmSpec) else model.spec.attention,
            "adapter": adapter.key if adapter else None,
            "merged": backend.merge_adapter if adapter else None,
            "task": name,
            **measured_with,
            **intervention(method),
        }
        entry = cache.entry("utility", "2", inputs, compute_stage, name)
        entries.append(entry)
        scores = json.loads((entry.path / "scores.json").read_text())
        samples += read_table(entry.path / "samples.parquet")
        for variant, score in scores.items():
            stderr[f"utility/{variant}"] = score["stderr"]
            rates[f"utility/{variant}"] = Rate.of(round(score["value"] * score["n"]), score["n"])
        filters = {name + suffix: filter_name for suffix, filter_name in task.variants}
        settings[name] = measured_with | {"source": task.source, "filters": filters}
    return Utility(rates, stderr, settings, samples, tuple(entries))


def _how_run(spec: UtilitySpec, backend: BackendSpec | VllmSpec) -> dict[str, int]:
    """What of the back end's settings scores may depend on: sequences a pass; vLLM's longest context, beyond which
    lm-eval cuts prompts."""
    if isinstance(backend, VllmSpec):
        return {"max_model_len": backend.max_model_len}
    return {"batch_size": spec.batch_size}
