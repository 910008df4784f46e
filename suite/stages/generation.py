"""Completions of every benchmark by the un-tuned or the fine-tuned model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records import Completion, Prompt, as_rows
from suite.cache import Entry, StageCache
from suite.plan import BackendSpec, EvalSpec
from suite.progress import progress
from suite.stages.data import ids_key
from suite.stages.finetuning import Adapter
from suite.stages.models import LoadedModel
from suite.tables import read_table, write_table


def complete(
    model: LoadedModel,
    adapter: Adapter | None,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    evaluation: EvalSpec,
    backend: BackendSpec,
    cache: StageCache,
) -> dict[str, tuple[list[Completion], Entry]]:
    """Each benchmark's completions, by its name; one cache entry a benchmark, so that adding one recomputes none.

    A benchmark's prompts are batched among themselves: its completions do not depend on what else was asked for.
    """
    subject = _Subject(model, adapter, backend.merge_adapter)
    results = {}
    for name, asked in prompts.items():
        entry = _benchmark(subject, name, asked, evaluation, backend, cache)
        rows = read_table(entry.path / "completions.parquet")
        results[name] = ([Completion(**row) for row in rows], entry)
    subject.release()
    return results


def _benchmark(
    subject: "_Subject",
    name: str,
    prompts: Sequence[Prompt],
    evaluation: EvalSpec,
    backend: BackendSpec,
    cache: StageCache,
) -> Entry:
    def compute_stage(out: Path) -> int:
        from eval.generation import generate

        with progress(f"answering {name}", len(prompts)) as advance:
            completions = generate(
                *subject.get(),
                prompts,
                max_new_tokens=evaluation.max_new_tokens,
                tokens_per_batch=backend.tokens_per_batch,
                system=evaluation.system,
                on_batch=advance,
            )
        write_table(out / "completions.parquet", as_rows(completions))
        return sum(c.n_tokens for c in completions)

    inputs = {
        "model": subject.model.weights.key,
        "dtype": subject.model.spec.dtype,
        "attention": subject.model.spec.attention,
        "adapter": subject.adapter.key if subject.adapter else None,
        "merged": backend.merge_adapter if subject.adapter else None,
        "backend": backend.name,
        "prompts": ids_key([p.id for p in prompts]),
        "max_new_tokens": evaluation.max_new_tokens,
        "system": evaluation.system,
    }
    return cache.entry("completions", "2", inputs, compute_stage, f"{name} ({len(prompts)} prompts)")


class _Subject:
    """The model that answers, with its adapter on; loaded when the first answer is missing."""

    def __init__(self, model: LoadedModel, adapter: Adapter | None, merge: bool):
        self.model, self.adapter, self.merge = model, adapter, merge
        self._ready: tuple[Any, Any] | None = None

    def get(self) -> tuple[Any, Any]:
        if self._ready is None:
            base, tokenizer = self.model.get()
            if self.adapter is not None:
                from peft import PeftModel

                self.model.drop()
                # In the base's dtype, as inference engines load adapters; in float32 they would double the time.
                base = PeftModel.from_pretrained(base, self.adapter.folder, autocast_adapter_dtype=False)
                base = base.merge_and_unload() if self.merge else base
                base.eval()
            self._ready = (base, tokenizer)
        return self._ready

    def release(self) -> None:
        self._ready = None
