"""What a purification leaves: the purified file last, and everything beside it before."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from eval.errors import KeelBenchError
from suite.purify.cut import Decision
from suite.purify.files import Mask, plain_ending
from suite.purify.index import BAD, BEYOND_LIMIT, DUPLICATE, SCORED, Index
from suite.purify.nearest import Nearest
from suite.purify.scores import Voter

SLICE = 100_000  # rows of the side file made at a time


def beside(out: Path) -> dict[str, Path]:
    """The files that accompany ``out``: scores.parquet, scores.csv, report.html, purify.json."""
    name = out.name[:-3] if out.suffix.lower() == ".gz" else out.name
    stem = name.removesuffix(plain_ending(out)) if plain_ending(out) else name
    kinds = ("scores.parquet", "scores.csv", "report.html", "purify.json")
    return {kind: out.with_name(f"{stem}.{kind}") for kind in kinds}


def check_place(out: Path, source: Path | None, overwrite: bool) -> None:
    """
    Raises:
        KeelBenchError: ``out`` is the input, its folder does not exist, or something of that name does.
    """
    if source is not None and out.resolve() == source.resolve():
        raise KeelBenchError(f"out={out} is the input itself, which is never changed; name another file")
    if not out.absolute().parent.is_dir():
        raise KeelBenchError(f"out={out}: the folder {out.absolute().parent} does not exist")
    there = [p for p in (out, *beside(out).values()) if p.exists()]
    if source is not None and any(p.resolve() == source.resolve() for p in beside(out).values()):
        raise KeelBenchError(f"out={out}: a file that goes beside it would replace the input; name another file")
    if there and not overwrite:
        raise KeelBenchError(
            f"{', '.join(p.name for p in there)} in {out.absolute().parent} exist already; overwrite=true replaces them"
        )


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside ``out``; what stands in it at the end is moved to where ``out`` is, ``out`` itself last. After an
    exception nothing of it is left."""
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    try:
        yield work
        for file in sorted(work.iterdir(), key=lambda f: f.name == out.name):
            os.replace(file, out.absolute().parent / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def kept_rows(index: Index, dropped: Mask, on_bad_row: str) -> Mask:
    """Which of all rows are written, [rows]."""
    keep = np.zeros(len(index.state), dtype=bool)
    keep[index.scored] = ~dropped
    if on_bad_row == "keep":
        keep |= index.state >= BAD
    return keep


def write_scores(
    folder: Mapping[str, Path],
    index: Index,
    keep: Mask,
    decision: Decision,
    voters: Mapping[str, Voter],
    nearest: Mapping[str, Nearest],
) -> None:
    """``scores.parquet`` and ``scores.csv``: one row for every row of the input, in its order.

    Columns: line; id; kept; why (empty where a row was kept for its score); score and rank that the cut went through;
    for every method its score, rank (``<method>.rank``) and components (``<method>.<component>``); characters of
    prompt and response; category of the nearest anchor and likeness to it. Null where a row was not scored or not
    looked up.
    """
    with (
        pq.ParquetWriter(folder["scores.parquet"], _schema(voters)) as parquet,
        pa_csv.CSVWriter(folder["scores.csv"], _schema(voters)) as text,
    ):
        position = np.cumsum(index.state == SCORED) - 1  # of a row among the scored
        for start in range(0, len(index.state), SLICE):
            rows = np.arange(start, min(start + SLICE, len(index.state)))
            table = _slice(rows, position[rows], index, keep, decision, voters, nearest)
            parquet.write_table(table)
            text.write_table(table)


def _schema(voters: Mapping[str, Voter]) -> pa.Schema:
    columns = [("line", pa.int64()), ("id", pa.string()), ("kept", pa.bool_()), ("why", pa.string())]
    columns += [("score", pa.float64()), ("rank", pa.int64())]
    for name, voter in voters.items():
        columns += [(name, pa.float64()), (f"{name}.rank", pa.int64())]
        columns += [(f"{name}.{component}", pa.float64()) for component in voter.components]
    columns += [("prompt_characters", pa.int64()), ("response_characters", pa.int64())]
    columns += [("nearest_anchor", pa.string()), ("likeness", pa.float64())]
    return pa.schema(columns)


def _slice(
    rows: np.ndarray,
    position: np.ndarray,
    index: Index,
    keep: Mask,
    decision: Decision,
    voters: Mapping[str, Voter],
    nearest: Mapping[str, Nearest],
) -> pa.Table:
    scored = index.state[rows] == SCORED
    bad = index.state[rows] >= BAD
    at = np.where(scored, position, 0)

    def values(column: np.ndarray) -> pa.Array:
        return pa.array(column[at], mask=~scored)

    ids = [i.decode() or None for i in index.ids[rows]]
    found = [nearest.get(i) if i else None for i in ids]
    columns: list[Any] = [
        pa.array(index.lines[rows]),
        pa.array(ids, pa.string()),
        pa.array(keep[rows]),
        pa.array([why(int(r), int(p), index, decision) for r, p in zip(rows, position, strict=True)], pa.string()),
        values(decision.score),
        values(decision.rank),
    ]
    for name, voter in voters.items():
        columns += [values(voter.score), values(decision.ranks[name])]
        columns += [values(component.astype(np.float64)) for component in voter.components.values()]
    columns += [pa.array(c[rows], mask=bad) for c in (index.prompt_characters, index.response_characters)]
    columns.append(pa.array([f.anchor.category if f else None for f in found], pa.string()))
    columns.append(pa.array([f.likeness if f else None for f in found], pa.float64()))
    return pa.table(columns, schema=_schema(voters))


def why(row: int, position: int, index: Index, decision: Decision) -> str:
    """Why a row is not simply kept: "" where it is."""
    state = int(index.state[row])
    if state >= BAD:
        return f"not scored: {index.kind(row)}"
    if state == DUPLICATE:
        return "not scored: equal to an earlier row"
    if state == BEYOND_LIMIT:
        return "not scored: outside dataset.limit"
    if not decision.dropped[position]:
        return ""
    told = f"rank {decision.rank[position]} of {len(decision.rank)}, score {decision.score[position]:.6g}"
    if len(decision.ranks) > 1:
        told += f" ({', '.join(f'{name} {ranks[position]}' for name, ranks in decision.ranks.items())})"
    return told


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1, default=str))


def moved(work: Path, files: Sequence[Path]) -> dict[str, Path]:
    """The same names inside ``work``."""
    return {f.name: work / f.name for f in files}
