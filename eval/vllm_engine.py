"""Greedy completions with vLLM: its engine, our token ids in and out.

Prompts are rendered and tokenised by ``ChatFormat`` and answers cut and decoded as in ``eval.generation``; vLLM sees
token ids only, stops at our stop tokens only, and applies no sampling setting of the model's own.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from eval.chat import ChatFormat, generation_config
from eval.errors import CapacityError, KeelBenchError
from eval.generation import completion, encode
from eval.records import Completion, Prompt
from eval.watchdog import Watchdog

CPU_KV_CACHE_GIB = 2.0
SHUTDOWN_SECONDS = 30.0  # for the engine to leave by itself; then it is killed
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM accepts


def check_installed() -> None:
    """
    Raises:
        KeelBenchError: vLLM is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise KeelBenchError(
            "backend=vllm needs vLLM, which is an extra: `make setup-vllm`, or `pip install 'keelbench[vllm]'` on a "
            "machine with a GPU; backend=hf needs nothing"
        )


class VllmEngine:
    """One engine; a context manager, whose end stops the engine and frees its memory.

    Args:
        folder: the model's weights and tokenizer.
        adapters: folders (peft's) of the LoRA adapters that it will be asked with, one at a time; each is loaded, as
            such, when it is first named.

    Raises:
        KeelBenchError: vLLM cannot load the model.
    """

    def __init__(
        self,
        folder: Path,
        adapters: Sequence[Path] = (),
        *,
        dtype: str,
        max_model_len: int,
        max_num_seqs: int,
        gpu_memory_utilization: float,
        kv_cache_gib: float | None,
        enforce_eager: bool | None,
        tensor_parallel_size: int,
    ):
        check_installed()
        # Before vLLM is imported: nothing is reported to anybody, and its progress is not our output.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("DO_NOT_TRACK", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from transformers import AutoConfig, AutoTokenizer
        from vllm import LLM
        from vllm.platforms import current_platform

        self.folder = folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        self._generation_config = generation_config(folder, config)
        context = getattr(config, "max_position_embeddings", None)
        self.context = min(max_model_len, context or max_model_len)
        self._adapters = list(adapters)
        options: dict[str, Any] = {}
        on_cpu = current_platform.is_cpu()
        kv_cache_gib = CPU_KV_CACHE_GIB if kv_cache_gib is None and on_cpu else kv_cache_gib
        if kv_cache_gib is not None:
            options["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
        if adapters:
            options |= {
                "enable_lora": True,
                "max_loras": 1,
                "max_lora_rank": max(map(_max_rank, adapters)),
                "lora_target_modules": _target_modules(adapters),
            }
        self._engine: Any = None
        self._watchdog = Watchdog().__enter__()
        try:
            self._engine = LLM(
                model=str(folder),
                dtype=dtype,
                max_model_len=self.context,
                max_num_seqs=max_num_seqs,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=on_cpu if enforce_eager is None else enforce_eager,
                tensor_parallel_size=tensor_parallel_size,
                trust_remote_code=False,
                generation_config="vllm",  # vLLM's neutral settings, not the model's
                enable_prefix_caching=False,  # an answer does not depend on what was asked before it
                seed=0,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **options,
            )
        except (ValueError, RuntimeError) as error:  # what it refuses, an engine that fails, LoRA unsupported
            hint = " With backend.merge_adapter=true it needs no LoRA support." if adapters else ""
            raise KeelBenchError(f"vLLM cannot start: {error}.{hint}") from error
        finally:
            if self._engine is None:
                self._watchdog.__exit__(None, None, None)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        adapter: Path | None = None,
        system: str | None = None,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Completion]:
        """One greedy completion a prompt, in the prompts' order; as ``eval.generation.generate``.

        Raises:
            CapacityError: a prompt and its answer do not fit ``max_model_len`` or the model's context.
        """
        if not prompts:
            return []
        chat = ChatFormat(self.tokenizer)
        stop = chat.stop_ids(SimpleNamespace(generation_config=self._generation_config))
        encoded = encode(chat, prompts, system, max_new_tokens, self.context)
        new_ids = self.generate_ids(encoded, max_new_tokens, stop, adapter)
        on_batch(len(new_ids))
        return [completion(self.tokenizer, prompt, ids, stop) for prompt, ids in zip(prompts, new_ids, strict=True)]

    def generate_ids(
        self, encoded: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[int], adapter: Path | None = None
    ) -> list[Sequence[int]]:
        """Greedy continuations of token ids, each up to and with its first stop token."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=list(stop), ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": list(ids)} for ids in encoded]
        outputs = self._engine.generate(asked, params, lora_request=self.lora_request(adapter), use_tqdm=False)
        return [out.outputs[0].token_ids for out in outputs]

    def lora_request(self, adapter: Path | None) -> Any:
        """What vLLM is to be given with a prompt so that the adapter is on; None for None.

        Raises:
            KeelBenchError: the engine was not started for this adapter.
        """
        if adapter is None:
            return None
        if adapter not in self._adapters:
            raise KeelBenchError(f"vLLM was started for other adapters than {adapter}")
        from vllm.lora.request import LoRARequest

        number = 1 + self._adapters.index(adapter)
        return LoRARequest(f"adapter-{number}", number, str(adapter))

    @property
    def llm(self) -> Any:
        """vLLM's own ``LLM``, for whoever (lm-eval) makes requests of its own."""
        return self._engine

    def close(self) -> None:
        """Stop the engine and its processes; further calls do nothing."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            try:
                engine.llm_engine.engine_core.shutdown(timeout=SHUTDOWN_SECONDS)
            finally:
                self._watchdog.__exit__(None, None, None)

    def __enter__(self) -> "VllmEngine":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _max_rank(adapter: Path) -> int:
    """The smallest rank vLLM can be told that holds the adapter's.

    Raises:
        CapacityError: its rank is above vLLM's largest.
    """
    settings = _settings(adapter)
    rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    fitting = [allowed for allowed in MAX_LORA_RANKS if allowed >= rank]
    if not fitting:
        largest = MAX_LORA_RANKS[-1]
        raise CapacityError(
            f"the adapter's rank {rank} is above vLLM's {largest}; backend.merge_adapter=true needs none"
        )
    return fitting[0]


def _target_modules(adapters: Sequence[Path]) -> list[str] | None:
    """The layers that have adapters; None where one names them by a pattern.

    vLLM would put empty adapters on all others. The one on the output layer breaks the likelihoods of prompts: with it
    vLLM (0.32, CPU) stops at the first request for them.
    """
    named = [_settings(adapter)["target_modules"] for adapter in adapters]
    if any(isinstance(modules, str) for modules in named):
        return None
    return sorted({module for modules in named for module in modules})


def _settings(adapter: Path) -> dict[str, Any]:
    import json

    settings: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
    return settings
