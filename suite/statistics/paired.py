"""Tests on paired outcomes. Arrays only: ``differences`` [n_seeds, n_prompts] is one point's outcome (0 or 1) less the
other's, to the same prompt under the same seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ALPHA = 0.05
POWER = 0.8
RESAMPLES = 10_000
_CHUNK_CELLS = 4_000_000  # resampling weights held at once (float32: 16 MB)


def exact_p(differences: Array) -> float:
    """Two-sided p of "neither point does it more often", by flipping the signs of whole prompts.

    With one seed this is McNemar's exact test (McNemar 1947; the binomial of the discordant prompts). With several, a
    prompt's differences are added up over its seeds first, so that answers of several seeds to one prompt, which are
    alike, do not count as independent: under the null hypothesis a prompt's sum s_p is as likely as −s_p. The
    distribution of Σ ±s_p is exact: prompts of equal |s_p| make a binomial, and these are convolved.
    """
    sums = np.asarray(differences, dtype=np.int64).sum(axis=0)
    observed = abs(int(sums.sum()))
    sizes, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    from scipy.stats import binom

    distribution = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        scaled = np.zeros(2 * size * count + 1)  # sums −size·count … size·count, of which every 2·size-th occurs
        scaled[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.convolve(distribution, scaled).astype(np.float64)
    middle = len(distribution) // 2
    tails = distribution[: middle - observed + 1].sum() + distribution[middle + observed :].sum()
    return float(min(1.0, tails))


def bootstrap_intervals(
    outcomes: Sequence[Array], *, resamples: int = RESAMPLES, alpha: float = ALPHA, seed: int = 0
) -> list[tuple[float, float]]:
    """Percentile intervals of means; every entry (outcomes, or differences of them) [n_seeds, n_prompts], of one shape.

    Seeds and prompts are crossed factors, and both are drawn with replacement, independently (Owen 2007, "The
    pigeonhole bootstrap"). The draws are the same for every entry. With one seed only prompts are drawn: the interval
    then says nothing about other seeds. Of S seeds, their part of the variance comes out (S − 1) / S of what it is.

    Returns:
        ``(low, high)`` for each entry, at the quantiles alpha/2 and 1 − alpha/2.
    """
    stacked = np.stack([np.asarray(d, dtype=np.float32) for d in outcomes])  # [entries, seeds, prompts]
    entries, n_seeds, n_prompts = stacked.shape
    generator = np.random.default_rng(seed)
    means = []
    rows = max(1, _CHUNK_CELLS // max(n_prompts, entries * n_seeds))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        prompts = generator.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size).astype(np.float32)
        seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size).astype(np.float32)
        by_seed = np.tensordot(stacked, prompts, axes=(2, 1))  # [entries, seeds, size]
        means.append(np.einsum("esb,bs->eb", by_seed, seeds) / (n_seeds * n_prompts))
    low, high = np.quantile(np.concatenate(means, axis=1), (alpha / 2, 1 - alpha / 2), axis=1)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): those below alpha hold a false one with probability alpha at most, whatever their
    dependence."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def smallest_difference(differences: Array, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference that a test at ``alpha`` finds with probability ``power``, with as many prompts and as much
    noise as were seen; inf where no difference could be found.

    The δ in [0, 1] that solves √n·δ = z(1−α/2)·√ψ + z(power)·√(ψ − δ²) (Connor 1987, for paired proportions), n the
    number of prompts and ψ the share of discordant ones. What was seen enters as the discordance that is noise:
    ψ = δ + ψ₀, ψ₀ = mean over prompts of (the prompt's mean difference over seeds)², less the |mean difference|, at
    least 0; with one seed twice the share of prompts that went the rarer way. Never below ``least_discordant(alpha)`` /
    n, the least that the exact test can call significant with one seed.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    means = np.asarray(differences, dtype=np.float64).mean(axis=0)
    n, noise = len(means), max(0.0, float(np.mean(means**2) - abs(np.mean(means))))
    z_alpha, z_power = norm.ppf(1 - alpha / 2), norm.ppf(power)

    def lacking(delta: float) -> float:
        psi = delta + noise
        return float(z_alpha * np.sqrt(psi) + z_power * np.sqrt(max(0.0, psi - delta**2)) - np.sqrt(n) * delta)

    floor = least_discordant(alpha) / n
    if lacking(1.0) > 0 or floor > 1:
        return float("inf")
    return max(floor, float(brentq(lacking, 1e-12, 1.0)))


def least_discordant(alpha: float = ALPHA) -> int:
    """The least number b of discordant prompts, all in one direction, that McNemar's exact test calls significant:
    2·(1/2)^b ≤ alpha, so b = ⌈1 − log2(alpha)⌉."""
    return int(np.ceil(1 - np.log2(alpha) - 1e-12))
