"""General data with a chosen share of safety data (the VCL paper's Table 2)."""

from collections.abc import Sequence
from pathlib import Path

from baselines.records import Sample
from baselines.samples import SAFETY, load_samples
from eval.errors import CapacityError, KeelBenchError
from suite.plan import DatasetSpec


def mixed(spec: DatasetSpec, samples: Sequence[Sample], data_root: Path | None) -> list[Sample]:
    """``spec.size`` samples, ``spec.safety_ratio`` of them safety data, in the order of their ids.

    Of each kind the first by id, which is a content hash: the same subset for every run, and a smaller ratio's safety
    rows are among a larger one's.

    Raises:
        KeelBenchError: a ratio outside [0, 1], no size, or a limit beside them.
        CapacityError: not enough rows of a kind.
        DataError: the safety data's file cannot be read.
    """
    ratio, size = spec.safety_ratio, spec.size
    if ratio is None or not 0 <= ratio <= 1:
        raise KeelBenchError(f"dataset.safety_ratio={ratio}: from 0 to 1")
    if size is None or size < 1:
        raise KeelBenchError(f"dataset.size={size}: a mixture needs its number of rows")
    if spec.limit is not None:
        raise KeelBenchError("dataset.limit would change a mixture's ratio: use dataset.size")
    if spec.safety_source is None:
        safety = [s for s in samples if s.category == SAFETY]
        general = [s for s in samples if s.category != SAFETY]
    else:
        path = spec.safety_source.file(f"{spec.name} (safety data)", data_root)
        if path is None:
            raise KeelBenchError("dataset.safety_source: a file, embedded, named by path or under paths.data")
        own = {s.id for s in samples}
        safety = [s for s in load_samples(path, source=spec.name).samples if s.id not in own]
        general = list(samples)
    wanted = round(ratio * size)
    chosen = []
    for kind, rows, count in (("safety", safety, wanted), ("general", general, size - wanted)):
        if count > len(rows):
            raise CapacityError(
                f"dataset.safety_ratio={ratio} of {size} rows needs {count} {kind} rows, {spec.name} has {len(rows)}: "
                "lower dataset.size"
            )
        chosen += sorted(rows, key=lambda s: s.id)[:count]
    return sorted(chosen, key=lambda s: s.id)
