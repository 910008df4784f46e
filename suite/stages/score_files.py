"""A method's scores as files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from baselines.records import Scores
from suite.tables import read_table


def write_scores(folder: Path, scores: Scores) -> None:
    """``scores.parquet`` (id, score, components, rank) and ``info.json``."""
    columns = {"id": list(scores.ids), "score": scores.score, **scores.components, "rank": scores.ranks()}
    pq.write_table(pa.table(columns), folder / "scores.parquet")
    (folder / "info.json").write_text(json.dumps(scores.info, indent=1))


def read_scores(folder: Path) -> Scores:
    rows = read_table(folder / "scores.parquet")
    names = [name for name in rows[0] if name not in ("id", "score", "rank")]
    return Scores(
        tuple(row["id"] for row in rows),
        np.array([row["score"] for row in rows]),
        {name: np.array([row[name] for row in rows]) for name in names},
        json.loads((folder / "info.json").read_text()),
    )
