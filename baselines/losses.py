"""Response-only cross-entropy that computes no logit nobody asked for.

Shared by fine-tuning, SEAL and the gradient engine. Sequences are padded on the right, where no supervised token of a
causal model can see the padding, so no padding mask is passed; the language-model head runs on supervised positions
only (of a 135M model's step on a CPU that head over all positions was a fifth; docs/benchmarks).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from baselines.architecture import base_model, decoder
from eval.chat import Conversation
from eval.errors import KeelBenchError

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded conversations. ``labels[b, t]`` is the token that position t predicts, or ``IGNORE``."""

    ids: torch.Tensor  # int64 [batch, time]
    labels: torch.Tensor  # int64 [batch, time], already shifted
    lengths: torch.Tensor  # int64 [batch]

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.labels.to(device), self.lengths.to(device))


def supervised_labels(
    conversation: Conversation, *, tokens: int | None = None, keep_end: bool = True
) -> tuple[list[int], list[int]]:
    """A conversation's ids, cut behind the last one the loss can see, and their shifted labels.

    Supervised are the response's content tokens and its end-of-turn token, never what follows it. In a causal model
    nothing behind the last supervised token touches the loss, so the cut is exact.

    Args:
        tokens: only this many first supervised tokens; None = all; a shorter response uses what there is.
        keep_end: whether the end-of-turn token of a *truncated* response is supervised (it would teach to stop early).

    Raises:
        KeelBenchError: nothing is left to supervise.
    """
    count = conversation.response_length
    if conversation.truncated and not keep_end:
        count -= 1
    if tokens is not None:
        count = min(count, tokens)
    if count <= 0:
        raise KeelBenchError("a conversation has no supervised token")
    start = conversation.prompt_length
    ids = list(conversation.ids[: start + count - 1])
    labels = [IGNORE] * (start - 1) + list(conversation.ids[start : start + count])
    return ids, labels


def collate(items: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """Pad ``(ids, shifted labels)`` pairs on the right."""
    width = max(len(ids) for ids, _ in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    labels = torch.full((len(items), width), IGNORE, dtype=torch.long)
    for row, (sequence, targets) in enumerate(items):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, : len(targets)] = torch.tensor(targets)
    return Batch(ids, labels, torch.tensor([len(sequence) for sequence, _ in items]))


@dataclass(frozen=True)
class Supervised:
    """The supervised positions of a batch, flattened in row order."""

    logits: torch.Tensor  # float32 [supervised, vocabulary]
    targets: torch.Tensor  # int64 [supervised]
    rows: torch.Tensor  # int64 [supervised], the sequence each position belongs to
    batch_size: int
    hidden_states: tuple[torch.Tensor, ...] | None = None  # embeddings and each block's output, where asked for

    def token_losses(self) -> torch.Tensor:
        """Cross-entropy of each supervised token, [supervised], in nats."""
        return cross_entropy(self.logits, self.targets, reduction="none")

    def sequence_losses(self) -> torch.Tensor:
        """Mean cross-entropy of each sequence, [batch], in nats."""
        losses = self.token_losses()
        total = torch.zeros(self.batch_size, dtype=losses.dtype, device=losses.device).index_add(0, self.rows, losses)
        return total / torch.bincount(self.rows, minlength=self.batch_size)


def supervised_forward(model: Any, batch: Batch, *, hidden_states: bool = False) -> Supervised:
    """Run ``model`` (LoRA adapters or not) and its head on the supervised positions of ``batch``."""
    out = decoder(model)(input_ids=batch.ids, use_cache=False, output_hidden_states=hidden_states)
    hidden = out.last_hidden_state
    labels = batch.labels.to(hidden.device)  # of the last block: not the first one's, where a device map spreads them
    keep = labels != IGNORE
    logits = base_model(model).get_output_embeddings()(hidden[keep]).float()
    softcap = getattr(base_model(model).config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    targets, rows = labels[keep].to(logits.device), keep.nonzero()[:, 0].to(logits.device)
    return Supervised(logits, targets, rows, len(batch.ids), out.hidden_states if hidden_states else None)
