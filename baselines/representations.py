"""The representation engine: hidden states of chosen layers at one token a sequence.

Layer ``k`` is transformers' ``hidden_states[k]``: 0 the embeddings, k the output of block k-1; the last k is read
*before* the final norm here (transformers gives it after), so that it means what the others mean.

A pass stops after the last block needed and never reaches the final norm or the language-model head. Samples are read
in windows, sorted by length within each and batched under a token budget, so that memory does not grow with their
number; results come with their indices, whatever the batching. Padding stands on the right, behind every token that is
read, where a causal model cannot see it: no padding mask is needed and none is built.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from baselines.architecture import base_model, blocks, decoder, device_of
from baselines.method import Engine
from eval.chat import Conversation
from eval.errors import KeelBenchError
from eval.memory import fitting_batches

WINDOW = 2048  # sequences encoded, sorted and batched together
CPU_TOKENS = 1024  # a batch's tokens on a CPU at most: more leave its caches and pad more (bench_larf: 13 % slower)


class _Enough(Exception):
    """Raised by the hook behind the last block needed."""


@dataclass(frozen=True)
class Readings:
    """One batch's hidden states: ``states[row, j]`` is layer ``layers[j]`` of sequence ``indices[row]``."""

    indices: list[int]
    states: torch.Tensor  # float32 [batch, layers, hidden], on the CPU


def read_states(
    model: Any,
    count: int,
    encode: Callable[[int], tuple[Sequence[int], int]],
    layers: Sequence[int],
    *,
    engine: Engine = Engine(),
    packing: bool = False,
) -> Iterator[Readings]:
    """Hidden states of ``count`` sequences, batch by batch.

    Args:
        encode: index -> (token ids, position to read); tokens behind the position are not computed.
        layers: ascending layer numbers, 0 <= k <= number of blocks.
        packing: put each batch's sequences in one row behind each other instead of padding them; attention stays
            within a sequence (transformers builds the block mask from the restarting positions).

    Raises:
        KeelBenchError: a layer the model does not have.
    """
    depth = len(blocks(model))
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] > depth:
        raise KeelBenchError(f"layers {list(layers)} are not ascending numbers within 0..{depth}")
    budget = engine.tokens_per_batch
    if device_of(model).type == "cpu":
        budget = min(budget, CPU_TOKENS)

    def shrink(fits: int) -> None:
        nonlocal budget
        budget = fits

    for start in range(0, count, WINDOW):
        window = range(start, min(start + WINDOW, count))
        encoded = [encode(i) for i in window]
        sequences = [np.asarray(ids[: position + 1], dtype=np.int64) for ids, position in encoded]

        def read(batch: list[int], sequences: list[np.ndarray] = sequences) -> torch.Tensor:
            rows = [sequences[i] for i in batch]
            return _read_packed(model, rows, layers) if packing else _read_padded(model, rows, layers)

        lengths = [len(s) for s in sequences]
        for batch, states in fitting_batches(lengths, budget, read, what="scoring", on_shrink=shrink):
            yield Readings([start + i for i in batch], states)
            engine.on_progress(len(batch))


def _read_padded(model: Any, rows: list[np.ndarray], layers: Sequence[int]) -> torch.Tensor:
    width = max(map(len, rows))
    ids = np.zeros((len(rows), width), dtype=np.int64)
    for row, sequence in enumerate(rows):
        ids[row, : len(sequence)] = sequence
    last = torch.tensor([len(r) - 1 for r in rows])
    return _forward(model, torch.from_numpy(ids), None, torch.arange(len(rows)), last, layers)


def _read_packed(model: Any, rows: list[np.ndarray], layers: Sequence[int]) -> torch.Tensor:
    ids = torch.from_numpy(np.concatenate(rows))[None]
    positions = torch.from_numpy(np.concatenate([np.arange(len(r)) for r in rows]))[None]
    ends = torch.from_numpy(np.cumsum([len(r) for r in rows]) - 1)
    return _forward(model, ids, positions, torch.zeros_like(ends), ends, layers)


def _forward(
    model: Any,
    ids: torch.Tensor,
    position_ids: torch.Tensor | None,
    rows: torch.Tensor,
    columns: torch.Tensor,
    layers: Sequence[int],
) -> torch.Tensor:
    stack = decoder(model)
    device = device_of(model)
    found: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            found[layer] = hidden[rows.to(hidden.device), columns.to(hidden.device)].float().cpu()
            if layer == layers[-1]:
                raise _Enough

        return hook

    handles = [(stack.embed_tokens if k == 0 else stack.layers[k - 1]).register_forward_hook(keep(k)) for k in layers]
    was_training = base_model(model).training
    base_model(model).eval()
    try:
        with torch.inference_mode():
            extra = {} if position_ids is None else {"position_ids": position_ids.to(device)}
            stack(input_ids=ids.to(device), use_cache=False, **extra)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
        base_model(model).train(was_training)
    return torch.stack([found[k] for k in layers], dim=1)


def token_position(conversation: Conversation, token: str) -> int:
    """The position ``token`` names: "end_of_turn", or "last", the literal last token of the template.

    Raises:
        KeelBenchError: another name.
    """
    if token == "end_of_turn":
        return conversation.end_of_turn
    if token == "last":
        return len(conversation.ids) - 1
    raise KeelBenchError(f"token={token!r}: known are 'end_of_turn' and 'last'")
