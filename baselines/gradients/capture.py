"""One backward pass over a batch that shows every layer's inputs and output gradients, sample by sample.

Parameters are frozen for the pass: autograd then computes the activations' gradients alone, one product a matrix
instead of two, and the graph starts at the first layer that is watched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from baselines.architecture import base_model, device_of
from baselines.gradients.prefix import shared_prefix
from baselines.losses import IGNORE, Batch, collate, supervised_forward
from baselines.method import Engine
from eval.errors import KeelBenchError
from eval.memory import fitting_batches

WINDOW = 2048  # samples encoded, sorted and batched together
CPU_TOKENS = (
    512  # a batch's tokens on a CPU at most: more fill its matrix units no better, pad more and leave the caches
)

Encoded = tuple[Sequence[int], Sequence[int]]  # token ids and shifted labels, as losses.supervised_labels gives them


@dataclass(frozen=True)
class Layer:
    """A module with parameters of its own that take part in the gradient."""

    name: str
    module: nn.Module
    parameters: frozenset[str]  # "weight", "bias"

    @property
    def kind(self) -> str:
        """ "linear", "embedding", "norm", or "" for a module whose per-sample gradients are not known here."""
        if isinstance(self.module, nn.Linear):
            return "linear"
        if isinstance(self.module, nn.Embedding):
            plain = self.module.max_norm is None and not self.module.scale_grad_by_freq
            return "embedding" if plain else ""
        is_norm = isinstance(self.module, nn.LayerNorm) or type(self.module).__name__.endswith("RMSNorm")
        return "norm" if is_norm and norm_epsilon(self.module) is not None else ""


def norm_epsilon(module: nn.Module) -> float | None:
    """What a normalisation layer adds under its root; None where it does not say."""
    for attribute in ("variance_epsilon", "eps"):
        if isinstance(getattr(module, attribute, None), float):
            return float(getattr(module, attribute))
    return None


def trainable_layers(model: Any) -> list[Layer]:
    """The layers of ``model`` (LoRA adapters or not) that own parameters with ``requires_grad``.

    Raises:
        KeelBenchError: there is none; a module whose per-sample gradient has no known form; a parameter that two
            modules share in another way than a tied embedding does.
    """
    root = base_model(model)
    layers = []
    owners: dict[int, list[nn.Module]] = {}
    for name, module in root.named_modules():
        own = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not own:
            continue
        layer = Layer(name, module, frozenset(own))
        if not layer.kind or not set(own) <= {"weight", "bias"}:
            raise KeelBenchError(
                f"per-sample gradients of {name or 'the model'} ({type(module).__name__}, parameters "
                f"{', '.join(sorted(own))}) have no known form here: linear layers, embeddings, RMSNorm and LayerNorm "
                "have. Freeze it, or choose a method that needs no gradients."
            )
        layers.append(layer)
        for parameter in own.values():
            owners.setdefault(id(parameter), []).append(module)
    if not layers:
        raise KeelBenchError("no parameter requires a gradient; unfreeze the model or add adapters")
    tied = {id(root.get_input_embeddings()), id(root.get_output_embeddings())}
    for layer in layers:
        sharing = {id(m) for n in layer.parameters for m in owners[id(getattr(layer.module, n))]}
        if len(sharing) > 1 and sharing != tied:
            raise KeelBenchError(f"{layer.name} shares its parameters with another module that is not the tied head")
    return layers


def over_batches(
    count: int,
    encode: Callable[[int], Encoded],
    work: Callable[[list[int], Batch], torch.Tensor],
    device: torch.device,
    engine: Engine,
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """``(indices, work(indices, batch))`` over ``count`` samples: windows sorted by length, batches under the token
    budget, and under less where that does not fit the memory."""
    budget = min(engine.tokens_per_batch, CPU_TOKENS) if device.type == "cpu" else engine.tokens_per_batch

    def shrink(fits: int) -> None:
        nonlocal budget
        budget = fits

    for start in range(0, count, WINDOW):
        items = [encode(i) for i in range(start, min(start + WINDOW, count))]

        def run(chosen: list[int], items: list[Encoded] = items, start: int = start) -> torch.Tensor:
            return work([start + i for i in chosen], collate([items[i] for i in chosen]))

        lengths = [len(ids) for ids, _ in items]
        for chosen, result in fitting_batches(lengths, budget, run, what="scoring", on_shrink=shrink):
            yield [start + i for i in chosen], result
            engine.on_progress(len(chosen))


def loss_scale(model: Any) -> float:
    """What losses are multiplied with before the backward pass.

    float16's smallest normal number is 6e-5 and output gradients are smaller; bfloat16 has float32's exponents.
    """
    return 4096.0 if next(base_model(model).parameters()).dtype == torch.float16 else 1.0


def observe_backward(
    model: Any, batch: Batch, layers: Sequence[Layer], visit: Callable[[Layer, torch.Tensor, torch.Tensor, int], None]
) -> torch.Tensor:
    """Each sequence's mean cross-entropy, [batch], in nats; ``visit(layer, inputs, output gradients, shared)`` on the
    way back.

    Inputs are [batch, time, ...] (an embedding's: token ids [batch, time]), output gradients [batch, time, ...] of
    ``loss_scale(model)`` times each sequence's loss; both are zero-padded, for the head too, whose time runs over the
    supervised positions only. At the first ``shared`` positions all sequences have the same tokens, so the same inputs.
    Nothing visited outlives its visit unless the visitor keeps it.

    Raises:
        KeelBenchError: a layer ran twice in one forward pass, whose two shares would need a cross term.
    """
    head = base_model(model).get_output_embeddings()
    inputs: dict[str, torch.Tensor] = {}
    batch = batch.to(device_of(model))
    rows = (batch.labels != IGNORE).nonzero()[:, 0]
    same = (batch.ids == batch.ids[:1]).all(0)[: int(batch.lengths.min())]
    shared = int(same.long().cumprod(0).sum())

    def watch(layer: Layer) -> Callable[[Any, Any, Any], None]:
        def backward(gradient: torch.Tensor) -> None:
            x = inputs.pop(layer.name)
            if layer.module is head:
                visit(layer, by_sequence(x, rows, len(batch.ids)), by_sequence(gradient, rows, len(batch.ids)), 0)
            else:
                visit(layer, x, gradient, shared)

        def forward(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if layer.name in inputs:
                raise KeelBenchError(
                    f"{layer.name} runs twice in one forward pass; its gradient has no known form here"
                )
            inputs[layer.name] = args[0].detach()
            if not output.requires_grad:
                output.requires_grad_()
            output.register_hook(backward)

        return forward

    handles = [layer.module.register_forward_hook(watch(layer)) for layer in layers]
    try:
        with frozen(model), shared_prefix(model, batch.ids.shape, shared), torch.enable_grad():
            losses = supervised_forward(model, batch).sequence_losses()
            if torch.isfinite(losses).all():
                (losses.sum() * loss_scale(model)).backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    return losses.detach()


def by_sequence(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Positions flattened in row order, [positions, ...], as [count, most positions a row, ...], zero-padded."""
    lengths = torch.bincount(rows, minlength=count)
    if len(values) == count * int(lengths.max()):
        return values.view(count, -1, *values.shape[1:])
    return nn.utils.rnn.pad_sequence(values.split(lengths.tolist()), batch_first=True)


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No parameter requires a gradient and dropout is off, within."""
    root = base_model(model)
    trained = [p for p in root.parameters() if p.requires_grad]
    was_training = root.training
    root.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        root.train(was_training)


def check_finite(values: torch.Tensor, names: Sequence[str], what: str) -> None:
    """
    Args:
        values: [batch, ...], one row a name.

    Raises:
        KeelBenchError: a row holds NaN or infinity; the message names the first such sample.
    """
    bad = (~torch.isfinite(values)).reshape(len(values), -1).any(1).nonzero().flatten()
    if bad.numel():
        raise KeelBenchError(
            f"the {what} of sample {names[int(bad[0])]} is not finite ({bad.numel()} of {len(values)} in its batch); "
            "check the model's weights, or load it in bfloat16 or float32"
        )
