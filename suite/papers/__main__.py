"""``python -m suite.papers [NAME [SWEEP]]``: a published table with a sweep's figures beside it.

python -m suite.papers                              # which tables there are
python -m suite.papers larf_table1                  # the published figures alone
python -m suite.papers larf_table1 runs/2026-01-01_12-00-00
python -m suite.papers vcl_table2 runs/<sweep> runs/<FlowLens of its adapters>
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from suite.papers.published import PublishedTable, table, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where the table or the sweep does not exist."""
    parser = argparse.ArgumentParser(prog="python -m suite.papers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", nargs="?", help="the table, named as its experiment")
    parser.add_argument("sweep", nargs="*", type=Path, help="finished sweeps; paper.parquet is left in the first")
    parser.add_argument("--ours", action="store_true", help="only cells that the sweep has a figure for")
    options = parser.parse_args(arguments)
    try:
        if options.name is None:
            _list_tables()
        else:
            _show(table(options.name), options.sweep, options.ours)
    except KeelBenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _list_tables() -> None:
    for name, each in tables().items():
        filled = sum(value is not None for value in each.cells.values())
        print(f"{name:20} {each.paper}, {each.place}: {each.quantity} ({filled} of {len(each.cells)} cells)")


def _show(published: PublishedTable, sweeps: Sequence[Path], only_ours: bool) -> None:
    from suite.papers.compare import compare, sweep_rows

    rows = sweep_rows(published, *sweeps)
    if sweeps and not rows:
        raise KeelBenchError(f"no finished run under {', '.join(map(str, sweeps))} that {published.name} could read")
    joined = compare(published, rows)
    shown = [row for row in joined if row["ours"] is not None or not only_ours]
    _print(published, shown, with_ours=bool(sweeps))
    if sweeps:
        from suite.storage.tables import write_table

        write_table(sweeps[0] / "paper.parquet", joined)
        print(f"Rows: {sweeps[0] / 'paper.parquet'}")


def _print(published: PublishedTable, rows: Sequence[dict[str, Any]], *, with_ours: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from suite.terminal import plain

    title = f"{published.name} · {published.paper}, {published.place}\n{published.quantity}"
    shown = Table(title=plain(title), title_justify="left")
    for key in published.keys:
        shown.add_column(key)
    shown.add_column("unit")
    shown.add_column("published", justify="right")
    if with_ours:
        for column in ("ours", "95 % / range", "difference", "runs"):
            shown.add_column(column, justify="right")
    shown.add_column("note", overflow="fold")
    for row in rows:
        unit = row["unit"]
        cells = [*(plain(str(row[key])) for key in published.keys), unit, _figure(row["published"], unit)]
        if with_ours:
            ends = "" if row["low"] is None else f"[{_figure(row['low'], unit)}, {_figure(row['high'], unit)}]"
            sign = "" if row["difference"] is None or row["difference"] < 0 else "+"
            cells += [
                _figure(row["ours"], unit),
                plain(ends),
                sign + _figure(row["difference"], unit),
                str(row["n_runs"] or ""),
            ]
        note = row["note"] if with_ours else published.doubts.get(tuple(str(row[k]) for k in published.keys), "")
        shown.add_row(*cells, plain(note))
    Console(width=None if sys.stdout.isatty() else 180).print(shown)


def _figure(value: float | None, unit: str) -> str:
    """A figure with the digits its unit is printed with; nothing where there is none."""
    if value is None:
        return ""
    if unit in ("layer", "GPUs"):
        return f"{value:g}"
    return f"{value:.{3 if unit in ('share', 'correlation') else 2}f}"


if __name__ == "__main__":
    sys.exit(main())
