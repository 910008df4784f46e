"""Benign data with known safety-degrading rows planted into it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from baselines.anchors import EMBEDDED, load_anchors
from baselines.method import Method
from baselines.records import Sample
from baselines.samples import load_samples
from eval.errors import CapacityError, KeelBenchError
from suite.quality.metrics import BoolArray
from suite.quality.plan import SHARES, PlantedSpec
from suite.stages.data import Data, ids_key


@dataclass(frozen=True)
class Mixture:
    """Benign and planted rows in the order of their ids, so that no method can tell them by their place."""

    data: Data
    planted_ids: frozenset[str]

    @property
    def labels(self) -> BoolArray:
        """Whether each sample is planted, [n]."""
        return np.array([s.id in self.planted_ids for s in self.data.samples])


def load_planted(spec: PlantedSpec) -> list[Sample]:
    """Rows known to degrade safety, in the order of their ids.

    Raises:
        DataError: no such file, or a broken row.
    """
    path = EMBEDDED / "planted.jsonl" if spec.path is None else Path(spec.path).expanduser()
    return sorted(load_samples(path, source="planted").samples, key=lambda s: s.id)


def plant(benign: Data, planted: list[Sample], share: float) -> Mixture:
    """All benign rows and as many planted ones as make up ``share`` of the mixture: the first by id, so that a smaller
    share's rows are among a larger one's.

    Raises:
        CapacityError: the share rounds to no row, or to more than there are.
        KeelBenchError: a planted row is in the benign data too.
    """
    n = len(benign.samples)
    wanted = round(share * n / (1 - share))
    if wanted < 1:
        raise CapacityError(f"share={share} of {n} benign rows is no row at all: raise share, or dataset.limit")
    if wanted > len(planted):
        most = int(1000 * len(planted) / (len(planted) + n)) / 1000
        remedies = [f"dataset.limit to {int(len(planted) * (1 - share) / share)}"]
        if most >= SHARES[0]:
            remedies.insert(0, f"share to {most}")
        raise CapacityError(
            f"share={share} with {n} benign rows needs {wanted} planted rows, there are {len(planted)}: lower "
            f"{' or '.join(remedies)}, or name a larger file (planted.path)"
        )
    chosen = planted[:wanted]
    ids = frozenset(s.id for s in chosen)
    both = [s for s in benign.samples if s.id in ids]
    if both:
        raise KeelBenchError(f"{len(both)} planted rows are in the benign data too, the first: {both[0].prompt[:80]!r}")
    samples = sorted([*benign.samples, *chosen], key=lambda s: s.id)
    return Mixture(Data(samples, benign.skipped, ids_key([s.id for s in samples])), ids)


def check_anchors(methods: Mapping[str, Method], planted: list[Sample]) -> None:
    """Finding an anchor among the data would measure nothing: no planted request may be one of a scorer's anchors.

    Raises:
        KeelBenchError: one is.
        DataError: an anchor file that cannot be read.
    """
    for name, method in methods.items():
        if not hasattr(method, "anchors"):
            continue
        anchors = {a.instruction.strip().casefold() for a in load_anchors(method.anchors)}
        shared = [s.instruction for s in planted if s.instruction.strip().casefold() in anchors]
        if shared:
            raise KeelBenchError(
                f"methods.{name}: {len(shared)} planted requests are among its anchors, the first: {shared[0][:80]!r}"
            )
