"""Samples and prompts: read, cut to size, fingerprinted."""

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baselines.records import Sample
from baselines.samples import file_rows, iterate_samples
from eval.benchmarks import checksum, load_benchmark, prompts_from_rows, take
from eval.records import Prompt
from suite.mixture import mixed
from suite.plan import BenchmarkSource, DatasetSpec
from suite.stages.sample_table import SampleTable

IN_MEMORY = 50_000  # samples held as Python objects at most (some 70 MB); more go to a file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """A fine-tuning set and what it is known by."""

    samples: Sequence[Sample]  # a list, or a SampleTable where there are many
    skipped: dict[str, int]
    key: str  # hash of the samples' ids, in order

    def chosen(self, ids: Sequence[str]) -> list[Sample]:
        """The samples of these ids, in their order."""
        if isinstance(self.samples, SampleTable):
            return self.samples.take(self.samples.places(ids))
        lookup = {s.id: s for s in self.samples}
        return [lookup[i] for i in ids]


def ids_key(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:20]


def load_data(spec: DatasetSpec, data_root: Path | None) -> Data:
    """The fine-tuning set.

    Raises:
        DataError: no source, an unreadable one, a broken row.
    """
    file = spec.source.file(spec.name, data_root)
    path: object = file or f"hub data set of {spec.name}"
    if file is not None:
        rows, format = file_rows(file, spec.format)
    else:
        rows, format = spec.source.hub_rows(spec.name, data_root), spec.format
    skipped: Counter[str] = Counter()
    samples = _held(iterate_samples(rows, skipped, path=path, source=spec.name, format=format))
    if spec.safety_ratio is not None:
        samples = mixed(spec, samples, data_root)
    if spec.limit is not None:
        kept = set(sorted(s.id for s in samples)[: spec.limit])
        samples = [s for s in samples if s.id in kept]
    return Data(samples, dict(skipped), ids_key([s.id for s in samples]))


def _held(samples: Iterator[Sample]) -> Sequence[Sample]:
    """A list of few samples, a file of many."""
    first = list(itertools.islice(samples, IN_MEMORY))
    after = next(samples, None)
    return first if after is None else SampleTable.write(itertools.chain(first, [after], samples))


def load_prompts(benchmark: BenchmarkSource, limit: int | None, data_root: Path | None) -> list[Prompt]:
    """A benchmark's prompts, at most ``limit`` of each expectation.

    Raises:
        DataError: a missing or malformed file, or a count other than the published one.
    """
    spec = benchmark.spec
    path = benchmark.source.file(spec.name, data_root)
    if path is not None:
        return take(load_benchmark(spec, path), limit)
    # The hub's copies have columns and subsets of their own.
    columns: dict[str, Any] = dict(benchmark.hub_columns)
    spec = replace(spec, where=benchmark.hub_where, **columns)
    rows = benchmark.source.hub_rows(spec.name, data_root)
    return take(prompts_from_rows(spec, rows, f"hub data set of {spec.name}"), limit)


def benchmark_files(benchmarks: Sequence[BenchmarkSource], data_root: Path | None) -> dict[str, dict[str, str | None]]:
    """What each benchmark was read from: the file's SHA-256 and the known one's, both None where they do not apply.

    Files are re-encoded on their way (line ends, quoting), so another checksum is told and recorded, and not refused:
    the count is what a file must have.
    """
    found: dict[str, dict[str, str | None]] = {}
    for benchmark in benchmarks:
        name, known = benchmark.spec.name, benchmark.spec.sha256
        path = benchmark.source.file(name, data_root)
        digest = None if path is None else checksum(path)
        found[name] = {"sha256": digest, "known": known}
        if digest and known and digest != known:
            log.warning("%s: checksum %.12s… is not the known file's %.12s…; its count is right", path, digest, known)
    return found
