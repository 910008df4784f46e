"""Where a transformers causal language model keeps its parts, under LoRA adapters or not."""

from typing import Any

import torch
from torch import nn

from eval.errors import KeelBenchError


def base_model(model: Any) -> Any:
    """The causal language model itself: what a PEFT wrapper holds, or ``model``."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> Any:
    """The stack of blocks without the language-model head.

    Raises:
        KeelBenchError: the architecture has no ``layers`` or no ``embed_tokens``.
    """
    stack = base_model(model).get_decoder()
    if not hasattr(stack, "layers") or not hasattr(stack, "embed_tokens"):
        raise KeelBenchError(
            f"{type(base_model(model)).__name__} has no `layers` and `embed_tokens` in its decoder; "
            "representation and gradient methods need a Llama-like architecture"
        )
    return stack


def blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks, first to last."""
    layers: nn.ModuleList = decoder(model).layers
    return layers


def block_projections(block: nn.Module) -> dict[str, nn.Module]:
    """A block's attention and feed-forward projections by name (q, k, v, o, gate, up, down; fused in Phi-3).

    For a model without adapters: under LoRA the base layers and the adapters' own matrices are all listed.

    Raises:
        KeelBenchError: the block has none under ``self_attn`` or ``mlp``.
    """
    found: dict[str, nn.Module] = {}
    for part in ("self_attn", "mlp"):
        parent = getattr(block, part, None)
        inside = {
            f"{part}.{name}": module
            for name, module in (parent.named_modules() if parent is not None else ())
            if isinstance(module, nn.Linear)
        }
        if not inside:
            raise KeelBenchError(f"{type(block).__name__} has no linear layers under `{part}`")
        found.update(inside)
    return found


def device_of(model: Any) -> torch.device:
    """The device of the input embedding, where token ids belong."""
    device: torch.device = decoder(model).embed_tokens.weight.device
    return device
