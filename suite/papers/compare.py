"""A sweep's figures beside the published ones: one row a cell, and where a figure is absent, why."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from suite.papers.published import PublishedTable
from suite.papers.rows import adapters_alignment, measurements, once
from suite.records import adapter_key
from suite.results import collect

Row = dict[str, Any]


def compare(published: PublishedTable, rows: Sequence[Row]) -> list[Row]:
    """One row for every published cell, then one for every cell that only we have (another model, another data set).

    Each has ``published``, ``ours`` (the mean over its runs: seeds) and ``difference`` (ours less published), in the
    cell's unit; ``low`` and ``high``, the 95 % interval of a single run's rate or the range over several runs;
    ``runs``, the ids of those it rests on; ``note``: why a figure is absent, where the run's protocol is not the
    paper's, and doubts about what was printed.
    """
    rows = [_flat(row) for row in rows]
    cells = {cell: _cell(published, cell, value, rows) for cell, value in published.cells.items()}
    for address in _further(published, rows):
        for column in published.columns:
            cell = (*address, column)
            found = _cell(published, cell, None, rows)
            if found["ours"] is not None:
                cells[cell] = found
    return list(cells.values())


def _cell(published: PublishedTable, cell: tuple[str, ...], value: float | None, rows: Sequence[Row]) -> Row:
    column, unit = cell[-1], published.units[cell[-1]]
    metric = published.ours.metrics[column]
    name = metric.column.format(**dict(zip(published.keys, cell, strict=True)))
    wanted = _wanted(published, cell)
    fitting = [row for row in rows if all(_same(row.get(k), v) for k, v in wanted.items())]
    if (best_by := published.ours.best_by) is not None:
        ranked = [r for r in fitting if _number(r.get(best_by)) is not None]
        fitting = [max(ranked, key=lambda r: float(r[best_by]))] if ranked else []
    having = [row for row in fitting if _number(row.get(name)) is not None]
    replaced = ""
    stand_ins = published.ours.stand_in.get(column, ()) if cell not in published.cells else ()
    wanting = name
    for stand_in in stand_ins:
        if not having:
            replaced, metric, name = wanting, stand_in, stand_in.column
            having = [row for row in fitting if _number(row.get(name)) is not None]
    scale = 100.0 if unit == "per cent" else 1.0
    ours = [scale * metric.value(row[name]) for row in having]
    mean = statistics.fmean(ours) if ours else None
    low, high = _interval(metric, name, having, scale, ours)
    notes = []
    if value is None:
        known = cell in published.cells
        notes.append(published.missing if known else "the paper has no such cell")
    if replaced and having:
        notes.append(f"{name} in place of {replaced}")
    if not fitting:
        notes.append("no run with " + ", ".join(f"{k}={v}" for k, v in wanted.items()))
    elif not having:
        notes.append(f"the run has no {name}")
    if having and value is not None:
        notes += _departures(published.protocol, having)
    if cell in published.doubts:
        notes.append(f"as printed: {published.doubts[cell]}")
    if column in published.bounds:
        notes.append(f"the paper says only: {published.bounds[column]}")
    return {
        **dict(zip(published.keys, cell, strict=True)),
        "unit": unit,
        "better": published.better[column],
        "published": value,
        "ours": mean,
        "low": low,
        "high": high,
        "difference": None if mean is None or value is None else mean - value,
        "n_runs": len(having),
        "runs": [str(row["run_id"]) for row in having],
        "note": "; ".join(notes),
    }


def _wanted(published: PublishedTable, cell: tuple[str, ...]) -> Row:
    """The fields by which a run is the cell's: what ``where`` says of a key's value, else the field of the key's name;
    a key that stands in the metric's name, or only names the column, selects no run."""
    ours = published.ours
    wanted: Row = {}
    for key, value in zip(published.keys, cell, strict=True):
        in_name = any(f"{{{key}}}" in metric.column for metric in ours.metrics.values())
        if key in ours.where:
            wanted.update(ours.where[key].get(value, {}))
        elif key in ours.fields:
            wanted[ours.fields[key]] = value
        elif not in_name and key != published.keys[-1]:
            wanted[key] = value
    return wanted


def _further(published: PublishedTable, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Addresses (without the last key) that our rows have and the paper has not: each key's value read off the row's
    field; keys that pick runs by ``where`` or stand in a metric's name take the paper's values and those of the row."""
    known = set(published.row_keys())
    found: dict[tuple[str, ...], None] = {}
    for row in rows:
        addresses: list[tuple[str, ...]] = [()]
        for i, key in enumerate(published.keys[:-1]):
            field = published.ours.fields.get(key, key)
            if key in published.ours.where:
                values = [v for v, want in published.ours.where[key].items() if _fits(row, want)]
            elif field in row:
                values = [str(row[field])]
            else:  # in the metric's name: whatever the row has a figure of
                values = _named(published, key, row) or sorted({cell[i] for cell in published.cells})
            addresses = [(*a, v) for a in addresses for v in values]
        found |= dict.fromkeys(a for a in addresses if a not in known)
    return list(found)


def _named(published: PublishedTable, key: str, row: Row) -> list[str]:
    """Values of ``key`` in a metric such as ``asr/{benchmark}``, for which the row has that metric."""
    values: dict[str, None] = {}
    for metric in published.ours.metrics.values():
        prefix, mark, suffix = metric.column.partition(f"{{{key}}}")
        if mark and "{" not in prefix + suffix:
            for name in row:
                middle = name[len(prefix) : len(name) - len(suffix)]
                if name.startswith(prefix) and name.endswith(suffix) and middle and "/" not in middle:
                    values[middle] = None
    return list(values)


def _fits(row: Row, wanted: Mapping[str, Any]) -> bool:
    return all(_same(row.get(k), v) for k, v in wanted.items())


def _same(found: Any, wanted: Any) -> bool:
    """``any`` asks for no more than that the row has the field."""
    return found == wanted or (found is not None and (wanted == "any" or str(found) == str(wanted)))


def _number(value: Any) -> float | None:
    """None also for NaN, which is no figure."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None


def _interval(metric: Any, name: str, rows: Sequence[Row], scale: float, ours: list[float]) -> tuple[Any, Any]:
    if len(ours) > 1:
        return min(ours), max(ours)
    if len(ours) == 1 and rows[0].get(f"{name}/low") is not None:
        ends = sorted(scale * metric.value(rows[0][f"{name}/{end}"]) for end in ("low", "high"))
        return ends[0], ends[1]
    return None, None


def _departures(protocol: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What the runs did otherwise than the paper: the figures are then not of one kind. How many samples an un-tuned
    model was trained on is no departure."""
    told = []
    for field, wanted in protocol.items():
        relevant = [row for row in rows if not (field == "n_selected" and row.get("method") == "none")]
        other = sorted({str(row.get(field)) for row in relevant if not _same(row.get(field), wanted)})
        if other:
            told.append(f"{field}={'/'.join(other)}, the paper's is {wanted}")
    return told


def _flat(row: Row) -> Row:
    """A run's row with its method's options as ``options.<name>`` and its scorer's report as ``info.<name>``."""
    flat = dict(row)
    for prefix, field in (("options", "options"), ("info", "scorer_info")):
        if isinstance(row.get(field), str):
            flat |= {f"{prefix}.{k}": v for k, v in json.loads(row[field]).items()}
    return flat


def sweep_rows(published: PublishedTable, *folders: Path) -> list[Row]:
    """The rows in these folders that the table's figures come from. Where they are runs, FlowLens's measurements of
    their adapters, in any of the folders, lend them their ``alignment``."""
    if published.ours.rows != "runs":
        return measurements(published.ours.rows, folders)
    aligned = adapters_alignment(folders)
    rows = once(row for folder in folders for row in collect(folder))
    for row in rows:
        adapter = adapter_key(row)
        if adapter is not None and aligned.get(adapter) is not None:
            row["alignment"] = aligned[adapter]
    return rows
