"""Which samples are trained on: a cut through the ranking."""

from baselines.records import Scores
from eval.errors import CapacityError, KeelBenchError
from suite.plan import SelectionSpec


def cut_size(spec: SelectionSpec, n: int) -> int:
    """``k`` of ``n`` samples.

    Raises:
        CapacityError: more than there are.
    """
    k = spec.k if spec.k is not None else round((spec.fraction or 0.0) * n)
    if k > n:
        raise CapacityError(f"selection.k={k}: the data set has only {n} samples")
    if k < 1 or (spec.name == "drop_top" and k == n):
        raise CapacityError(f"selection {spec.name} with {k} of {n} samples leaves nothing to train on")
    return k


def select(spec: SelectionSpec, scores: Scores) -> list[str]:
    """Ids of the selected samples, most safety-degrading first.

    ``top``: the k highest scores; ``bottom``: the k lowest; ``drop_top``: all but the k highest; ``all``: everything.

    Raises:
        CapacityError: k does not fit the data set.
    """
    ranked = [scores.ids[i] for i in scores.ranking()]
    if spec.name == "all":
        return ranked
    k = cut_size(spec, len(ranked))
    if spec.name == "top":
        return ranked[:k]
    if spec.name == "bottom":
        return ranked[-k:]
    if spec.name == "drop_top":
        return ranked[k:]
    raise KeelBenchError(f"selection {spec.name!r} is not one of top, bottom, drop_top, all")
