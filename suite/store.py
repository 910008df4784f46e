"""The results of many sweeps as one table: SQL conditions on it (DuckDB), Parquet, rows fetched from W&B."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval.errors import KeelBenchError

Row = dict[str, Any]

WANDB = "wandb:"


def as_table(rows: Sequence[Row]) -> pa.Table:
    """Rows of unequal keys as one table; what a row lacks is null. A column whose values are of several kinds (a number
    here, text there) becomes text."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            arrays.append(pa.array(values))
        except pa.ArrowException:
            arrays.append(pa.array([None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]))
    return pa.table(arrays, names=columns)


def where(rows: Sequence[Row], condition: str) -> list[Row]:
    """The rows for which an SQL condition holds, in their order.

    ``method='larf' and model='smollm2'``; names with a slash stand in double quotes: ``"asr/harmbench" > 0.2``.

    Raises:
        KeelBenchError: a condition that DuckDB refuses, or DuckDB is not installed.
    """
    if not rows:
        return []
    try:
        import duckdb
    except ImportError as error:
        raise KeelBenchError("--where needs DuckDB: pip install duckdb") from error
    numbered = as_table(rows).append_column("_place", pa.array(range(len(rows))))
    # A condition reads this table and nothing else: no files, no network.
    connection = duckdb.connect(config={"enable_external_access": "false"})
    try:
        connection.register("results", numbered)
        # On a line of its own, so that a comment at a condition's end does not swallow the bracket.
        found = connection.execute(f"SELECT _place FROM results WHERE (\n{condition}\n) ORDER BY _place").fetchall()
    except duckdb.Error as error:
        known = ", ".join(c for c in numbered.column_names if "/" not in c and c != "_place")
        rates = ", ".join(f'"{c}"' for c in numbered.column_names if f"{c}/low" in numbered.column_names)
        message = str(error).split("\n")[0]
        raise KeelBenchError(f"--where: {message}\ncolumns: {known}\nrates: {rates}") from error
    finally:
        connection.close()
    return [rows[place] for (place,) in found]


def from_wandb(project: str, api: Any = None) -> list[Row]:
    """The ``results`` row of every finished run of ``entity/project``, oldest first.

    Args:
        api: a ``wandb.Api``; None makes one (needs a login).

    Raises:
        KeelBenchError: no such project, no access, or no run of KeelBench in it.
    """
    import wandb

    rows: list[Row] = []
    skipped: list[str] = []
    try:
        api = api or wandb.Api()
        for run in api.runs(project, filters={"state": "finished"}, order="+created_at"):
            row = _results_row(run)
            if row is None:
                skipped.append(str(run.name))
            else:
                rows.append(row)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise KeelBenchError(f"W&B, {project}: {error}") from error
    if not rows:
        also = f" ({len(skipped)} runs without the table `results`)" if skipped else ""
        raise KeelBenchError(f"W&B, {project}: no finished run of KeelBench{also}")
    return rows


def _results_row(run: Any) -> Row | None:
    """The one row of a run's table ``results``; None where it has none (a sweep's summary run, another program's)."""
    found = run.summary.get("results")
    path = found.get("path") if hasattr(found, "get") else None
    if path is None:
        return None
    with tempfile.TemporaryDirectory() as folder, run.file(path).download(root=folder, replace=True) as handle:
        table = json.load(handle)
    if len(table["data"]) != 1:
        return None
    return dict(zip(table["columns"], table["data"][0], strict=True))


def write_parquet(rows: Sequence[Row], path: Path) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(as_table(rows), path)
