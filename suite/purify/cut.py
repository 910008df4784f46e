"""From scores to a decision: several methods' rankings made one, and the cut through it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from baselines.records import FloatArray
from eval.errors import CapacityError, KeelBenchError

Combine = Literal["mean_rank", "union", "intersection"]
COMBINE: tuple[str, ...] = ("mean_rank", "union", "intersection")
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CutSpec:
    """How much goes: exactly one of the three."""

    keep: float | None = None  # share of the scored rows that stays
    drop: int | None = None  # rows that go
    threshold: float | None = None  # rows above this score go

    def __post_init__(self) -> None:
        given = [name for name in ("keep", "drop", "threshold") if getattr(self, name) is not None]
        if len(given) != 1:
            told = f"given are {' and '.join(given)}" if given else "none is given"
            raise KeelBenchError(f"name exactly one of keep (a share), drop (a number of rows) and threshold: {told}")
        if self.keep is not None and not 0 < self.keep < 1:
            raise KeelBenchError(f"keep={self.keep:g}: a share between 0 and 1 (a number of rows is drop=<n>)")
        if self.drop is not None and self.drop < 1:
            raise KeelBenchError(f"drop={self.drop}: at least 1")

    def size(self, n: int) -> int | None:
        """How many of ``n`` rows go; None where the scores decide.

        Raises:
            CapacityError: all of them, or none.
        """
        if self.threshold is not None:
            return None
        k = self.drop if self.drop is not None else n - round((self.keep or 0.0) * n)
        asked = f"drop={self.drop}" if self.drop is not None else f"keep={self.keep:g}"
        if k >= n:
            raise CapacityError(f"{asked} of {n:,} scored rows leaves nothing to keep")
        if k == 0:
            raise CapacityError(f"{asked} of {n:,} scored rows keeps everything")
        return k


@dataclass(frozen=True)
class Decision:
    """Arrays [n], in the order of the scored rows."""

    score: FloatArray  # what is cut through: the method's score, or the combined one
    rank: IntArray  # 1 = most safety-degrading
    ranks: dict[str, IntArray]  # each method's own
    dropped: npt.NDArray[np.bool_]
    at: float  # the lowest dropped score; NaN where nothing is dropped


def decide(ids: npt.NDArray[np.bytes_], scores: Mapping[str, FloatArray], combine: str, spec: CutSpec) -> Decision:
    """Which rows go.

    Of several methods, a row's place in each ranking becomes a number from 1 (first: most safety-degrading) down to
    1/n, and these are combined: ``mean_rank`` takes their mean (tied rows share their mean place) and cuts through it;
    ``union`` drops what any method alone would drop, so more than was asked for; ``intersection`` what all would, so
    less. Ties are broken by id.

    Args:
        ids: [n].
        scores: each method's, [n], higher = more safety-degrading.

    Raises:
        CapacityError: nothing would be kept.
        KeelBenchError: a threshold for rankings that have no common scale.
    """
    n = len(ids)
    above = float("nan") if spec.threshold is None else spec.threshold
    ranks = {name: _ranks(ids, score) for name, score in scores.items()}
    k = spec.size(n)
    if len(scores) == 1:
        ((name, score),) = scores.items()
        rank = ranks[name]
        dropped = score > above if k is None else rank <= k
    elif combine == "mean_rank":
        from scipy.stats import rankdata

        score = np.mean([rankdata(values, method="average") / n for values in scores.values()], axis=0)
        rank = _ranks(ids, score)
        dropped = score > above if k is None else rank <= k
    else:
        check_combination(len(scores), combine, spec)
        places = np.array([(n + 1 - r) / n for r in ranks.values()])
        score = places.max(axis=0) if combine == "union" else places.min(axis=0)
        rank = _ranks(ids, score)
        assert k is not None
        dropped = score > (n - k) / n + 1e-12
    if dropped.all():
        least = f"the lowest score is {score.min():.6g}" if k is None else "lower drop, or raise keep"
        raise CapacityError(f"nothing is left to keep: all {n:,} rows would be dropped ({least})")
    return Decision(score, rank, ranks, dropped, float(score[dropped].min()) if dropped.any() else float("nan"))


def check_combination(methods: int, combine: str, spec: CutSpec) -> None:
    """
    Raises:
        KeelBenchError: a threshold with ``union`` or ``intersection`` of several methods.
    """
    if methods > 1 and combine != "mean_rank" and spec.threshold is not None:
        raise KeelBenchError(
            f"threshold with combine={combine}: the methods' scores have no common scale; give keep or drop (or "
            "combine=mean_rank, whose score goes from 1/n to 1)"
        )


def _ranks(ids: npt.NDArray[np.bytes_], score: FloatArray) -> IntArray:
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[np.lexsort((ids, -score))] = np.arange(1, len(ids) + 1)
    return ranks
