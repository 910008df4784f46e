"""Parquet in and out: one table a file, records as rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_table(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    """Rows of equal keys; an empty table needs its schema."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)


def read_table(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows
