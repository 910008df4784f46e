"""Completions of every benchmark by the un-tuned or the fine-tuned model."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from baselines.method import Method
from eval.records import Completion, Prompt, as_rows
from suite.cache import Entry, StageCache
from suite.plan import BackendSpec, EvalSpec, VllmSpec
from suite.progress import Advance, progress
from suite.stages.data import ids_key
from suite.stages.finetuning import Adapter
from suite.stages.models import LoadedModel, load
from suite.stages.scoring import _options as options_of
from suite.tables import read_table, write_table
from suite.unfinished import Unfinished

log = logging.getLogger(__name__)

STAGE, VERSION = "completions", "2"
CHUNK = 1024  # prompts that vLLM is given at once


class Subject(Protocol):
    """The model that answers, made ready when the first answer is missing."""

    def answer(self, name: str, evaluation: EvalSpec, advance: Advance, parts: "Parts") -> list[Completion]:
        """The completions of the benchmark ``name``, those in ``parts`` taken from there."""
        ...

    def release(self) -> None: ...


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
) -> dict[str, tuple[list[Completion], Entry]]:
    """Each benchmark's completions, by its name; one cache entry a benchmark, so that adding one recomputes none.

    With ``hf`` a benchmark's prompts are batched among themselves: its completions do not depend on what else was asked
    for. vLLM gets all that is missing in one call and batches as it goes.
    """
    method = method if method is not None and method.intervenes else None
    changed: dict[str, Any] = {}
    if method is not None:
        changed["intervention"] = {"name": method.name, "version": method.version, **options_of(method)}
    inputs = {name: _inputs(model, adapter, asked, evaluation, backend) | changed for name, asked in prompts.items()}
    missing = {
        name: asked
        for name, asked in prompts.items()
        if not (cache.root / STAGE / cache.key(STAGE, VERSION, inputs[name])).is_dir()
    }
    subject: Subject = (
        _Vllm(model, adapter, backend, prompts, list(missing))
        if isinstance(backend, VllmSpec)
        else _Transformers(model, adapter, backend, prompts, method)
    )
    results = {}
    try:
        for name, asked in prompts.items():
            entry = _benchmark(subject, name, len(asked), evaluation, inputs[name], cache)
            rows = read_table(entry.path / "completions.parquet")
            results[name] = ([Completion(**row) for row in rows], entry)
    finally:
        subject.release()
    return results


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
    subject: Subject, name: str, n: int, evaluation: EvalSpec, inputs: Mapping[str, Any], cache: StageCache
) -> Entry:
    def compute_stage(out: Path, unfinished: Unfinished) -> int:
        with progress(f"answering {name}", n) as advance:
            completions = subject.answer(name, evaluation, advance, Parts(unfinished))
        write_table(out / "completions.parquet", as_rows(completions))
        return sum(c.n_tokens for c in completions)

    return cache.resumable_entry(STAGE, VERSION, inputs, compute_stage, f"{name} ({n} prompts)")


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
        self._unfinished.keep(
            f"part-{self._count:06d}.parquet", lambda path: write_table(path, as_rows(list(completions)))
        )
        self._count += 1


class _Transformers:
    """transformers' generate, with the adapter on; loaded when the first answer is missing."""

    def __init__(
        self,
        model: LoadedModel,
        adapter: Adapter | None,
        backend: BackendSpec,
        prompts: Mapping[str, Sequence[Prompt]],
        method: Method | None,
    ):
        self.model, self.adapter, self.backend, self.prompts = model, adapter, backend, prompts
        self.method = method  # that intervenes
        self._ready: tuple[Any, Any] | None = None

    def answer(self, name: str, evaluation: EvalSpec, advance: Advance, parts: Parts) -> list[Completion]:
        from eval.generation import generate

        if self._ready is None:
            self._ready = self._load()
        return generate(
            *self._ready,
            self.prompts[name],
            max_new_tokens=evaluation.max_new_tokens,
            tokens_per_batch=self.backend.tokens_per_batch,
            system=evaluation.system,
            on_batch=advance,
            kept=parts.kept,
            keep=parts.keep,
        )

    def _load(self) -> tuple[Any, Any]:
        base, tokenizer = self.model.get()
        if self.adapter is not None:
            self.model.drop()
            base = with_adapter(base, self.adapter.folder)
            base = base.merge_and_unload() if self.backend.merge_adapter else base
            base.eval()
        if self.method is not None:
            self.model.drop()  # what intervenes stays in the model
            self.method.intervene(base, tokenizer)
        return base, tokenizer

    def release(self) -> None:
        self._ready = None


class _Vllm:
    """vLLM's engine, started once. It is given the missing prompts of all benchmarks in their order, ``CHUNK`` at a
    time, so that a small benchmark does not leave it idle; a kill loses a chunk."""

    def __init__(
        self,
        model: LoadedModel,
        adapter: Adapter | None,
        backend: VllmSpec,
        prompts: Mapping[str, Sequence[Prompt]],
        missing: Sequence[str],
    ):
        self.model, self.adapter, self.backend, self.prompts = model, adapter, backend, prompts
        self._missing = list(missing)
        self._answers: dict[tuple[str, str], Completion] = {}  # by benchmark and prompt
        self._open = contextlib.ExitStack()
        self._engine: Any = None

    def answer(self, name: str, evaluation: EvalSpec, advance: Advance, parts: Parts) -> list[Completion]:
        self._answers |= {(name, p.id): parts.kept[p.id] for p in self.prompts[name] if p.id in parts.kept}
        while waiting := self._waiting(name):
            chunk = waiting + [x for other in self._missing if other != name for x in self._waiting(other)]
            chunk = chunk[:CHUNK]
            if self._engine is None:
                self._engine = self._start()
            fresh = self._engine.generate(
                [prompt for _, prompt in chunk], max_new_tokens=evaluation.max_new_tokens, system=evaluation.system
            )
            for (benchmark, prompt), completion in zip(chunk, fresh, strict=True):
                self._answers[benchmark, prompt.id] = completion
            mine = [c for (benchmark, _), c in zip(chunk, fresh, strict=True) if benchmark == name]
            parts.keep(mine)
            advance(len(mine))
        self._missing = [other for other in self._missing if other != name]
        return [self._answers[name, p.id] for p in self.prompts[name]]

    def _waiting(self, name: str) -> list[tuple[str, Prompt]]:
        return [(name, p) for p in self.prompts[name] if (name, p.id) not in self._answers]

    def _start(self) -> Any:
        import tempfile
        from dataclasses import asdict

        from eval.vllm_engine import VllmEngine

        self.model.drop()  # its memory is the engine's now
        spec = self.model.spec
        options = {k: v for k, v in asdict(self.backend).items() if k not in ("name", "merge_adapter")}
        folder, adapter = self.model.weights.folder, self.adapter.folder if self.adapter else None
        scratch = self._open.enter_context(tempfile.TemporaryDirectory())
        if adapter is not None and self.backend.merge_adapter:
            base, tokenizer = load(folder, spec, self.model.compute)
            folder = Path(scratch)
            with_adapter(base, adapter).merge_and_unload().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            del base
            adapter = None
        return self._open.enter_context(VllmEngine(folder, adapter, dtype=spec.dtype, **options))

    def release(self) -> None:
        self._open.close()
        self._engine = None
        self._answers.clear()


def with_adapter(base: Any, folder: Path) -> Any:
    """The model with a LoRA adapter on, in the base's dtype, as inference engines load adapters; in float32 they would
    double the time."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
