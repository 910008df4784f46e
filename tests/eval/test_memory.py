"""Batches that do not fit the memory are halved until they do; nothing is lost, nothing done twice, all of it told."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.batching import token_budget_batches
from eval.errors import CapacityError
from eval.memory import Gradients, Shrunk, fitting_batches, out_of_memory, recorded

LACKING = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")


def limited(lengths, fits: int, seen: list[int]):
    def work(batch):
        seen.append(len(batch) * max(lengths[i] for i in batch))
        if seen[-1] > fits:
            raise LACKING
        return [f"answer {i}" for i in batch]

    return work


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 500), st.integers(50, 500))
def test_every_item_is_worked_on_once_whatever_fits(lengths, budget, fits):
    seen: list[int] = []
    found = list(fitting_batches(lengths, budget, limited(lengths, fits, seen), what="work"))
    done = [i for batch, _ in found for i in batch]
    assert sorted(done) == list(range(len(lengths)))
    assert all(result == [f"answer {i}" for i in batch] for batch, result in found)
    assert sum(tokens > fits for tokens in seen) <= 10  # halved each time, and never tried larger again
    if budget <= fits:
        assert [batch for batch, _ in found] == token_budget_batches(lengths, budget)


def test_what_shrank_is_recorded_and_the_rest_is_not_tried_at_the_old_size(caplog):
    seen, told = [], []
    with recorded() as events:
        work = limited([10] * 16, 40, seen)
        batches = [b for b, _ in fitting_batches([10] * 16, 80, work, what="generation", on_shrink=told.append)]
    assert seen == [80, 40, 40, 40, 40]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert events == [Shrunk("generation", 8, 80, 40)]
    assert told == [40]
    assert "generation: out of memory with batches of 80 tokens; 40 from here on" in caplog.text


def test_a_single_item_too_large_is_an_error_that_says_so():
    with pytest.raises(CapacityError, match="scoring: out of memory with a single item of 90 tokens"):
        list(fitting_batches([90, 10], 100, limited([90, 10], 50, []), what="scoring"))


def test_other_errors_are_not_swallowed():
    def work(batch):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(fitting_batches([1, 1], 2, work, what="x"))


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (LACKING, True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError(" out of memory."), False),
    ],
)
def test_what_counts_as_a_lack_of_memory(error, lacking):
    assert out_of_memory(error) is lacking


def test_the_failed_tries_tensors_are_gone_before_the_next_try():
    import gc
    import weakref

    left = []

    def work(batch):
        assert not any(ref() is not None for ref in left)
        activation = torch.zeros(1000)
        left.append(weakref.ref(activation))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 0

    gc.disable()
    try:
        assert len(list(fitting_batches([1, 1, 1, 1], 4, work, what="x"))) == 4
    finally:
        gc.enable()
    assert len(left) == 6


def test_half_a_gradient_is_taken_back():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    first.grad = torch.tensor([1.0, 2.0])
    before = Gradients([first, second])
    before.note()
    first.grad += 5
    second.grad = torch.ones(2)
    before.restore()
    assert first.grad.tolist() == [1.0, 2.0]
    assert second.grad is None
