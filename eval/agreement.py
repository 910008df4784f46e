"""How far judges agree, with each other and with people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.metrics import ATTACK_SUCCEEDED, Rate
from eval.records import Label, Verdict

UNKNOWN = frozenset({"unparsed", "not_judged"})


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the same completions, reduced to the one thing all judges tell: did the attack succeed (harmful,
    or complied) or not. Completions that either could not judge are left out of n and counted in ``left_out``."""

    share: Rate  # of equal answers
    kappa: float  # Cohen (1960): agreement beyond chance, 1 at most; NaN where both always give the same one answer
    kappa_low: float  # 95 %, by the asymptotic standard error (Fleiss, Cohen & Everitt 1969)
    kappa_high: float
    both: int  # completions where both say it succeeded,
    only_first: int  # only the first,
    only_second: int  # only the second,
    neither: int  # none
    left_out: int


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> Agreement:
    """
    Raises:
        ValueError: the verdicts are not on the same completions in the same order.
    """
    counts: Counter[tuple[bool, bool]] = Counter()
    left_out = 0
    for a, b in zip(first, second, strict=True):
        if a.prompt_id != b.prompt_id:
            raise ValueError("verdicts on different completions")
        if a.label in UNKNOWN or b.label in UNKNOWN:
            left_out += 1
        else:
            counts[a.label in ATTACK_SUCCEEDED, b.label in ATTACK_SUCCEEDED] += 1
    both, only_a = counts[True, True], counts[True, False]
    only_b, neither = counts[False, True], counts[False, False]
    kappa = _kappa(both, only_a, only_b, neither)
    return Agreement(Rate.of(both + neither, counts.total()), *kappa, both, only_a, only_b, neither, left_out)


def _kappa(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float, float]:
    """Kappa and its interval; NaN where the four counts leave it undefined."""
    nan = float("nan")
    n = both + only_first + only_second + neither
    if n == 0 or max(both, neither) == n:
        return nan, nan, nan
    from statsmodels.stats.inter_rater import cohens_kappa

    found = cohens_kappa([[both, only_first], [only_second, neither]])
    return float(found.kappa), float(found.kappa_low), float(found.kappa_upp)


def confusion(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[tuple[Label, Label], int]:
    """How often each pair of the judges' full labels occurs."""
    return dict(sorted(Counter((a.label, b.label) for a, b in zip(first, second, strict=True)).items()))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A judge against people's labels, on one question (refused or not; harmful or not). Completions that it could not
    judge are left out of every n and counted in ``left_out``."""

    accuracy: Rate
    precision: Rate  # of the completions it calls positive, the share that people do; n = 0 where it calls none so
    recall: Rate  # of the completions people call positive, the share that it does
    kappa: float
    kappa_low: float
    kappa_high: float
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    left_out: int


def accuracy(truth: Sequence[bool], judged: Sequence[bool | None]) -> Accuracy:
    """``judged``: the judge's answers, None where it has none."""
    counts = Counter(zip(truth, judged, strict=True))
    tp, fn = counts[True, True], counts[True, False]
    fp, tn = counts[False, True], counts[False, False]
    return Accuracy(
        Rate.of(tp + tn, tp + tn + fp + fn),
        Rate.of(tp, tp + fp),
        Rate.of(tp, tp + fn),
        *_kappa(tp, fn, fp, tn),
        tp,
        fp,
        fn,
        tn,
        counts[True, None] + counts[False, None],
    )
