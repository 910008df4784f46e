"""Guards the token-budget batches: every item once, the budget kept, the same grouping on every run."""

from hypothesis import given
from hypothesis import strategies as st

from eval.batching import token_budget_batches

LENGTHS = st.lists(st.integers(1, 400), max_size=80)
BUDGETS = st.integers(1, 1500)
LIMITS = st.none() | st.integers(1, 9)


@given(LENGTHS, BUDGETS, LIMITS)
def test_every_index_stands_in_exactly_one_batch(lengths, budget, limit):
    batches = token_budget_batches(lengths, budget, limit)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, BUDGETS, LIMITS)
def test_a_batch_keeps_both_limits_unless_one_item_alone_is_too_long(lengths, budget, limit):
    for batch in token_budget_batches(lengths, budget, limit):
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= budget or len(batch) == 1
        assert limit is None or len(batch) <= limit


@given(LENGTHS, BUDGETS, LIMITS)
def test_the_order_is_longest_first_and_ties_keep_the_inputs_order(lengths, budget, limit):
    flat = [i for batch in token_budget_batches(lengths, budget, limit) for i in batch]
    assert [(-lengths[i], i) for i in flat] == sorted((-n, i) for i, n in enumerate(lengths))


@given(LENGTHS, BUDGETS, LIMITS)
def test_no_batch_ends_while_its_successor_still_fits(lengths, budget, limit):
    batches = token_budget_batches(lengths, budget, limit)
    for batch in batches[:-1]:
        one_more_fits = (len(batch) + 1) * lengths[batch[0]] <= budget
        assert not one_more_fits or len(batch) == limit


def test_a_worked_example():
    assert token_budget_batches([3, 9, 5, 3, 20], 18) == [[4], [1, 2], [0, 3]]
    assert token_budget_batches([3, 9, 5, 3, 20], 18, max_items=1) == [[4], [1], [2], [0], [3]]
    assert token_budget_batches([], 18) == []
