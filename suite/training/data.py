"""What fine-tuning goes through: rows, their order, and how an optimiser step's rows are shared by processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from baselines.losses import Batch, Supervised, collate, supervised_labels
from eval.chat import Conversation
from eval.errors import KeelBenchError


@dataclass(frozen=True)
class StepShares:
    """How an optimiser step of ``batch_size x accumulation`` conversations is split over processes.

    The step stays what it is for one process, so that the number of processes changes rounding only.
    """

    processes: int
    rows_a_pass: int  # conversations of one process's forward pass
    passes: int  # of one process, a step

    @classmethod
    def of(cls, batch_size: int, accumulation: int, processes: int) -> "StepShares":
        """
        Raises:
            KeelBenchError: the step cannot be split evenly.
        """
        if accumulation % processes == 0:
            return cls(processes, batch_size, accumulation // processes)
        if batch_size % processes == 0:
            return cls(processes, batch_size // processes, accumulation)
        raise KeelBenchError(
            f"compute.training_processes={processes} divides neither train.accumulation={accumulation} nor "
            f"train.batch_size={batch_size}; a step of {batch_size * accumulation} conversations is split evenly"
        )

    @property
    def step_size(self) -> int:
        return self.processes * self.rows_a_pass * self.passes


class StepSortedSampler(torch.utils.data.Sampler[int]):
    """A random order each epoch, sorted by length within each optimiser step's samples.

    Args:
        multiple: the order is filled up to a multiple of this with the index behind the last row, the padding row's, so
            that all processes run equally many passes.
    """

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int, multiple: int = 1):
        self.lengths, self.step_size, self.seed, self.epoch = lengths, step_size, seed, 0
        self.padding = -len(lengths) % multiple

    def __len__(self) -> int:
        return len(self.lengths) + self.padding

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.step_size):
            yield from sorted(order[start : start + self.step_size], key=lambda i: (-self.lengths[i], i))
        yield from [len(self.lengths)] * self.padding


def supervised_rows(conversations: Sequence[Conversation]) -> list[dict[str, list[int]]]:
    """Ids and shifted labels of each conversation; the end of a truncated one teaches nothing."""
    return [
        dict(zip(("input_ids", "labels"), supervised_labels(c, keep_end=False), strict=True)) for c in conversations
    ]


PADDING_ROW: dict[str, list[int]] = {"input_ids": [], "labels": []}  # no token, nothing supervised


def collate_rows(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right, at least one token wide (a pass of padding rows still runs)."""
    if all(not row["input_ids"] for row in rows):
        return padding_pass(len(rows))
    batch = collate([(row["input_ids"], row["labels"]) for row in rows])
    # `shift_labels` is what the Trainer counts a step's tokens by when labels are shifted already.
    return {"input_ids": batch.ids, "labels": batch.labels, "shift_labels": batch.labels, "lengths": batch.lengths}


def without_padding(batch: Batch, out: Supervised) -> tuple[Batch, Supervised]:
    """A pass without its padding rows, which are the last ones and have nothing supervised."""
    rows = int((batch.lengths > 0).sum())
    states = None if out.hidden_states is None else tuple(h[:rows] for h in out.hidden_states)
    kept = Batch(batch.ids[:rows], batch.labels[:rows], batch.lengths[:rows])
    return kept, replace(out, batch_size=rows, hidden_states=states)


def padding_pass(rows: int = 1, device: Any = None) -> dict[str, torch.Tensor]:
    """Inputs of a forward pass whose loss and gradient are zero: a process without rows takes part by it."""
    ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
    labels = torch.full_like(ids, -100)
    return {"input_ids": ids, "labels": labels, "shift_labels": labels, "lengths": torch.zeros_like(ids[:, 0])}
