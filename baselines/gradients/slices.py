"""Rows and columns of chosen matrices' gradients: which ones tell unsafe prompts from safe ones, and their cosines.

Row r of a linear layer's gradient is sum_t g_t[r] x_t and column c is sum_t x_t[c] g_t, so a few critical slices cost a
few columns of ``g`` and ``x``, and no gradient matrix is written out for a sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import normalize

from baselines.architecture import device_of
from baselines.gradients.arithmetic import float32_arithmetic
from baselines.gradients.capture import (
    Encoded,
    Layer,
    check_finite,
    observe_backward,
    over_batches,
    trainable_layers,
)
from baselines.gradients.contractions import BLOCK
from baselines.losses import Batch, collate
from baselines.method import Engine
from eval.errors import KeelBenchError


@dataclass(frozen=True)
class Gaps:
    """One matrix [out, in]: the mean cosine with the reference of the unsafe gradients less that of the safe ones."""

    rows: torch.Tensor  # float32 [out], on the CPU
    columns: torch.Tensor  # float32 [in], on the CPU


@dataclass(frozen=True)
class CriticalSlices:
    """One matrix's critical rows and columns with the reference's, scaled to unit length."""

    rows: torch.Tensor  # int64 [r]
    columns: torch.Tensor  # int64 [c]
    row_references: torch.Tensor  # float32 [r, in]
    column_references: torch.Tensor  # float32 [c, out]

    def __len__(self) -> int:
        return len(self.rows) + len(self.columns)


def matrices(model: Any, parts: Sequence[str] = ("mlp", "self")) -> list[Layer]:
    """The linear layers with a trainable matrix whose name contains one of ``parts``.

    Raises:
        KeelBenchError: there is none.
    """
    chosen = [
        layer
        for layer in trainable_layers(model)
        if layer.kind == "linear" and "weight" in layer.parameters and any(part in layer.name for part in parts)
    ]
    if not chosen:
        raise KeelBenchError(
            f"no trainable matrix has {' or '.join(repr(p) for p in parts)} in its name; GradSafe looks at the "
            "projections under `self_attn` and `mlp`"
        )
    return chosen


def slice_gaps(
    model: Any, layers: Sequence[Layer], unsafe: Sequence[Encoded], safe: Sequence[Encoded]
) -> dict[str, Gaps]:
    """Each slice's gap, by layer name; the reference is the mean gradient of ``unsafe``, a zero slice's cosine is 0.

    Raises:
        KeelBenchError: a loss or gradient is not finite.
    """
    gaps: dict[str, Gaps] = {}

    def visit(layer: Layer, x: torch.Tensor, g: torch.Tensor, shared: int) -> None:
        reference = _mean_gradient(x[: len(unsafe)], g[: len(unsafe)])
        reference_squares = reference.square()
        # Sums run over dimension 1 for rows, 0 for columns.
        means = {1: torch.zeros_like(reference[:, 0]), 0: torch.zeros_like(reference[0])}
        for b in range(len(x)):
            gradient = g[b].mT @ x[b]
            products, squares = gradient * reference, gradient.square_()
            share = 1 / len(unsafe) if b < len(unsafe) else -1 / len(safe)
            for dim in means:
                norms = (squares.sum(dim) * reference_squares.sum(dim)).sqrt()
                means[dim] += share * torch.where(norms == 0, 0, products.sum(dim) / norms)
        gaps[layer.name] = Gaps(means[1].cpu(), means[0].cpu())

    _observe_references(model, layers, [*unsafe, *safe], visit)
    for name, found in gaps.items():
        if not (torch.isfinite(found.rows).all() and torch.isfinite(found.columns).all()):
            raise KeelBenchError(f"the reference prompts' gradient of {name} is not finite; check the model's weights")
    return gaps


def critical_slices(
    model: Any,
    layers: Sequence[Layer],
    unsafe: Sequence[Encoded],
    critical: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, CriticalSlices]:
    """The reference's slices named by ``critical``: layer name -> (row numbers, column numbers).

    Matrices without any are left out.
    """
    slices: dict[str, CriticalSlices] = {}

    def visit(layer: Layer, x: torch.Tensor, g: torch.Tensor, shared: int) -> None:
        rows, columns = (index.to(x.device) for index in critical[layer.name])
        by_row = _mean_gradient(x, g[..., rows])
        by_column = _mean_gradient(g, x[..., columns])
        slices[layer.name] = CriticalSlices(rows, columns, normalize(by_row), normalize(by_column))

    wanted = [layer for layer in layers if any(len(index) for index in critical[layer.name])]
    if wanted:
        _observe_references(model, wanted, unsafe, visit)
    return slices


def slice_cosines(
    model: Any,
    slices: dict[str, CriticalSlices],
    count: int,
    encode: Callable[[int], Encoded],
    name: Callable[[int], str],
    *,
    engine: Engine = Engine(),
) -> torch.Tensor:
    """Each sample's mean cosine over all critical rows and columns, unweighted, and its zero slices: float64 [n, 2].

    A slice that is zero in a sample's gradient has cosine 0. The backward pass ends at the first layer with slices.

    Raises:
        KeelBenchError: a sample whose loss or gradient is not finite.
    """
    layers = [layer for layer in trainable_layers(model) if layer.name in slices]
    total = sum(map(len, slices.values()))
    out = torch.zeros(count, 2, dtype=torch.float64)

    def cosines(indices: list[int], batch: Batch) -> torch.Tensor:
        names = [name(i) for i in indices]
        sums = torch.zeros(len(indices), 2, device=device_of(model))

        def visit(layer: Layer, x: torch.Tensor, g: torch.Tensor, shared: int) -> None:
            nonlocal sums
            at = slices[layer.name]
            found = _cosine_sums(x, g, at.rows, at.row_references)
            found += _cosine_sums(g, x, at.columns, at.column_references)
            sums = sums.to(found.device) + found

        check_finite(observe_backward(model, batch, layers, visit), names, "loss")
        check_finite(sums, names, "gradient")
        return sums.double().cpu()

    for indices, found in over_batches(count, encode, cosines, device_of(model), engine):
        out[indices] = found
    out[:, 0] /= total
    return out


def _cosine_sums(
    full: torch.Tensor, sliced: torch.Tensor, index: torch.Tensor, references: torch.Tensor
) -> torch.Tensor:
    """Sum of cosines and number of zero slices, [batch, 2]; slice i of sample b is sum_t sliced[b, t, i] full[b, t]."""
    found = torch.zeros(len(full), 2, device=full.device)
    if not len(index):
        return found
    chosen = sliced[..., index].mT
    step = max(1, BLOCK // (len(index) * full.shape[-1]))
    for start in range(0, len(full), step):
        block = slice(start, start + step)
        gradients = (chosen[block] @ full[block]).float()  # [samples, slices, width]
        norms = torch.linalg.vector_norm(gradients, dim=-1)
        zero = norms == 0
        cosines = (gradients * references).sum(-1) / norms.masked_fill(zero, 1)
        found[block, 0], found[block, 1] = cosines.sum(1), zero.sum(1).float()
    return found


def _mean_gradient(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The mean over the batch of sum_t g_t x_t^T, [out, in]."""
    return g.flatten(0, 1).T @ x.flatten(0, 1) / len(x)


def _observe_references(
    model: Any,
    layers: Sequence[Layer],
    items: Sequence[Encoded],
    visit: Callable[[Layer, torch.Tensor, torch.Tensor, int], None],
) -> None:
    with float32_arithmetic(model):
        losses = observe_backward(model, collate(items), layers, visit)
    check_finite(losses, [f"(reference prompt {i + 1})" for i in range(len(items))], "loss")
