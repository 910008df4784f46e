"""Batches that do not fit the memory: halved and tried again, and told.

Which exceptions are a lack of memory is accelerate's knowledge (``should_reduce_batch_size``). Its decorator shrinks a
number of items and starts the whole function again; here batches hold tokens, and what is done stays done.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from eval.batching import token_budget_batches
from eval.errors import CapacityError

log = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")

_ALSO = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")  # unknown to accelerate


@dataclass(frozen=True)
class Shrunk:
    """A batch that did not fit."""

    what: str  # the work it was a batch of
    items: int  # 0 where the work was done again as a whole
    tokens: int  # items times the longest
    budget: int  # tokens a batch may hold from then on


_RECORD: ContextVar[list[Shrunk] | None] = ContextVar("shrunk", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Shrunk]]:
    """The list of what shrinks within the context."""
    events: list[Shrunk] = []
    token = _RECORD.set(events)
    try:
        yield events
    finally:
        _RECORD.reset(token)


def fitting_batches(
    lengths: Sequence[int],
    max_tokens: int,
    work: Callable[[list[int]], T],
    *,
    what: str,
    undo: Callable[[], None] = lambda: None,
    on_shrink: Callable[[int], None] = lambda budget: None,
) -> Iterator[tuple[list[int], T]]:
    """``(indices, work(indices))`` for every batch of ``token_budget_batches``, in their order.

    A batch for which the memory does not suffice is split under half its tokens, as are all that follow.

    Args:
        work: what is done with a batch; called again with a part of it after a failure.
        what: the work's name in log and record.
        on_shrink: told the budget from then on, for callers who come again with more items.
        undo: takes back what a failed ``work`` left behind, such as a part of a gradient.

    Raises:
        CapacityError: a single item does not fit.
    """
    waiting = token_budget_batches(lengths, max_tokens)
    while waiting:
        batch = waiting.pop(0)
        done, result = _tried(work, batch)
        if done:
            yield batch, result  # type: ignore[misc]
            continue
        undo()
        free_memory()
        tokens = len(batch) * max(lengths[i] for i in batch)
        if len(batch) == 1:
            raise CapacityError(f"{what}: out of memory with a single item of {tokens} tokens")
        budget = tokens // 2
        tell(Shrunk(what, len(batch), tokens, budget))
        on_shrink(budget)
        rest = [i for later in (batch, *waiting) for i in later]
        waiting = [[rest[i] for i in part] for part in token_budget_batches([lengths[i] for i in rest], budget)]


def with_less(work: Callable[[int], T], max_tokens: int, *, what: str, undo: Callable[[], None] = lambda: None) -> T:
    """``work(budget)``, done again from its beginning with half the tokens a batch where the memory does not suffice;
    for work whose batches cannot be taken back one by one.

    Raises:
        CapacityError: not even batches of one token fit.
    """
    budget = max_tokens
    while budget:
        done, result = _tried(work, budget)
        if done:
            return result  # type: ignore[return-value]
        undo()
        free_memory()
        budget //= 2
        tell(Shrunk(what, 0, 2 * budget, budget))
    raise CapacityError(f"{what}: out of memory however small the batches")


def tell(event: Shrunk) -> None:
    """Log ``event``, and put it on record where one is kept (``recorded``); also of what another process met."""
    log.warning("%s: out of memory with batches of %d tokens; %d from here on", event.what, event.tokens, event.budget)
    if (record := _RECORD.get()) is not None:
        record.append(event)


class Gradients:
    """Gradients as they were before a backward pass that may stop half-way through for lack of memory."""

    def __init__(self, parameters: Iterable[Any]):
        self._parameters = list(parameters)
        self._before: list[Any] = []

    def note(self) -> None:
        """Before the pass."""
        self._before = [None if p.grad is None else p.grad.clone() for p in self._parameters]

    def restore(self) -> None:
        """After it has failed."""
        for parameter, gradient in zip(self._parameters, self._before, strict=True):
            parameter.grad = gradient


def _tried(work: Callable[[A], T], argument: A) -> tuple[bool, T | None]:
    """The result is returned out of the handler's frame, so that the error, and all tensors in its frames, are gone
    before the next try."""
    try:
        return True, work(argument)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    return False, None


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is a lack of memory, the device's or the host's."""
    import torch
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, Exception) and (
        should_reduce_batch_size(error) or any(said in str(error) for said in _ALSO)
    )


def free_memory() -> None:
    """Hand back what nothing refers to any more."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
