"""The run's models while they answer: loaded or started when the first answer is missing, and kept for what comes next.

One is ready at a time: benchmarks, checkpoints and utility tasks of a run share one engine (or one loaded model), and
where all their answers are in the cache none is ever started.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from baselines.method import Method
from eval.generation import Steering
from suite.plan import BackendSpec, VllmSpec
from suite.stages.adapter_files import check_adapter
from suite.stages.finetuning import Adapter
from suite.stages.models import LoadedModel, load

if TYPE_CHECKING:
    from eval.vllm_engine import VllmEngine


class Inference:
    """A context manager, whose end stops the engine and lets go of the model with its adapter.

    Args:
        adapters: all that will be asked for, as far as known: vLLM must be told before it starts how large they are.
            Another one later costs another start.
    """

    def __init__(self, model: LoadedModel, backend: BackendSpec | VllmSpec, adapters: Sequence[Adapter] = ()):
        self.model, self.backend = model, backend
        self._adapters = [adapter.folder for adapter in adapters if not adapter.whole]
        self.steering: Steering | None = None  # how the method of the loaded model changes its logits
        self._loaded: tuple[tuple[str | None, Method | None], tuple[Any, Any]] | None = None
        self._engine: VllmEngine | None = None
        self._merged: Path | None = None  # the adapter inside the engine's weights
        self._scratch: Path | None = None

    def transformers(self, adapter: Adapter | None, method: Method | None = None) -> tuple[Any, Any]:
        """``(model in evaluation mode with the adapter on, tokenizer)``; ``method`` intervenes in it."""
        asked = (adapter.key if adapter else None, method)
        if self._loaded is None or self._loaded[0] != asked:
            self._loaded = self.steering = None
            self._loaded = (asked, self._load(adapter, method))
        return self._loaded[1]

    def _load(self, adapter: Adapter | None, method: Method | None) -> tuple[Any, Any]:
        whole = adapter is not None and adapter.whole
        if adapter is not None and whole:
            self.model.drop()
            base, tokenizer = load(adapter.folder, self.model.spec, self.model.compute)
        else:
            base, tokenizer = self.model.get()
        if adapter is not None and not whole:
            self.model.drop()
            base = with_adapter(base, adapter.folder)
            base = base.merge_and_unload() if self.backend.merge_adapter else base
            base.eval()
        if method is not None:
            self.model.drop()  # what intervenes stays in the model
            self.steering = method.intervene(base, tokenizer)
        return base, tokenizer

    def vllm(self, adapter: Adapter | None) -> tuple["VllmEngine", Path | None]:
        """The engine, and the adapter to ask it with: None where there is none or its weights are merged."""
        folder = adapter.folder if adapter else None
        whole = adapter is not None and adapter.whole
        merged = folder if self.backend.merge_adapter or whole else None
        lora = None if merged is not None else folder
        if lora is not None and lora not in self._adapters:
            self.close()
            self._adapters.append(lora)
        if self._engine is None or self._merged != merged:
            self.close()
            self._start(merged, whole)
        assert self._engine is not None
        return self._engine, lora

    def _start(self, merged: Path | None, whole: bool) -> None:
        """
        Args:
            merged: the adapter that goes into the engine's weights, or the ``whole`` tuned model they are.
        """
        from eval.vllm_engine import VllmEngine

        self.model.drop()  # its memory is the engine's now
        options = {k: v for k, v in asdict(self.backend).items() if k not in ("name", "merge_adapter")}
        folder = self.model.weights.folder
        if merged is not None and whole:
            folder = merged
        elif merged is not None:
            base, tokenizer = load(folder, self.model.spec, self.model.compute)
            folder = self._scratch = Path(tempfile.mkdtemp())
            with_adapter(base, merged).merge_and_unload().save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            del base
        adapters = () if self.backend.merge_adapter or whole else tuple(self._adapters)
        self._engine = VllmEngine(folder, adapters, dtype=self.model.spec.dtype, **options)
        self._merged = merged

    def close(self) -> None:
        """Let go of everything; what is asked for afterwards is loaded anew."""
        self._loaded = self.steering = None
        engine, self._engine, self._merged = self._engine, None, None
        scratch, self._scratch = self._scratch, None
        try:
            if engine is not None:
                engine.close()
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)

    def __enter__(self) -> "Inference":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def with_adapter(base: Any, folder: Path) -> Any:
    """The model with a LoRA adapter on, in the base's dtype, as inference engines load adapters; in float32 they would
    double the time.

    Raises:
        KeelBenchError: the folder's adapter is refused (``check_adapter``).
    """
    from peft import PeftModel

    check_adapter(folder)
    return PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
