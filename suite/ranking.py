"""A run's scores as its reader sees them: rows in rank order, with the samples' texts, written part by part."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from baselines.records import Sample, Scores
from suite.stages.data import Data
from suite.stages.sample_table import SampleTable

PART = 65_536  # rows in memory
TRACKED = 100_000  # rows of a ranking that W&B gets; of a longer one its two ends
ENDS = 5_000  # rows of each


def score_rows(
    scores: Scores, data: Data, selected: Sequence[str], places: Sequence[int] | np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Each sample's score, components and rank, in rank order.

    Args:
        places: of the ranking, 0 the most safety-degrading sample; None = all.
    """
    return list(_rows(scores, data, set(selected), scores.ranking() if places is None else scores.ranking()[places]))


def write_ranking(path: Path, scores: Scores, data: Data, selected: Sequence[str]) -> None:
    """``score_rows`` of all samples as Parquet."""
    ranking, chosen = scores.ranking(), set(selected)
    starts = range(0, len(ranking), PART)
    _write(path, (_rows(scores, data, chosen, ranking[start : start + PART], first=start) for start in starts))


def write_selected(path: Path, data: Data, selected: Sequence[str]) -> None:
    """The selected samples as Parquet, in the selection's order."""
    starts = range(0, len(selected), PART)
    _write(path, (map(sample_row, data.chosen(selected[start : start + PART])) for start in starts))


def _write(path: Path, parts: Iterable[Iterable[dict[str, Any]]]) -> None:
    """Rows as Parquet, a row group a part; one part is in memory at a time."""
    writer = None
    try:
        for rows in parts:
            table = pa.Table.from_pylist(list(rows), schema=None if writer is None else writer.schema)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def tracked_places(n: int) -> np.ndarray:
    """Places of a ranking of n that are tracked: all, or both ends."""
    if n <= TRACKED:
        return np.arange(n)
    return np.concatenate([np.arange(ENDS), np.arange(n - ENDS, n)])


def sample_row(sample: Sample) -> dict[str, Any]:
    return {
        "id": sample.id,
        "category": sample.category,
        "prompt": sample.prompt,
        "response": sample.response,
        "response_characters": len(sample.response),
    }


def _rows(
    scores: Scores, data: Data, chosen: set[str], indices: np.ndarray, first: int | None = None
) -> Iterator[dict[str, Any]]:
    """
    Args:
        indices: of the samples, [rows].
        first: rank of the first less one, where the rows follow each other; None = not known.
    """
    ranks = scores.ranks()[indices] if first is None else np.arange(first + 1, first + 1 + len(indices))
    samples = data.samples
    texts = samples.take(indices) if isinstance(samples, SampleTable) else [samples[i] for i in indices]
    for rank, i, sample in zip(ranks, indices, texts, strict=True):
        yield {
            "rank": int(rank),
            "id": scores.ids[i],
            "score": float(scores.score[i]),
            **{name: float(values[i]) for name, values in scores.components.items()},
            "selected": scores.ids[i] in chosen,
            **{k: v for k, v in sample_row(sample).items() if k != "id"},
        }
