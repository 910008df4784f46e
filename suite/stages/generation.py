"""Completions of every benchmark by the un-tuned or the fine-tuned model."""

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

STAGE, VERSION = "completions", "2"


class Subject(Protocol):
    """The model that answers, made ready when the first answer is missing."""

    def answer(self, name: str, evaluation: EvalSpec, advance: Advance) -> list[Completion]:
        """The completions of the benchmark ``name``."""
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
    def compute_stage(out: Path) -> int:
        with progress(f"answering {name}", n) as advance:
            completions = subject.answer(name, evaluation, advance)
        write_table(out / "completions.parquet", as_rows(completions))
        return sum(c.n_tokens for c in completions)

    return cache.entry(STAGE, VERSION, inputs, compute_stage, f"{name} ({n} prompts)")


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

    def answer(self, name: str, evaluation: EvalSpec, advance: Advance) -> list[Completion]:
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
        )

    def _load(self) -> tuple[Any, Any]:
        base, tokenizer = tuned(self.model, self.adapter, merge=self.backend.merge_adapter)
        if self.method is not None:
            self.model.drop()  # what intervenes stays in the model
            self.method.intervene(base, tokenizer)
        return base, tokenizer

    def release(self) -> None:
        self._ready = None


class _Vllm:
    """vLLM's engine, started once; the first missing answer brings all of them."""

    def __init__(
        self,
        model: LoadedModel,
        adapter: Adapter | None,
        backend: VllmSpec,
        prompts: Mapping[str, Sequence[Prompt]],
        missing: Sequence[str],
    ):
        self.model, self.adapter, self.backend, self.prompts = model, adapter, backend, prompts
        self._waiting = list(missing)
        self._answers: dict[str, list[Completion]] = {}

    def answer(self, name: str, evaluation: EvalSpec, advance: Advance) -> list[Completion]:
        if name not in self._answers:
            asked = [name, *(other for other in self._waiting if other != name)]
            self._waiting = []
            flat = [p for benchmark in asked for p in self.prompts[benchmark]]
            answers = iter(self._generate(flat, evaluation, advance))
            for benchmark in asked:
                self._answers[benchmark] = [next(answers) for _ in self.prompts[benchmark]]
        return self._answers.pop(name)

    def _generate(self, prompts: Sequence[Prompt], evaluation: EvalSpec, advance: Advance) -> list[Completion]:
        import tempfile
        from dataclasses import asdict

        from eval.vllm_engine import VllmEngine

        self.model.drop()  # its memory is the engine's now
        spec = self.model.spec
        options = {k: v for k, v in asdict(self.backend).items() if k not in ("name", "merge_adapter")}
        folder, adapter = self.model.weights.folder, self.adapter.folder if self.adapter else None
        if self.adapter is not None and self.adapter.whole:
            folder, adapter = self.adapter.folder, None
        with tempfile.TemporaryDirectory() as scratch:
            if adapter is not None and self.backend.merge_adapter:
                base, tokenizer = load(folder, spec, self.model.compute)
                folder = Path(scratch)
                with_adapter(base, adapter).merge_and_unload().save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                del base
                adapter = None
            with VllmEngine(folder, adapter, dtype=spec.dtype, **options) as engine:
                return engine.generate(
                    prompts,
                    max_new_tokens=evaluation.max_new_tokens,
                    system=evaluation.system,
                    on_batch=advance,
                )

    def release(self) -> None:
        self._answers.clear()


def tuned(model: LoadedModel, adapter: Adapter | None, *, merge: bool) -> tuple[Any, Any]:
    """The model as fine-tuning left it, in evaluation mode, and its tokenizer; the un-tuned one without ``adapter``."""
    if adapter is not None and adapter.whole:
        model.drop()
        return load(adapter.folder, model.spec, model.compute)
    base, tokenizer = model.get()
    if adapter is not None:
        model.drop()
        base = with_adapter(base, adapter.folder)
        base = base.merge_and_unload() if merge else base
        base.eval()
    return base, tokenizer


def with_adapter(base: Any, folder: Path) -> Any:
    """The model with a LoRA adapter on, in the base's dtype, as inference engines load adapters; in float32 they would
    double the time."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
