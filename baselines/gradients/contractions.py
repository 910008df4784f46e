"""Contractions of one layer's per-sample gradients out of its inputs and output gradients.

Shapes: ``x`` [batch, time, in], ``g`` [batch, time, out]; a linear layer's gradient for sample b is
G_b = sum_t g_bt x_bt^T, [out, in]. Products run in the operands' precision (matrix units accumulate in float32),
sums over them in float32. float16 operands are read as float32: their products overflow.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from baselines.gradients.capture import norm_epsilon
from baselines.records import FloatArray

BLOCK = 1 << 24  # elements of per-sample layer gradients in memory at a time
# Multiply-adds that a matrix unit does while one element of a written-out gradient is streamed through memory once:
# between 20 (float32 on a CPU) and 300 (an H100). It only decides which of two exact routes is taken.
STREAM = 80


def linear_terms(
    x: torch.Tensor,
    g: torch.Tensor,
    references: torch.Tensor | None,
    *,
    shared: int = 0,
    inner: "InnerProducts | None" = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dot products with ``references`` [r, out, in] -> [batch, r], and squared norms [batch], float32.

    Short sequences: <G, R> = sum_t g_t . R x_t and |G|^2 = sum_st (x_s . x_t)(g_s . g_t), no gradient written out.
    Long ones, where those cost more than G itself: a few samples' G at a time.

    Args:
        shared: leading positions at which all samples have the same x (a chat template's head): R x_t once for all.
        inner: remembers x x^T between layers with one input.
    """
    x, g = _widened(x), _widened(g)
    count = 0 if references is None else len(references)
    batch, time, size = len(x), x.shape[1], x.shape[2] * g.shape[2]
    own = time - shared + shared / batch
    factored = time * (x.shape[2] + g.shape[2]) * time + count * own * size
    written = time * size + STREAM * (count + 1) * size
    if factored > written:
        return _written_terms(x, g, references)
    squares = ((inner or InnerProducts()).of(x) * (g @ g.mT)).sum((1, 2), dtype=torch.float32)
    dots = torch.zeros(batch, count, device=x.device)
    if references is not None:
        common, rest = x[0, :shared], x[:, shared:].reshape(-1, x.shape[2])
        for r in range(count):  # one at a time: three images at once leave a CPU's caches
            transposed = _widened(references[r]).T
            of_common = (common @ transposed) * g[:, :shared]
            of_rest = (rest @ transposed).view(batch, time - shared, g.shape[2]) * g[:, shared:]
            for products in (of_common, of_rest):
                dots[:, r] += products.sum((1, 2), dtype=torch.float32)
    return dots, squares


def linear_operations(
    time: FloatArray, inside: int, outside: int, references: int, *, own_input: bool = True
) -> FloatArray:
    """Floating-point operations of ``linear_terms`` for samples of ``time`` tokens, [n], one at a time.

    Args:
        own_input: False where x x^T is remembered from another layer.
    """
    size = inside * outside
    factored = time * (inside + outside) * time + references * time * size
    written = time * size + STREAM * (references + 1) * size
    products = 2 * time**2 * (outside + inside * own_input) + 2 * references * time * size
    return np.where(factored > written, 2 * time * size, products)


class InnerProducts:
    """x x^T, [batch, time, time], remembered for the layers that share an input (query, key, value; gate, up)."""

    def __init__(self) -> None:
        self._key: tuple[int, torch.Size] | None = None
        self._held: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        key = (x.data_ptr(), x.shape)
        if self._held is None or key != self._key:
            self._key, self._held = key, (x, x @ x.mT)  # x is held so that its address is not given away
        return self._held[1]


def _written_terms(
    x: torch.Tensor, g: torch.Tensor, references: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    count = 0 if references is None else len(references)
    dots = torch.empty(len(x), count, device=x.device)
    squares = torch.empty(len(x), device=x.device)
    for block, gradient in linear_gradients(x, g):
        squares[block] = torch.linalg.vector_norm(gradient, dim=(1, 2), dtype=torch.float32).square()
        for r in range(count):
            assert references is not None
            dots[block, r] = (gradient * _widened(references[r])).sum((1, 2), dtype=torch.float32)
    return dots, squares


def linear_gradients(x: torch.Tensor, g: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """G [samples, out, in] of as many samples at a time as ``BLOCK`` allows (at least one)."""
    x, g = _widened(x), _widened(g)
    step = max(1, BLOCK // (x.shape[2] * g.shape[2]))
    for start in range(0, len(x), step):
        block = slice(start, min(start + step, len(x)))
        yield block, g[block].mT @ x[block]


def norm_gradients(module: nn.Module, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Weight gradients of an RMSNorm or LayerNorm, [batch, width], float32: sum over positions of g times x normalised.

    Gemma's ``(1 + weight)`` has the same derivative.
    """
    x = x.float()
    if isinstance(module, nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    epsilon = norm_epsilon(module)
    assert epsilon is not None  # a Layer of kind "norm" has one
    scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)
    return (x * scale).mul_(g).flatten(1, -2).sum(1)


def bias_gradients(g: torch.Tensor) -> torch.Tensor:
    """[batch, out], float32."""
    return g.flatten(1, -2).sum(1, dtype=torch.float32)


def embedding_terms(
    ids: torch.Tensor, g: torch.Tensor, references: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dot products [batch, r] with ``references`` [r, vocabulary, width] and squared norms [batch] of an embedding.

    Row v of sample b's gradient is the sum of g over the positions that hold token v.
    """
    g = g.float()
    vocabulary = int(ids.max()) + 1
    keys, inverse = torch.unique(
        torch.arange(len(ids), device=ids.device)[:, None] * vocabulary + ids, return_inverse=True
    )
    table = torch.zeros(len(keys), g.shape[-1], device=g.device).index_add_(0, inverse.flatten(), g.flatten(0, 1))
    squares = torch.zeros(len(ids), device=g.device).index_add_(0, keys // vocabulary, table.square().sum(1))
    if references is None:
        return g.new_zeros(len(ids), 0), squares
    dots = [(references[r][ids] * g).sum((1, 2), dtype=torch.float32) for r in range(len(references))]
    return torch.stack(dots, dim=1), squares


def tied_cross_term(ids: torch.Tensor, g: torch.Tensor, head_x: torch.Tensor, head_g: torch.Tensor) -> torch.Tensor:
    """2 <E_b, H_b> of the embedding's and the head's gradients of one shared matrix, [batch], float32.

    E's row v sums g_t over tokens v, H = sum_s d_s h_s^T, so <E, H> = sum_ts d_s[v_t] (g_t . h_s).

    Args:
        ids, g: the embedding's, [batch, time] and [batch, time, width].
        head_x, head_g: the head's, [batch, supervised, width] and [batch, supervised, vocabulary].
    """
    at_tokens = head_g.gather(2, ids[:, None].expand(-1, head_g.shape[1], -1))  # d_s[v_t], [batch, supervised, time]
    return 2 * (at_tokens.float() * (head_x.float() @ g.float().mT)).sum((1, 2))


def _widened(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype == torch.float16 else values
