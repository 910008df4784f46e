"""float32 arithmetic over 16-bit weights, for the few passes whose rounding would decide something."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm, linear

from baselines.architecture import base_model


@contextmanager
def float32_arithmetic(model: Any) -> Iterator[None]:
    """Within, a 16-bit model computes in float32 from its weights as they are, for passes that train no parameter.

    A copy of the model in float32 would take twice its memory again; here one matrix at a time is widened, in the
    forward and again in the backward pass, and the activations are float32.
    """
    root = base_model(model)
    wide: dict[type, Callable[..., torch.Tensor]] = {nn.Linear: _wide_linear, nn.LayerNorm: _wide_layer_norm}
    before: list[tuple[nn.Module, Any]] = []
    handle = root.get_input_embeddings().register_forward_hook(lambda module, args, output: output.float())
    try:
        for module in root.modules():
            forward = wide.get(type(module))  # subclasses (quantised layers) widen for themselves or not at all
            if forward is not None and module.weight is not None and module.weight.dtype != torch.float32:
                before.append((module, module.__dict__.get("forward")))
                module.forward = partial(forward, module)
        yield
    finally:
        handle.remove()
        for module, own in before:
            del module.forward
            if own is not None:
                module.forward = own


class _WideLinear(torch.autograd.Function):
    """x W^T in float32, remembering W in its own precision; no gradient for W."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.weight = weight
        return linear(x.float(), weight.float())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ ctx.weight.float(), None


def _wide_linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _WideLinear.apply(x.float(), module.weight)
    return out if module.bias is None else out + module.bias.float()


def _wide_layer_norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    bias = None if module.bias is None else module.bias.float()
    return layer_norm(x.float(), module.normalized_shape, module.weight.float(), bias, module.eps)
