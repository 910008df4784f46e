"""Completions of every benchmark by the un-tuned or the fine-tuned model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from baselines.method import Method
from eval.chat import ChatFormat
from eval.flops import Shape, Work
from eval.records import Completion, Prompt, as_rows
from suite.conditions import devices
from suite.plan import BackendSpec, EvalSpec, VllmSpec
from suite.progress import Advance, progress
from suite.stages.data import ids_key
from suite.stages.finetuning import Adapter
from suite.stages.inference import Inference
from suite.stages.models import LoadedModel
from suite.stages.scoring import method_options
from suite.storage.cache import Entry, StageCache
from suite.storage.tables import read_table, write_table
from suite.storage.unfinished import Unfinished

log = logging.getLogger(__name__)

STAGE, VERSION = "completions", "2"
CHUNK = 1024  # prompts that vLLM is given at once


def check_backend(backend: BackendSpec | VllmSpec) -> None:
    """
    Raises:
        KeelBenchError: what the back end needs is not installed.
    """
    if isinstance(backend, VllmSpec):
        from eval.vllm_engine import check_installed

        check_installed()


def complete(
    model: LoadedModel,
    adapter: Adapter | None,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    evaluation: EvalSpec,
    backend: BackendSpec | VllmSpec,
    cache: StageCache,
    method: Method | None = None,
    inference: Inference | None = None,
) -> dict[str, tuple[list[Completion], Entry]]:
    """Each benchmark's completions, by its name; one cache entry a benchmark, so that adding one recomputes none.

    With ``hf`` a benchmark's prompts are batched among themselves: its completions do not depend on what else was asked
    for. vLLM gets what is missing of all of them, ``CHUNK`` prompts at a time, and batches as it goes. Without
    ``inference`` what answers is loaded or started for this call alone.
    """
    if inference is None:
        with Inference(model, backend, [adapter] if adapter else []) as own:
            return complete(
                model,
                adapter,
                prompts,
                evaluation=evaluation,
                backend=backend,
                cache=cache,
                method=method,
                inference=own,
            )
    method = method if method is not None and method.intervenes else None
    changed = intervention(method)
    inputs = {name: _inputs(model, adapter, asked, evaluation, backend) | changed for name, asked in prompts.items()}
    missing = {
        name: asked
        for name, asked in prompts.items()
        if not (cache.root / STAGE / cache.key(STAGE, VERSION, inputs[name])).is_dir()
    }
    together = _Together(inference, adapter, prompts, list(missing), evaluation)

    def answer(name: str, advance: Advance, parts: "Parts") -> list[Completion]:
        if isinstance(backend, VllmSpec):
            return together(name, advance, parts)
        from eval.generation import generate

        loaded = inference.transformers(adapter, method)
        return generate(
            *loaded,
            prompts[name],
            max_new_tokens=evaluation.max_new_tokens,
            tokens_per_batch=backend.tokens_per_batch,
            system=evaluation.system,
            steering=inference.steering,
            on_batch=advance,
            kept=parts.kept,
            keep=parts.keep,
        )

    def count(asked: Sequence[Prompt], completions: Sequence[Completion]) -> Work:
        return _work(model, adapter, backend, asked, completions, evaluation.system, method)

    results = {}
    for name, asked in prompts.items():
        entry = _benchmark(partial(answer, name), name, asked, inputs[name], cache, count)
        rows = read_table(entry.path / "completions.parquet")
        results[name] = ([Completion(**row) for row in rows], entry)
    return results


def intervention(method: Method | None) -> dict[str, Any]:
    """What a method that changes the model as it answers adds to a stage's inputs."""
    if method is None or not method.intervenes:
        return {}
    return {"intervention": {"name": method.name, "version": method.version, **method_options(method)}}


def _inputs(
    model: LoadedModel,
    adapter: Adapter | None,
    prompts: Sequence[Prompt],
    evaluation: EvalSpec,
    backend: BackendSpec | VllmSpec,
) -> dict[str, Any]:
    """What completions depend on."""
    return {
        "model": model.weights.key,
        "dtype": model.spec.dtype,
        "attention": None if isinstance(backend, VllmSpec) else model.spec.attention,
        "adapter": adapter.key if adapter else None,
        "merged": backend.merge_adapter if adapter else None,
        "backend": backend.name,
        "prompts": ids_key([p.id for p in prompts]),
        "max_new_tokens": evaluation.max_new_tokens,
        "system": evaluation.system,
    }


def _benchmark(
    answer: Callable[[Advance, "Parts"], list[Completion]],
    name: str,
    asked: Sequence[Prompt],
    inputs: Mapping[str, Any],
    cache: StageCache,
    count: Callable[[Sequence[Prompt], Sequence[Completion]], Work],
) -> Entry:
    def compute_stage(out: Path, unfinished: Unfinished) -> Work:
        with progress(f"answering {name}", len(asked)) as advance:
            completions = answer(advance, Parts(unfinished))
        write_table(out / "completions.parquet", as_rows(completions))
        return count(asked, completions)

    return cache.resumable_entry(STAGE, VERSION, inputs, compute_stage, f"{name} ({len(asked)} prompts)")


class Parts:
    """Batches of completions that are on disk before their benchmark is finished."""

    def __init__(self, unfinished: Unfinished):
        self._unfinished = unfinished
        files = unfinished.sound("part-")
        self.kept = {row["prompt_id"]: Completion(**row) for file in files for row in read_table(file)}
        self._count = len(files)
        if self.kept:
            log.info("%d completions are there already", len(self.kept))

    def keep(self, completions: Sequence[Completion]) -> None:
        # Numbered on from what is there; a number that returns after a damaged part has another checksum.
        rows = as_rows(list(completions))
        self._unfinished.keep(f"part-{self._count:06d}.parquet", lambda path: write_table(path, rows))
        self._count += 1


def _work(
    model: LoadedModel,
    adapter: Adapter | None,
    backend: BackendSpec | VllmSpec,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    system: str | None,
    method: Method | None,
) -> Work:
    """Tokens generated, and the operations of reading prompts and answers once; twice for a method with a second pass.
    What a method measures before it intervenes is not counted."""
    from transformers import AutoTokenizer

    new = [c.n_tokens for c in completions]
    shape = Shape.of_folder(model.weights.folder, adapter.folder if adapter and not backend.merge_adapter else None)
    gpus = devices(model.compute.device, backend)[1]
    if shape is None:
        return Work(sum(new), None, gpus)
    chat = ChatFormat(AutoTokenizer.from_pretrained(model.weights.folder, trust_remote_code=False))
    systems = [system] if method is None or method.second_system is None else [system, method.second_system]
    flops = sum(shape.answering([len(chat.prompt_ids(p.text, turn)) for p in prompts], new) for turn in systems)
    return Work(sum(new), flops, gpus)


class _Together:
    """vLLM's answers. It is given the missing prompts of all benchmarks in their order, ``CHUNK`` at a time, so that a
    small benchmark does not leave it idle; a kill loses a chunk."""

    def __init__(
        self,
        inference: Inference,
        adapter: Adapter | None,
        prompts: Mapping[str, Sequence[Prompt]],
        missing: Sequence[str],
        evaluation: EvalSpec,
    ):
        self.inference, self.adapter, self.prompts, self.evaluation = inference, adapter, prompts, evaluation
        self._missing = list(missing)
        self._answers: dict[tuple[str, str], Completion] = {}  # by benchmark and prompt

    def __call__(self, name: str, advance: Advance, parts: Parts) -> list[Completion]:
        self._answers |= {(name, p.id): parts.kept[p.id] for p in self.prompts[name] if p.id in parts.kept}
        while waiting := self._waiting(name):
            chunk = waiting + [x for other in self._missing if other != name for x in self._waiting(other)]
            chunk = chunk[:CHUNK]
            engine, adapter = self.inference.vllm(self.adapter)
            fresh = engine.generate(
                [prompt for _, prompt in chunk],
                adapter=adapter,
                max_new_tokens=self.evaluation.max_new_tokens,
                system=self.evaluation.system,
            )
            for (benchmark, prompt), completion in zip(chunk, fresh, strict=True):
                self._answers[benchmark, prompt.id] = completion
            mine = [c for (benchmark, _), c in zip(chunk, fresh, strict=True) if benchmark == name]
            parts.keep(mine)
            advance(len(mine))
        self._missing = [other for other in self._missing if other != name]
        return [self._answers.pop((name, p.id)) for p in self.prompts[name]]

    def _waiting(self, name: str) -> list[tuple[str, Prompt]]:
        return [(name, p) for p in self.prompts[name] if (name, p.id) not in self._answers]
