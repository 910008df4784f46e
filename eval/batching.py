"""Batches that waste no padding: items sorted by length, as many a batch as a token budget allows."""

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], max_tokens: int, max_items: int | None = None) -> list[list[int]]:
    """Indices grouped so that ``items x longest`` stays within ``max_tokens`` (a longer single item stands alone).

    Longest first, so that a batch too large for the memory fails at once and not after hours; ties keep the input's
    order, so that the grouping is the same on every run.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for index in order:
        if batches:
            longest = lengths[batches[-1][0]]
            fits = (len(batches[-1]) + 1) * longest <= max_tokens
            if fits and (max_items is None or len(batches[-1]) < max_items):
                batches[-1].append(index)
                continue
        batches.append([index])
    return batches
