"""What a paper published beside what a sweep of its experiment found, in the shape of the paper's table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suite.papers.compare import compare, sweep_rows
from suite.papers.published import PublishedTable, tables
from suite.report.find import experiments_of
from suite.report.load import Run

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A cell of one line, as text; "" where there is none."""

    text: str
    interval: str = ""
    mark: str = ""  # of the note that belongs to it
    runs: tuple[int, ...] = ()  # numbers of the runs it rests on, from 1 in the report's order


@dataclass(frozen=True)
class Line:
    """A line of the table: what was published, ours, or the difference."""

    address: tuple[str, ...]  # values of all keys but the last, which the columns have
    kind: str  # published, ours, difference
    figures: tuple[Figure, ...] = ()
    reason: str = ""  # why there are no figures of ours at all


@dataclass(frozen=True)
class Section:
    """A published table with ours beside it."""

    table: PublishedTable
    rows: list[Row]  # one a cell: suite.papers.compare
    lines: list[Line]
    notes: list[tuple[str, str]] = field(default_factory=list)  # (mark, text)

    @property
    def head(self) -> str:
        return f"{self.table.paper}, {self.table.place}: {self.table.quantity}"

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Name and unit of each."""
        return [(column, self.table.units[column]) for column in self.table.columns]

    def grouped(self) -> list[tuple[tuple[str, ...], list[Line]]]:
        """The lines of each address."""
        groups: dict[tuple[str, ...], list[Line]] = {}
        for line in self.lines:
            groups.setdefault(line.address, []).append(line)
        return list(groups.items())


def sections(runs: Sequence[Run], *sweeps: Path) -> list[Section]:
    """One a published table that the jobs' experiments are named after; none for other sweeps."""
    jobs = [status for sweep in sweeps for status in sorted(sweep.rglob("status.json"))]
    asked = dict.fromkeys(name for status in jobs for name in experiments_of(status))
    run_ids = [str(run.row.get("run_id")) for run in runs]
    return [section(tables()[name], sweeps, run_ids) for name in asked if name in tables()]


def section(table: PublishedTable, sweeps: Sequence[Path], run_ids: Sequence[str] = ()) -> Section:
    """``table`` with the figures of the sweeps in these folders."""
    ours = sweep_rows(table, *sweeps)
    rows = compare(table, ours)
    numbers: dict[str, tuple[int, ...]] = {}
    for number, run_id in enumerate(run_ids, start=1):
        numbers[run_id] = (*numbers.get(run_id, ()), number)
    marks: dict[str, str] = {}
    by_address: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        address = tuple(str(row[k]) for k in table.keys[:-1])
        by_address.setdefault(address, {})[str(row[table.keys[-1]])] = row
    lines = [line for a, cells in by_address.items() for line in _lines(table, a, cells, ours, numbers, marks)]
    return Section(table, rows, lines, [(mark, note) for note, mark in marks.items()])


def _lines(
    table: PublishedTable,
    address: tuple[str, ...],
    cells: dict[str, Row],
    ours: Sequence[Row],
    numbers: dict[str, tuple[int, ...]],
    marks: dict[str, str],
) -> list[Line]:
    def figures(text: Callable[[Row], str], *, ours: bool = False) -> tuple[Figure, ...]:
        made = []
        for column in table.columns:
            row = cells.get(column)
            if row is None:
                made.append(Figure(""))
                continue
            if not ours:
                made.append(Figure(text(row)))
                continue
            mark = marks.setdefault(row["note"], str(len(marks) + 1)) if row["note"] else ""
            runs = tuple(n for run_id in row["runs"] for n in numbers.get(run_id, ()))
            made.append(Figure(text(row), _interval(row), mark, runs))
        return tuple(made)

    none_of_ours = all(row["ours"] is None for row in cells.values())
    reason = _shared_reason(list(cells.values()), ours) if none_of_ours else ""
    lines = []
    if any(row["published"] is not None for row in cells.values()) or none_of_ours:
        lines.append(Line(address, "published", figures(lambda row: shown(row["published"], row["unit"]))))
    if reason:
        return [*lines, Line(address, "ours", reason=reason)]
    lines.append(Line(address, "ours", figures(lambda row: shown(row["ours"], row["unit"]), ours=True)))
    if any(row["difference"] is not None for row in cells.values()):
        lines.append(
            Line(address, "difference", figures(lambda row: shown(row["difference"], row["unit"], signed=True)))
        )
    return lines


def _interval(row: Row) -> str:
    return "" if row["low"] is None else f"[{shown(row['low'], row['unit'])}, {shown(row['high'], row['unit'])}]"


_NO_RUN = "no run with "


def _shared_reason(cells: Sequence[Row], ours: Sequence[Row]) -> str:
    """One reason for a whole address without figures of ours; "" where its cells have to say it one by one.

    Cells that want runs of different methods, say, share the conditions that all of them have: if no run meets even
    those, they are the reason.
    """
    notes = {row["note"] for row in cells}
    if len(notes) == 1:
        return str(next(iter(notes)))
    wanted = [next((p for p in n.split("; ") if p.startswith(_NO_RUN)), "").removeprefix(_NO_RUN) for n in notes]
    common = set.intersection(*(set(w.split(", ")) for w in wanted)) - {""}
    conditions = [c for c in wanted[0].split(", ") if c in common]
    if not conditions or any(all(f"{k}={row.get(k)}" in common for k in _keys(conditions)) for row in ours):
        return ""
    return _NO_RUN + ", ".join(conditions)


def _keys(conditions: Sequence[str]) -> list[str]:
    return [condition.split("=", 1)[0] for condition in conditions]


def shown(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A figure with the digits its unit is printed with; "" where there is none."""
    if value is None:
        return ""
    sign = "+" if signed else ""
    if unit in ("layer", "GPUs"):
        return f"{value:{sign}g}"
    return f"{value:{sign}.{3 if unit in ('share', 'correlation') else 2}f}"


def flat_rows(found: Sequence[Section]) -> list[Row]:
    """Every cell of every table with the same columns, whatever the tables' keys: for CSV and for W&B."""
    kept = ("unit", "better", "published", "ours", "low", "high", "difference", "n_runs")
    return [
        {
            "table": each.table.name,
            "paper": each.table.paper,
            "place": each.table.place,
            "cell": " · ".join(str(row[k]) for k in each.table.keys),
            **{k: row[k] for k in kept},
            "runs": ", ".join(row["runs"]),
            "note": row["note"],
        }
        for each in found
        for row in each.rows
    ]
