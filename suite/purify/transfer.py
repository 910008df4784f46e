"""Does a scorer rank as the model that is trained would? Measured on a part of the rows, which both score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from baselines.method import Method
from baselines.records import FloatArray, Sample
from suite.plan import ModelSpec
from suite.purify.plan import PurifyPlan
from suite.purify.scores import Voter
from suite.quality.metrics import spearman, top_ids
from suite.stages.data import Data, ids_key
from suite.stages.models import LoadedModel
from suite.stages.scoring import score
from suite.storage.cache import Entry, StageCache


@dataclass(frozen=True)
class Transfer:
    """How far two models' rankings of the same rows by one method agree."""

    rows: int
    spearman: float | None
    top: int  # as many rows as the cut's share of them
    shared: int  # of either's top, rows that are in both


def transfers(
    plan: PurifyPlan,
    voters: Mapping[str, Voter],
    samples: Sequence[Sample],
    places: np.ndarray,
    share: float,
    model: LoadedModel,
    cache: StageCache,
) -> tuple[dict[str, Transfer], list[Entry]]:
    """For every method that reads a model and scores sample by sample: the scorer's ranking against ``model``'s.

    Args:
        samples: scored by ``model`` too.
        places: [m], where they stand among the scored rows.
        share: of the rows that were dropped.
    """
    data = Data(list(samples), {}, ids_key([s.id for s in samples]))
    found: dict[str, Transfer] = {}
    entries: list[Entry] = []
    for name, voter in voters.items():
        if not (voter.method.uses_model and voter.method.per_sample):
            continue
        method = for_model(plan.methods[name], plan.model)
        scored = score(method, model, data, seed=plan.seed, compute=plan.compute, cache=cache)
        entries += scored.entries
        found[name] = compare([s.id for s in samples], voter.score[places], scored.scores.score, share)
    return found, entries


def for_model(method: Method, model: ModelSpec) -> Method:
    """The method as it is set up for ``model``: LARF's layer belongs to the model that it reads."""
    changed: Any = {"layer": model.larf_layer} if method.name == "larf" else {}
    return replace(method, **changed)


def compare(ids: Sequence[str], first: FloatArray, second: FloatArray, share: float) -> Transfer:
    """Two scores [m] of the same rows."""
    top = max(1, round(share * len(ids)))
    both = top_ids(ids, first, top) & top_ids(ids, second, top)
    return Transfer(len(ids), spearman(first, second), top, len(both))
