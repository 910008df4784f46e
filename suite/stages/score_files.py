"""A method's scores as files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from baselines.records import Scores


def write_scores(folder: Path, scores: Scores) -> None:
    """``scores.parquet`` (id, score, components, rank) and ``info.json``."""
    columns = {"id": list(scores.ids), "score": scores.score, **scores.components, "rank": scores.ranks()}
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    (folder / "info.json").write_text(json.dumps(scores.info, indent=1))


def read_scores(folder: Path) -> Scores:
    table = pq.read_table(folder / "scores.parquet")
    columns = {name: table[name].to_numpy() for name in table.column_names if name not in ("id", "rank")}
    info = json.loads((folder / "info.json").read_text())
    return Scores(tuple(table["id"].to_pylist()), columns.pop("score"), columns, info)
