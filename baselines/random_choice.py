"""Random: the baseline every filter has to beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from baselines.method import Engine, Method
from baselines.records import Sample, Scores
from baselines.registry import register


@register("random")
@dataclass(frozen=True, kw_only=True)
class RandomChoice(Method):
    """Scores drawn uniformly from [0, 1) by the run's seed; any cut of them is a uniform sample.

    Draws belong to ids in sorted order, so that a reordered file keeps its scores.
    """

    uses_model: ClassVar[bool] = False
    uses_seed: ClassVar[bool] = True
    per_sample: ClassVar[bool] = False

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        ids = tuple(s.id for s in samples)
        draws = np.random.default_rng(seed).random(len(ids))
        values = np.empty(len(ids))
        values[np.argsort(np.asarray(ids))] = draws
        return Scores(ids, values)
