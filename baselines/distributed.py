"""Samples split over the processes of a torch.distributed group, their results gathered and their counts added up.

Where no group is initialised (accelerate's ``PartialState()`` makes one of torchrun's environment), one process does
everything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from baselines.method import Engine
from eval.errors import KeelBenchError

PART = 2048  # samples; a multiple of the engines' windows, so that the batches are those of an undivided scoring


def over_ranks(
    count: int,
    compute: Callable[[Sequence[int]], torch.Tensor],
    device: torch.device | None = None,
    *,
    engine: Engine | None = None,
) -> torch.Tensor:
    """``compute`` over the indices 0..count-1, each rank its share; the whole result on every rank.

    Neighbours go to different ranks, so that a file sorted by length is split fairly. Only rounding differs from one
    process: a sample may be batched with others.

    Args:
        compute: indices -> one row each, [len(indices), ...]; called with an empty share too, so that the width
            of its rows is known everywhere.
        device: where the group exchanges tensors (NCCL: the rank's GPU); None = the CPU.
        engine: its ``parts`` hold what one process has computed, ``PART`` samples at a time.

    Raises:
        KeelBenchError: on every rank, where ``compute`` raised it on one; a rank that waits for another never hangs.
    """
    if not _several():
        return compute(range(count)) if engine is None or engine.parts is None else _in_parts(count, compute, engine)
    share = range(dist.get_rank(), count, dist.get_world_size())
    mine: torch.Tensor | None = None
    problem: str | None = None
    try:
        mine = compute(share)
    except KeelBenchError as error:
        problem = str(error)
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for rank, message in enumerate(problems):
        if message is not None:
            raise KeelBenchError(f"rank {rank}: {message}")
    assert mine is not None
    on_cpu = dist.get_backend() != "nccl"
    whole = torch.zeros(count, *mine.shape[1:], dtype=mine.dtype, device="cpu" if on_cpu else device)
    whole[share.start :: share.step] = mine.to(whole.device)
    dist.all_reduce(whole)  # every row is one rank's own and zero elsewhere
    return whole.to(mine.device)


def sum_over_ranks(counts: Sequence[int]) -> list[int]:
    """Each count summed over the group's ranks, all of which have to ask."""
    if not _several():
        return list(counts)
    total = torch.tensor(counts, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total)
    return [int(n) for n in total]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _in_parts(count: int, compute: Callable[[Sequence[int]], torch.Tensor], engine: Engine) -> torch.Tensor:
    parts = engine.parts
    assert parts is not None
    rows = []
    for start in range(0, count, PART):
        size = min(PART, count - start)
        found = parts.find(start, size)
        if found is None:
            found = compute(range(start, start + size))
            parts.keep(start, found)
        else:
            engine.on_progress(size)
        rows.append(found)
    return torch.cat(rows) if rows else compute(range(0))
