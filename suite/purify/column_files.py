"""Parquet and data sets of the hub: rows keep their columns, types and metadata."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import DataError
from suite.purify.files import Mask, Row, plain_ending
from suite.purify.text_files import writing

BATCH = 1024  # rows of a Parquet batch


class Parquet:
    """Parquet: the schema, its metadata and the compression are kept."""

    endings: tuple[str, ...] = (".parquet",)

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(BATCH)
        except (pa.ArrowException, OSError) as error:
            raise DataError(self.path, f"not valid Parquet: {error}") from error

    def rows(self) -> Iterator[Row]:
        number = 0
        for batch in self._batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(number, value)

    def write(self, out: Path, keep: Mask) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            schema, groups = file.schema_arrow, file.metadata
            codec = (
                groups.row_group(0).column(0).compression if groups.num_row_groups and groups.num_columns else "NONE"
            )
        place = 0
        with pq.ParquetWriter(out, schema, compression=codec.lower().replace("uncompressed", "none")) as target:
            for batch in self._batches():
                target.write_batch(batch.filter(pa.array(keep[place : place + len(batch)])))
                place += len(batch)


class HubTable:
    """A ``datasets.Dataset``, which is mapped from disk; written as JSONL or Parquet, as the output's name asks."""

    endings: tuple[str, ...] = (".jsonl", ".parquet")

    def __init__(self, dataset: Any, name: str):
        self.dataset, self.name = dataset, name

    def rows(self) -> Iterator[Row]:
        for number, value in enumerate(self.dataset, start=1):
            yield Row(number, value)

    def write(self, out: Path, keep: Mask) -> None:
        kept = self.dataset.select(np.flatnonzero(keep))
        if plain_ending(out) == ".parquet":
            kept.to_parquet(str(out))
            return
        with writing(out) as target:
            for value in kept:
                target.write(json.dumps(value, ensure_ascii=False, default=str).encode() + b"\n")
