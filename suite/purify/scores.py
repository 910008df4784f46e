"""Every method's scores of the whole data set, chunk by chunk; a finished chunk is a stage and never scored again."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from baselines.method import Method
from baselines.records import FloatArray, Sample
from suite.plan import ComputeSpec
from suite.stages.data import Data, ids_key
from suite.stages.models import LoadedModel
from suite.stages.scoring import score
from suite.storage.cache import Entry, StageCache

log = logging.getLogger(__name__)


@dataclass
class Voter:
    """One method's scores; arrays [n], in the order of the scored rows."""

    method: Method  # as it scored: with what calibration found
    score: FloatArray
    components: dict[str, FloatArray]
    info: dict[str, Any]  # of the first chunk; its counts are those of all chunks
    entries: list[Entry] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """What scoring took when it was computed, calibration included."""
        return sum({e.key: e.cost.seconds for e in self.entries}.values())


def score_chunks(
    methods: Mapping[str, Method],
    model: LoadedModel,
    parts: Iterator[list[Sample]],
    n: int,
    *,
    seed: int,
    compute: ComputeSpec,
    cache: StageCache,
) -> dict[str, Voter]:
    """All methods' scores of ``n`` samples that come in ``parts``.

    Raises:
        KeelBenchError: the methods' own.
    """
    found: dict[str, list[Voter]] = {name: [] for name in methods}
    done, worked, seconds = 0, 0, 0.0
    for part in parts:
        data = Data(part, {}, ids_key([s.id for s in part]))
        fresh = False
        start = time.perf_counter()
        for name, method in methods.items():
            scored = score(method, model, data, seed=seed, compute=compute, cache=cache)
            fresh = fresh or not scored.entries[-1].cached
            scores = scored.scores
            found[name].append(
                Voter(scored.method, scores.score, dict(scores.components), dict(scores.info), list(scored.entries))
            )
        done += len(part)
        if fresh:
            worked += len(part)
            seconds += time.perf_counter() - start
        if len(part) < n:
            log.info("%s", _pace(done, n, worked, seconds))
    return {name: _joined(voters) for name, voters in found.items()}


def _pace(done: int, n: int, worked: int, seconds: float) -> str:
    told = f"{done:,} of {n:,} rows ({100 * done / n:.0f} %)"
    if not worked or not seconds:
        return f"{told}, from the cache"
    rate = worked / seconds
    left = (n - done) / rate
    return f"{told}, {rate:.1f} rows/s, {_duration(left)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _joined(voters: Sequence[Voter]) -> Voter:
    first = voters[0]
    if len(voters) == 1:
        return first
    counts = ("truncated", "short_responses", "zero_slices", "tokens")
    info = dict(first.info)
    for name in counts:
        if name in info:
            info[name] = sum(int(v.info.get(name, 0)) for v in voters)
    # A chunk's own correlation is not that of all rows; the page gives the latter.
    info.pop("spearman_with_response_length", None)
    return Voter(
        first.method,
        np.concatenate([v.score for v in voters]),
        {name: np.concatenate([v.components[name] for v in voters]) for name in first.components},
        info,
        [e for v in voters for e in v.entries],
    )
