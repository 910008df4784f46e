"""LARF's first stage: which layer's scaling moves refusals most (Li et al. 2025, section 3.1)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from baselines.architecture import base_model, block_projections, blocks
from baselines.method import Engine
from eval.chat import ChatFormat
from eval.errors import KeelBenchError
from eval.flops import Shape, Work
from eval.generation import generate_ids
from eval.judges.refusal_keywords import refusal_phrase
from eval.memory import fitting_batches


@dataclass(frozen=True)
class Sensitivity:
    """Refusals among the probes when one block's weights are scaled, and what follows."""

    best_layer: int
    layers: list[int]
    alphas: list[float]
    sensitivity: list[float]  # k_l = max over alphas of (c+ - c-)/alpha, a layer
    refusals_up: list[list[int]]  # c+ [layer][alpha], weights x (1 + alpha)
    refusals_down: list[list[int]]  # c- [layer][alpha], weights x (1 - alpha)
    probes: int
    tokens: int  # generated
    flops: float  # by formula (eval.flops)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Job:
    """One probe under one scaling of one block."""

    layer: int
    factor: float
    probe: int


def layer_sensitivity(
    model: Any,
    tokenizer: Any,
    probes: Sequence[str],
    *,
    alphas: Sequence[float] = (0.1, 0.2),
    max_new_tokens: int = 32,
    layers: Sequence[int] | None = None,
    engine: Engine = Engine(),
) -> Sensitivity:
    """Scale each block's attention and feed-forward weights by 1 ± alpha, answer the probes greedily, count refusals.

    Scaling a linear layer's weight is scaling its output (less its bias), so all scalings of all blocks are rows of
    common batches, each row with its own factor behind its own block: exact, and the batches are full.

    Args:
        layers: blocks tried; None = all.

    Raises:
        KeelBenchError: a block the model does not have, or no probe was refused under any scaling, in which case
            no layer is more sensitive than another (the model was not aligned, or the probes look too harmless to it).
    """
    depth = len(blocks(model))
    tried = list(range(depth)) if layers is None else list(layers)
    if not tried or not all(0 <= layer < depth for layer in tried):
        raise KeelBenchError(f"sensitivity layers {tried} are not within 0..{depth - 1}")
    factors = [1 + sign * alpha for alpha in alphas for sign in (1, -1)]
    jobs = [_Job(layer, factor, p) for layer in tried for factor in factors for p in range(len(probes))]
    refused, work = _refusals(model, tokenizer, probes, jobs, max_new_tokens, engine)
    counts: dict[tuple[int, float], int] = {}
    for job, refusal in zip(jobs, refused, strict=True):
        counts[job.layer, job.factor] = counts.get((job.layer, job.factor), 0) + refusal
    if not any(counts.values()):
        raise KeelBenchError(
            f"LARF stage 1: the model refused none of the {len(probes)} over-rejection probes under any scaling, so no "
            "layer can be called safety-sensitive. Align the model first (model.align), or name a layer "
            "(method.layer=<int>)."
        )
    up = [[counts[layer, 1 + a] for a in alphas] for layer in tried]
    down = [[counts[layer, 1 - a] for a in alphas] for layer in tried]
    slopes = [
        [(u - d) / a for u, d, a in zip(ups, downs, alphas, strict=True)] for ups, downs in zip(up, down, strict=True)
    ]
    sensitivity = [max(row) for row in slopes]
    # Counts are small integers, so layers tie; then the layer whose other scalings agree, then the lower one.
    best = tried[max(range(len(tried)), key=lambda i: (sensitivity[i], sum(slopes[i]), -tried[i]))]
    return Sensitivity(best, tried, list(alphas), sensitivity, up, down, len(probes), work.tokens, work.flops or 0.0)


def _refusals(
    model: Any, tokenizer: Any, probes: Sequence[str], jobs: list[_Job], max_new_tokens: int, engine: Engine
) -> tuple[list[bool], Work]:
    """Which jobs' answers refuse, and what answering took."""
    chat = ChatFormat(tokenizer)
    prompts = [chat.prompt_ids(p) for p in probes]
    stop = chat.stop_ids(base_model(model))
    pad = stop[0]
    refused, written = [False] * len(jobs), [0] * len(jobs)
    # Equal probes lie next to each other in length order, so rows of one width share a batch and nothing is padded.
    lengths = [len(prompts[job.probe]) + max_new_tokens for job in jobs]

    def answer(batch: list[int]) -> list[list[int]]:
        rows = [jobs[i] for i in batch]
        with _scaled(model, rows):
            return generate_ids(model, [prompts[job.probe] for job in rows], max_new_tokens, stop, pad)

    for batch, outputs in fitting_batches(lengths, engine.tokens_per_batch, answer, what="calibration"):
        for index, ids in zip(batch, outputs, strict=True):
            written[index] = next((n + 1 for n, token in enumerate(ids) if token in stop), len(ids))
            refused[index] = refusal_phrase(tokenizer.decode(ids, skip_special_tokens=True)) is not None
        engine.on_progress(len(batch))
    asked = [len(prompts[job.probe]) for job in jobs]
    return refused, Work(sum(written), Shape.of(model).answering(asked, written))


class _scaled:
    """Within the context, row r of every batch sees block ``rows[r].layer`` with its weights times its factor."""

    def __init__(self, model: Any, rows: list[_Job]):
        self.model, self.rows = model, rows
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        layers = blocks(self.model)
        for layer in sorted({job.layer for job in self.rows}):
            factor = torch.tensor([job.factor if job.layer == layer else 1.0 for job in self.rows])[:, None, None]
            for projection in block_projections(layers[layer]).values():
                self.handles.append(projection.register_forward_hook(_scaling_hook(factor)))

    def __exit__(self, *exc: object) -> None:
        for handle in self.handles:
            handle.remove()


def _scaling_hook(factor: torch.Tensor) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        scale = factor.to(output.device, output.dtype)
        if module.bias is None:
            return output * scale
        return (output - module.bias) * scale + module.bias

    return hook
