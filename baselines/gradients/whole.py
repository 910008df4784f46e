"""Dot products and norms of whole per-sample gradients: every trainable parameter, as one vector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from baselines.architecture import base_model, device_of
from baselines.gradients.capture import (
    Encoded,
    Layer,
    check_finite,
    loss_scale,
    observe_backward,
    over_batches,
    trainable_layers,
)
from baselines.gradients.contractions import (
    InnerProducts,
    bias_gradients,
    embedding_terms,
    linear_terms,
    norm_gradients,
    tied_cross_term,
)
from baselines.losses import Batch, collate, supervised_forward
from baselines.method import Engine
from eval.batching import token_budget_batches
from eval.memory import with_less


@dataclass(frozen=True)
class References:
    """Reference gradients, each over all trainable parameters, in the parameters' own precision."""

    gradients: dict[str, torch.Tensor]  # parameter name -> [references, *shape], times scale
    scale: float  # keeps float16 values in range, see capture.loss_scale
    count: int

    def norms(self) -> torch.Tensor:
        """Each reference's L2 norm, float64 [references]."""
        squares = torch.zeros(self.count, dtype=torch.float64)
        for gradient in self.gradients.values():
            for r in range(self.count):
                squares[r] += torch.linalg.vector_norm(gradient[r], dtype=torch.float32).double().cpu() ** 2
        return squares.sqrt() / self.scale


@dataclass(frozen=True)
class GradientTerms:
    """What was asked of each sample's gradient, in the samples' order."""

    dots: torch.Tensor  # float64 [n, references]
    norms: torch.Tensor  # float64 [n], the L2 norm of the whole gradient
    losses: torch.Tensor  # float64 [n], mean cross-entropy in nats

    def directions(self) -> torch.Tensor:
        """Dot products of the gradients' unit vectors, [n, references]."""
        return self.dots / self.norms[:, None]


def gradient_terms(
    model: Any,
    count: int,
    encode: Callable[[int], Encoded],
    name: Callable[[int], str],
    references: References | None = None,
    *,
    engine: Engine = Engine(),
) -> GradientTerms:
    """Each sample's gradient against ``references`` (None: norms alone), one backward pass a batch.

    Args:
        encode: index -> (token ids, shifted labels).
        name: index -> how an error calls the sample.

    Raises:
        KeelBenchError: see ``trainable_layers``; a sample whose loss or gradient is not finite, or whose gradient is
            zero and has no direction.
    """
    layers = trainable_layers(model)
    width = 0 if references is None else references.count
    out = torch.zeros(count, width + 2, dtype=torch.float64)

    def terms_of(indices: list[int], batch: Batch) -> torch.Tensor:
        names = [name(i) for i in indices]
        visitor = _Terms(model, references, len(indices))
        losses = observe_backward(model, batch, layers, visitor)
        check_finite(losses, names, "loss")
        terms = torch.cat([visitor.dots, visitor.squares[:, None], losses.to(visitor.dots)[:, None]], dim=1).cpu()
        check_finite(terms, names, "gradient")
        check_finite(1 / terms[:, width], names, "inverse of the gradient's norm")
        return terms.double()

    for indices, terms in over_batches(count, encode, terms_of, device_of(model), engine):
        out[indices] = terms
    scale = loss_scale(model)
    dots = out[:, :width] / (scale * (1.0 if references is None else references.scale))
    return GradientTerms(dots, out[:, width].clamp(min=0).sqrt() / scale, out[:, width + 1])


class _Terms:
    """Adds up one batch's dot products and squared norms over the layers."""

    def __init__(self, model: Any, references: References | None, batch_size: int):
        root = base_model(model)
        names = {id(p): n for n, p in root.named_parameters()}
        self._name = lambda parameter: names[id(parameter)]
        self._head, self._embedding = root.get_output_embeddings(), root.get_input_embeddings()
        self._references = references
        self._inner = InnerProducts()
        self._head_factors: tuple[torch.Tensor, torch.Tensor] | None = None
        device = device_of(model)
        self.dots = torch.zeros(batch_size, 0 if references is None else references.count, device=device)
        self.squares = torch.zeros(batch_size, device=device)

    def __call__(self, layer: Layer, x: torch.Tensor, g: torch.Tensor, shared: int) -> None:
        if "bias" in layer.parameters:
            self._add_written(layer.module.bias, bias_gradients(g))
        if "weight" not in layer.parameters:
            return
        weight = layer.module.weight
        if layer.kind == "norm":
            self._add_written(weight, norm_gradients(layer.module, x, g))
        elif layer.kind == "linear":
            self._add(*linear_terms(x, g, self._reference(weight), shared=shared, inner=self._inner))
            if layer.module is self._head and weight is self._embedding.weight:
                self._head_factors = (x, g)
        else:
            padding: Any = layer.module.padding_idx
            if padding is not None:  # autograd gives this token's row no gradient
                g = g.masked_fill(x.eq(padding)[..., None], 0)
            self._add(*embedding_terms(x, g, self._reference(weight)))
            if layer.module is self._embedding and self._head_factors is not None:
                head_x, head_g = (factor.to(g.device) for factor in self._head_factors)
                self._add(None, tied_cross_term(x, g, head_x, head_g))

    def _reference(self, parameter: Any) -> torch.Tensor | None:
        return None if self._references is None else self._references.gradients[self._name(parameter)]

    def _add_written(self, parameter: Any, gradients: torch.Tensor) -> None:
        reference = self._reference(parameter)
        dots = None if reference is None else gradients @ reference.float().mT
        self._add(dots, gradients.square().sum(1))

    def _add(self, dots: torch.Tensor | None, squares: torch.Tensor) -> None:
        self.squares = self.squares.to(squares.device) + squares
        if dots is not None:
            self.dots = self.dots.to(dots.device) + dots


def reference_gradients(
    model: Any, items: Sequence[Encoded], weights: torch.Tensor, *, engine: Engine = Engine()
) -> References:
    """The gradients of weighted sums of losses: reference r is sum_j weights[r, j] * gradient of loss j.

    Args:
        items: encoded samples.
        weights: [references, items].

    Memory: one parameter-sized tensor a reference; each parameter's gradient is moved there as soon as it is known.
    """
    root = base_model(model)
    scale = loss_scale(model)
    parameters = {n: p for n, p in root.named_parameters() if p.requires_grad}
    gradients = {n: p.new_zeros(len(weights), *p.shape).requires_grad_(False) for n, p in parameters.items()}
    kept = {n: p.grad for n, p in parameters.items()}
    was_training = root.training
    handles = []
    current = 0

    def move(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            gradients[name][current] += parameter.grad
            parameter.grad = None

        return hook

    def undo() -> None:
        for name, parameter in parameters.items():
            gradients[name][current].zero_()
            parameter.grad = None

    try:
        root.eval()
        for name, parameter in parameters.items():
            parameter.grad = None
            handles.append(parameter.register_post_accumulate_grad_hook(move(name)))
        for number, row in enumerate(weights):
            current = number
            chosen = [j for j in range(len(items)) if row[j] != 0]

            def one(budget: int, row: torch.Tensor = row, chosen: list[int] = chosen) -> None:
                for places in token_budget_batches([len(items[j][0]) for j in chosen], budget):
                    members = [chosen[p] for p in places]
                    batch = collate([items[j] for j in members]).to(device_of(model))
                    with torch.enable_grad():
                        losses = supervised_forward(model, batch).sequence_losses()
                        (losses * row[members].to(losses) * scale).sum().backward()  # type: ignore[no-untyped-call]

            with_less(one, engine.tokens_per_batch, what="references", undo=undo)
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():
            parameter.grad = kept[name]
        root.train(was_training)
    return References(gradients, scale, len(weights))
