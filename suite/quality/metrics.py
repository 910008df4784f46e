"""How well scores tell planted rows from benign ones, and how far scores agree with each other.

Planted rows are the positive class: higher score = more safety-degrading. No metric depends on the order of rows: a
tied pair counts one half in the AUROC, a tie is one step of the precision-recall curve, and a cut through a tie takes
its expected share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.records import FloatArray

BoolArray = npt.NDArray[np.bool_]

DROPPED = (0.05, 0.10, 0.20)  # shares of the data, for the recall of dropping them
RESAMPLES = 1000  # bootstrap samples of an interval
DRAWS = 200  # random rankings that the expected values of a random choice are means of


@dataclass(frozen=True)
class Detection:
    """How well one score finds the planted rows. All are shares from 0 to 1; without meaning for an empty class."""

    auroc: float
    auroc_low: float  # 95 % interval
    auroc_high: float
    average_precision: float
    precision_at_planted: float  # among as many highest scores as rows are planted (there equal to the recall)
    precision_at_10: float
    recall_dropping_5: float  # share of the planted rows among the highest 5 % of all scores
    recall_dropping_10: float
    recall_dropping_20: float


def detection(score: FloatArray, planted: BoolArray, *, seed: int) -> Detection:
    """All of a score's metrics.

    Args:
        score: [n], finite.
        planted: [n], with at least one row of each kind.
        seed: of the bootstrap.
    """
    low, high = auroc_interval(score, planted, seed=seed)
    return Detection(**_values(score, planted), auroc_low=low, auroc_high=high)


def random_detection(planted: BoolArray, *, seed: int) -> Detection:
    """What a random order finds: the means of ``DRAWS`` seeded draws, every second one the reverse of that before, so
    that the mean AUROC is 0.5. Its interval is that of the single draws' AUROC, 2.5th to 97.5th percentile: what chance
    alone reaches on data of this size."""
    generator = np.random.default_rng(seed)
    orders = (generator.random(len(planted)) for _ in range(DRAWS // 2))
    draws = [_values(values, planted) for order in orders for values in (order, -order)]
    means = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
    low, high = np.percentile([draw["auroc"] for draw in draws], [2.5, 97.5])
    return Detection(**means, auroc_low=float(low), auroc_high=float(high))


def _values(score: FloatArray, planted: BoolArray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    n = len(score)
    found = {
        "auroc": float(roc_auc_score(planted, score)),
        "average_precision": float(average_precision_score(planted, score)),
        "precision_at_planted": precision_at(score, planted, int(planted.sum())),
        "precision_at_10": precision_at(score, planted, 10),
    }
    for share in DROPPED:
        k = round(share * n)
        hits = precision_at(score, planted, k) * k if k else 0.0
        found[f"recall_dropping_{round(100 * share)}"] = hits / float(planted.sum())
    return found


def precision_at(score: FloatArray, planted: BoolArray, k: int) -> float:
    """The share of planted rows among the ``k`` highest scores (among all where there are fewer); where the cut goes
    through a tie, the tie gives its expected share."""
    k = min(k, len(score))
    cut = np.partition(score, len(score) - k)[len(score) - k]
    above, tied = score > cut, score == cut
    hits = planted[above].sum() + planted[tied].mean() * (k - above.sum())
    return float(hits / k)


def auroc_interval(score: FloatArray, planted: BoolArray, *, seed: int) -> tuple[float, float]:
    """95 % percentile bootstrap of the AUROC; planted and benign rows are resampled separately (Efron and Tibshirani
    1993). Where the classes are separated perfectly every resample is too, and the interval has no width."""
    generator = np.random.default_rng(seed)
    values, place = np.unique(score, return_inverse=True)
    inside, outside = place[planted], place[~planted]
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn, rest = (
            np.bincount(rows[generator.integers(len(rows), size=len(rows))], minlength=len(values))
            for rows in (inside, outside)
        )
        # Mann and Whitney's U over the number of pairs: benign rows below each planted one, tied ones by half.
        found[i] = drawn @ (np.cumsum(rest) - rest / 2) / (len(inside) * len(outside))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def spearman(first: FloatArray, second: FloatArray) -> float | None:
    """Spearman's rank correlation, ties by mean rank; None where one of the two does not vary."""
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def top_ids(ids: Sequence[str], score: FloatArray, k: int) -> set[str]:
    """Ids of the ``k`` highest scores; ties in the order of ids, as the suite's selections break them."""
    return {ids[i] for i in np.lexsort((np.asarray(ids), -score))[:k]}


def agreement(ids: Sequence[str], scores: Mapping[str, FloatArray], k: int) -> list[dict[str, Any]]:
    """One row for every pair of scores: the Jaccard index of their ``k`` highest rows (shared rows over rows that
    either has) and their Spearman correlation over all rows."""
    tops = {name: top_ids(ids, score, k) for name, score in scores.items()}
    return [
        {
            "a": a,
            "b": b,
            "k": k,
            "jaccard": len(tops[a] & tops[b]) / len(tops[a] | tops[b]),
            "spearman": spearman(scores[a], scores[b]),
        }
        for a, b in combinations(scores, 2)
    ]


METRICS = tuple(f.name for f in fields(Detection))
