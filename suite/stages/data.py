"""Samples and prompts: read, cut to size, fingerprinted."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from baselines.records import Sample
from baselines.samples import load_samples, samples_from_rows
from eval.benchmarks import load_benchmark, prompts_from_rows, take
from eval.records import Prompt
from suite.mixture import mixed
from suite.plan import BenchmarkSource, DatasetSpec


@dataclass(frozen=True)
class Data:
    """A fine-tuning set and what it is known by."""

    samples: list[Sample]
    skipped: dict[str, int]
    key: str  # hash of the samples' ids, in order

    def lookup(self) -> dict[str, Sample]:
        return {s.id: s for s in self.samples}


def ids_key(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:20]


def load_data(spec: DatasetSpec, data_root: Path | None) -> Data:
    """The fine-tuning set.

    Raises:
        DataError: no source, an unreadable one, a broken row.
    """
    path = spec.source.file(spec.name, data_root)
    if path is not None:
        loaded = load_samples(path, source=spec.name, format=spec.format)
    else:
        rows = spec.source.hub_rows(spec.name, data_root)
        loaded = samples_from_rows(rows, path=f"hub data set of {spec.name}", source=spec.name, format=spec.format)
    samples = loaded.samples
    if spec.safety_ratio is not None:
        samples = mixed(spec, samples, data_root)
    if spec.limit is not None:
        kept = set(sorted(s.id for s in samples)[: spec.limit])
        samples = [s for s in samples if s.id in kept]
    return Data(samples, loaded.skipped, ids_key([s.id for s in samples]))


def load_prompts(benchmark: BenchmarkSource, limit: int | None, data_root: Path | None) -> list[Prompt]:
    """A benchmark's prompts, at most ``limit`` of each expectation.

    Raises:
        DataError: a missing or malformed file, or a count other than the published one.
    """
    spec = benchmark.spec
    path = benchmark.source.file(spec.name, data_root)
    if path is not None:
        return take(load_benchmark(spec, path), limit)
    # The hub's copy of a benchmark holds the benchmark only: what `where` picks out of the published file.
    columns = benchmark.hub_columns
    spec = replace(
        spec,
        where={},
        prompt_column=columns.get("prompt_column", spec.prompt_column),
        category_column=columns.get("category_column", spec.category_column),
    )
    rows = benchmark.source.hub_rows(spec.name, data_root)
    return take(prompts_from_rows(spec, rows, f"hub data set of {spec.name}"), limit)
