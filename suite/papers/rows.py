"""Rows that a table's figures come from, where they are not the runs' own: out of the tables that runs leave."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suite.purify.index import has_list
from suite.records import read_row
from suite.storage.tables import read_table

Row = dict[str, Any]


def selections(folder: Path) -> list[Row]:
    """A run's selection against its data set: mean characters of a response, and the share of responses with a list."""
    file = folder / "scores.parquet"
    if not file.is_file():
        return []
    rows = read_table(file)
    found: Row = {}
    for name, members in (("selected", [r for r in rows if r["selected"]]), ("all", rows)):
        found[f"characters/{name}"] = sum(r["response_characters"] for r in members) / len(members)
        found[f"list/{name}"] = sum(has_list(r["response"]) for r in members) / len(members)
    return [_with_run(folder, found)]


def categories(folder: Path) -> list[Row]:
    """A run's attack success by category of harm, one row a category, called ``<benchmark>/<category>``."""
    file = folder / "categories.parquet"
    if not file.is_file():
        return []
    rows = [r for r in read_table(file) if r["metric"] == "asr"]
    return [
        _with_run(
            folder,
            {"category": f"{r['benchmark']}/{r['category']}", "asr": r["value"], "asr/n": r["n"], "asr/low": r["low"],
             "asr/high": r["high"]},
        )
        for r in rows
    ]  # fmt: skip


def _with_run(folder: Path, found: Mapping[str, Any]) -> Row:
    return {**(read_row(folder) or {}), **found}


_OF_A_RUN: dict[str, Callable[[Path], list[Row]]] = {"selections": selections, "categories": categories}


def measurements(kind: str, folders: Iterable[Path]) -> list[Row]:
    """All rows of a kind at or below the folders: what finished runs imply, or a table ``<kind>.parquet`` that another
    entry point left (diversity, flowlens, drift)."""
    if (of_a_run := _OF_A_RUN.get(kind)) is not None:
        runs = [file.parent for folder in folders for file in sorted(folder.rglob("record.json"))]
        found = once({**(read_row(run) or {}), "folder": run} for run in runs)
        return [row for run in found for row in of_a_run(run["folder"])]
    return [row for folder in folders for file in sorted(folder.rglob(f"{kind}.parquet")) for row in read_table(file)]


def once(runs: Iterable[Row]) -> list[Row]:
    """The runs without those that say again what an earlier one said: a point that two sweeps have in common, found in
    the cache the second time, is one measurement. What it is called may differ, and is what some tables look for."""
    found: dict[tuple[Any, Any], Row] = {}
    for row in runs:
        found.setdefault((row.get("run_id"), row.get("label")), row)
    return list(found.values())


def adapters_alignment(folders: Sequence[Path]) -> dict[str, float | None]:
    """Adapter's key -> FlowLens's alignment with its sweep's reference."""
    return {row["adapter"]: row.get("alignment") for row in measurements("flowlens", folders) if row["adapter"]}
