"""Samples split over the processes of a torch.distributed group, and their results gathered again.

Where no group is initialised (accelerate's ``PartialState()`` makes one of torchrun's environment), one process does
everything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from eval.errors import KeelBenchError


def over_ranks(
    count: int, compute: Callable[[Sequence[int]], torch.Tensor], device: torch.device | None = None
) -> torch.Tensor:
    """``compute`` over the indices 0..count-1, each rank its share; the whole result on every rank.

    Neighbours go to different ranks, so that a file sorted by length is split fairly. Only rounding differs from one
    process: a sample may be batched with others.

    Args:
        compute: indices -> one row each, [len(indices), ...]; called with an empty share too, so that the width
            of its rows is known everywhere.
        device: where the group exchanges tensors (NCCL: the rank's GPU); None = the CPU.

    Raises:
        KeelBenchError: on every rank, where ``compute`` raised it on one; a rank that waits for another never hangs.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return compute(range(count))
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
