"""Linear layers that compute the samples' common prefix once.

A chat template's head and a system turn stand in front of every sample: 22 of some 45 tokens where GradSafe reads
Alpaca with SmolLM2. In a causal model their activations are the same for all samples of a batch, so one row's product
serves all; only the way back differs from sample to sample.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from baselines.architecture import decoder

WORTH = 8  # tokens from which the saved products outweigh the copying


@contextmanager
def shared_prefix(model: Any, shape: torch.Size, shared: int) -> Iterator[None]:
    """Within, the decoder's linear layers take the first ``shared`` positions of [batch, time, in] from the first row.

    For frozen parameters alone: the weights get no gradient. Subclasses of nn.Linear and layers that something else has
    given a forward of its own are left as they are.

    Args:
        shape: of the token ids, [batch, time].
        shared: leading positions at which all sequences hold the same tokens.
    """
    taken: list[nn.Linear] = []
    if shape[0] > 1 and shared >= WORTH:
        for module in decoder(model).modules():
            if type(module) is nn.Linear and "forward" not in module.__dict__:
                taken.append(module)
                module.forward = partial(_forward, module, shape, shared)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in taken:
            del module.forward


def _forward(module: nn.Linear, shape: torch.Size, shared: int, x: torch.Tensor) -> torch.Tensor:
    if x.shape[:-1] != shape:
        return nn.Linear.forward(module, x)
    out: torch.Tensor = _PrefixLinear.apply(x, module.weight, module.bias, shared)
    return out


class _PrefixLinear(torch.autograd.Function):
    """x W^T + b, the first ``shared`` positions of all rows from row 0; an ordinary linear layer on the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, shared: int
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        batch, time = x.shape[:2]
        common = nn.functional.linear(x[0, :shared], weight, bias)
        rest = nn.functional.linear(x[:, shared:].reshape(-1, x.shape[2]), weight, bias)
        return torch.cat([common.expand(batch, *common.shape), rest.view(batch, time - shared, len(weight))], dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight, None, None, None
