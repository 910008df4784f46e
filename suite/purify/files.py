"""Data files, row by row in and row by row out: what is kept leaves as the very text that came in.

JSONL, CSV, TSV and Parquet are read in one pass that holds one row (Parquet: one batch) at a time, however large the
file; a JSON array has to be held whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eval.errors import DataError, KeelBenchError
from eval.tables import FORMATS

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """One row of the input."""

    line: int  # from 1; of JSON arrays, Parquet and hub data sets the row's number
    value: dict[str, Any] | None  # None where it could not be read
    problem: DataError | None = None  # then why


class Table(Protocol):
    """A data set that can be read any number of times, and written again with rows left out."""

    name: str  # what errors call it
    endings: tuple[str, ...]  # of the files it can be written to

    def rows(self) -> Iterator[Row]:
        """All rows in order.

        Raises:
            DataError: the file as a whole cannot be read.
        """

    def write(self, out: Path, keep: Mask) -> None:
        """The rows that ``keep`` [n] marks, in the input's format and order; gzipped where ``out`` ends in .gz."""


def open_table(path: Path) -> Table:
    """The table of a data file, by its ending.

    Raises:
        DataError: no such file, or an unknown ending.
    """
    from suite.purify.column_files import Parquet
    from suite.purify.text_files import Delimited, JsonArray, JsonLines

    if not path.is_file():
        raise DataError(path, "no such file")
    ending = plain_ending(path)
    if ending == ".jsonl":
        return JsonLines(path)
    if ending == ".json":
        return JsonArray(path)
    if ending in (".csv", ".tsv"):
        return Delimited(path, "," if ending == ".csv" else "\t")
    if ending == ".parquet":
        return Parquet(path)
    raise DataError(path, f"unknown file format; known endings: {', '.join(FORMATS)}, each also with .gz")


def hub_table(dataset: Any, name: str) -> Table:
    """The table of a ``datasets.Dataset``."""
    from suite.purify.column_files import HubTable

    return HubTable(dataset, name)


def plain_ending(path: Path) -> str:
    """``.jsonl`` of ``a.jsonl`` and of ``a.jsonl.gz``."""
    suffixes = [s.lower() for s in path.suffixes]
    return (suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes)[-1:][0] if suffixes else ""


def check_output(table: Table, out: Path) -> None:
    """
    Raises:
        KeelBenchError: ``out`` does not end as the input does.
    """
    ending = plain_ending(out)
    if ending not in table.endings or (ending == ".parquet" and out.suffix.lower() == ".gz"):
        raise KeelBenchError(
            f"out={out}: the output keeps the input's format, so its name must end in {' or '.join(table.endings)}"
        )
