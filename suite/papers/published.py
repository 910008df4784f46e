"""Published figures: typed, checked, each with its paper, table and unit."""

import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from eval.errors import DataError, UnknownNameError

Better = Literal["higher", "lower", "neither"]
ROWS = (
    "runs",
    "selections",
    "categories",
    "diversity",
    "flowlens",
    "drift",
)  # what our figures are read from: see suite.papers.compare

# Unit -> the values it allows; None is open.
UNITS: Mapping[str, tuple[float | None, float | None]] = {
    "per cent": (0, 100),
    "share": (0, 1),
    "correlation": (-1, 1),
    "mean of 1 to 5": (1, 5),
    "bits": (0, None),
    "hours": (0, None),
    "GPUs": (1, None),
    "layer": (0, None),
    "dimension": (0, None),
    "characters": (0, None),
    "spreads": (0, None),  # root mean square distances from the mean
}


@dataclass(frozen=True)
class Metric:
    """Where our figure stands in a row: ``column``, perhaps as its complement, perhaps divided."""

    column: str  # may name keys of the cell: asr/{benchmark}
    complement: bool = False
    divisor: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Metric":
        """``column``, ``1 - column`` or ``column / number``."""
        complement = text.startswith("1 - ")
        column, _, divisor = text.removeprefix("1 - ").partition(" / ")
        return cls(column, complement, float(divisor) if divisor else 1.0)

    def value(self, found: float) -> float:
        return (1 - found if self.complement else found) / self.divisor


@dataclass(frozen=True)
class Ours:
    """How a run is recognised as a cell's, and which of its figures is the cell's."""

    rows: str  # one of ROWS
    metrics: Mapping[str, Metric]  # by the last key's value
    where: Mapping[str, Mapping[str, Mapping[str, Any]]]  # key -> its value -> the fields a row must have
    fields: Mapping[str, str]  # key -> the row's field of that value, where ``where`` says nothing and names differ
    stand_in: Mapping[str, tuple[Metric, ...]]  # in cells the paper has not, for want of the metric: the first of these
    best_by: str | None  # of several runs that fit, only the one with the largest value here counts


@dataclass(frozen=True)
class PublishedTable:
    """A table or figure of a paper. A cell of None is one whose figure we do not have; ``missing`` says why."""

    name: str  # as the experiment is called
    paper: str  # "Li et al., EMNLP 2025, arXiv 2507.18631"
    place: str  # "Table 1"
    quantity: str
    keys: tuple[str, ...]  # what a cell is addressed by
    columns: tuple[str, ...]  # values of the last key
    cells: Mapping[tuple[str, ...], float | None]
    units: Mapping[str, str]  # by the last key's value
    better: Mapping[str, Better]
    bounds: Mapping[str, str]  # "above": the paper says only that the figure lies above this
    missing: str
    protocol: Mapping[str, Any]  # fields of a run that the figures rest on
    doubts: Mapping[tuple[str, ...], str]  # cells printed with a figure that cannot be right
    ours: Ours

    def row_keys(self) -> list[tuple[str, ...]]:
        """The cells' addresses without their last key, in the paper's order."""
        return list(dict.fromkeys(cell[:-1] for cell in self.cells))


def tables() -> dict[str, PublishedTable]:
    """All published tables, by name.

    Raises:
        DataError: a file under ``data`` that is not as it should be.
    """
    return dict(_tables())


def table(name: str) -> PublishedTable:
    """
    Raises:
        UnknownNameError: no such table.
    """
    known = _tables()
    if name not in known:
        raise UnknownNameError("published table", name, known)
    return known[name]


@cache
def _tables() -> dict[str, PublishedTable]:
    found: dict[str, PublishedTable] = {}
    folder = Path(str(files("suite.papers") / "data"))
    for path in sorted(folder.glob("*.yaml")):
        for read in read_tables(path):
            if read.name in found:
                raise DataError(path, f"{read.name} stands in two files")
            found[read.name] = read
    return found


def read_tables(path: Path) -> Iterator[PublishedTable]:
    """The tables of one paper's file.

    Raises:
        DataError: a missing or unknown entry, a row of another length than the columns, a cell twice, a figure that its
            unit does not allow, a doubt or a ``where`` that belongs to no cell.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    about = content["paper"]
    paper = ", ".join(part for part in (about["authors"], about["venue"], f"arXiv {about['arxiv']}") if part)
    for name, body in content["tables"].items():
        yield _table(path, name, paper, content.get("protocol", {}), body)


_ENTRIES = {"place", "quantity", "unit", "better", "bound", "missing", "protocol", "keys", "columns", "cells", "doubts",
            "ours"}  # fmt: skip


def _table(path: Path, name: str, paper: str, protocol: Mapping[str, Any], body: Mapping[str, Any]) -> PublishedTable:
    def wrong(message: str) -> DataError:
        return DataError(path, f"{name}: {message}")

    if unknown := set(body) - _ENTRIES:
        raise wrong(f"nothing reads {', '.join(sorted(unknown))}")
    if absent := {"place", "quantity", "unit", "better", "keys", "columns", "cells", "ours"} - set(body):
        raise wrong(f"missing {', '.join(sorted(absent))}")
    keys, columns = tuple(body["keys"]), tuple(body["columns"])
    units, better = _by_column(body["unit"], columns), _by_column(body["better"], columns)
    if set(units) != set(columns) or (bad := set(units.values()) - set(UNITS)):
        raise wrong(f"units {units} do not cover {columns}, or are not among {', '.join(UNITS)}")
    if set(better) != set(columns) or (bad := set(better.values()) - set(get_args(Better))):
        raise wrong(f"better={better}: one of {get_args(Better)} a column; {bad if better else ''}")
    cells: dict[tuple[str, ...], float | None] = {}
    for row in body["cells"]:
        where, values = tuple(str(part) for part in row[: len(keys) - 1]), row[len(keys) - 1 :]
        if len(values) != len(columns):
            raise wrong(f"row {where} has {len(values)} figures for {len(columns)} columns")
        for column, value in zip(columns, values, strict=True):
            if (*where, column) in cells:
                raise wrong(f"cell {(*where, column)} stands twice")
            low, high = UNITS[units[column]]
            if value is not None and not ((low is None or value >= low) and (high is None or value <= high)):
                raise wrong(f"cell {(*where, column)} is {value}, which no {units[column]} can be")
            cells[(*where, column)] = None if value is None else float(value)
    if None in cells.values() and not body.get("missing"):
        raise wrong("a cell is null, and nothing says why (missing)")
    doubts = {tuple(d["cell"]): str(d["why"]) for d in body.get("doubts", [])}
    if strange := set(doubts) - set(cells):
        raise wrong(f"doubts about {strange}, which is no cell")
    return PublishedTable(
        name=name,
        paper=paper,
        place=body["place"],
        quantity=body["quantity"],
        keys=keys,
        columns=columns,
        cells=cells,
        units=units,
        better=better,
        bounds=dict(body.get("bound", {})),
        missing=body.get("missing", ""),
        # An empty protocol of a table's own says that it rests on no fine-tuned model's answers.
        protocol={} if body.get("protocol") == {} else {**protocol, **body.get("protocol", {})},
        doubts=doubts,
        ours=_ours(body["ours"], keys, columns, cells, wrong),
    )


def _ours(body: Mapping[str, Any], keys: tuple[str, ...], columns: tuple[str, ...], cells: Any, wrong: Any) -> Ours:
    if unknown := set(body) - {"rows", "metric", "stand_in", "where", "fields", "best_by"}:
        raise wrong(f"ours: nothing reads {', '.join(sorted(unknown))}")
    metrics = {column: Metric.parse(text) for column, text in _by_column(body["metric"], columns).items()}
    if set(metrics) != set(columns):
        raise wrong(f"ours.metric covers {sorted(metrics)}, the columns are {sorted(columns)}")
    listed = {c: [v] if isinstance(v, str) else v for c, v in body.get("stand_in", {}).items()}
    stand_in = {column: tuple(Metric.parse(text) for text in texts) for column, texts in listed.items()}
    if strange := set(stand_in) - set(columns):
        raise wrong(f"ours.stand_in names {strange}, the columns are {sorted(columns)}")
    named = {field for m in metrics.values() for _, field, _, _ in string.Formatter().parse(m.column) if field}
    if strange := named - set(keys):
        raise wrong(f"ours.metric names {strange}, the keys are {keys}")
    for key, values in body.get("where", {}).items():
        if key not in keys:
            raise wrong(f"ours.where: {key} is not among the keys {keys}")
        if strange := set(values) - {cell[keys.index(key)] for cell in cells}:
            raise wrong(f"ours.where.{key}: no cell has {sorted(strange)}")
    rows = body.get("rows", "runs")
    if rows not in ROWS:
        raise wrong(f"ours.rows={rows!r}: one of {ROWS}")
    return Ours(rows, metrics, body.get("where", {}), body.get("fields", {}), stand_in, body.get("best_by"))


def _by_column(value: Any, columns: tuple[str, ...]) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else dict.fromkeys(columns, value)
