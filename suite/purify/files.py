"""Data files, row by row in and row by row out: what is kept leaves as the very text that came in.

JSONL, CSV, TSV and Parquet are read in one pass that holds one row (Parquet: one batch) at a time, however large the
file; a JSON array has to be held whole.
"""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from eval.errors import DataError, KeelBenchError
from eval.tables import FORMATS

Mask = npt.NDArray[np.bool_]
BATCH = 1024  # rows of a Parquet batch
_BOM = "\ufeff"


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


def plain_ending(path: Path) -> str:
    """``.jsonl`` of ``a.jsonl`` and of ``a.jsonl.gz``."""
    suffixes = [s.lower() for s in path.suffixes]
    return (suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes)[-1:][0] if suffixes else ""


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as handle:
                yield handle  # type: ignore[misc]
        else:
            with path.open("rb") as handle:
                yield handle
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read: {error}") from error


@contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb") as plain:
        if path.suffix.lower() == ".gz":
            with gzip.GzipFile("", "wb", fileobj=plain, mtime=0) as handle:
                yield handle  # type: ignore[misc]
        else:
            yield plain


class JsonLines:
    """One JSON object a line; blank lines are no rows and are copied."""

    endings: tuple[str, ...] = (".jsonl",)

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def rows(self) -> Iterator[Row]:
        with _reading(self.path) as handle:
            for line, raw in enumerate(handle, start=1):
                if line == 1:
                    _refuse_utf16(self.path, raw)
                if raw.strip():
                    yield self._row(line, raw)

    def _row(self, line: int, raw: bytes) -> Row:
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            return Row(line, None, DataError(self.path, f"not UTF-8 (byte 0x{raw[error.start]:02x})", line))
        try:
            return _object(self.path, line, json.loads(text))
        except (ValueError, RecursionError) as error:
            return Row(line, None, DataError(self.path, f"not valid JSON: {_reason(error)}", line))

    def write(self, out: Path, keep: Mask) -> None:
        place = 0
        with _reading(self.path) as handle, _writing(out) as target:
            for raw in handle:
                if not raw.strip():
                    target.write(raw)
                    continue
                if keep[place]:
                    target.write(raw)
                place += 1


class JsonArray:
    """One array of objects."""

    endings: tuple[str, ...] = (".json",)

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def rows(self) -> Iterator[Row]:
        for number, (_, _, value) in enumerate(self._elements(self._text()), start=1):
            yield _object(self.path, number, value)

    def _text(self) -> str:
        with _reading(self.path) as handle:
            data = handle.read()
        _refuse_utf16(self.path, data)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise DataError(self.path, f"not UTF-8 (byte 0x{data[error.start]:02x})", line) from error

    def _elements(self, text: str) -> Iterator[tuple[int, int, Any]]:
        """``(start, end, value)`` of every element; what stands between two of them is a comma and white space."""
        decoder = json.JSONDecoder()
        opening = re.compile(rf"{_BOM}?\s*\[\s*").match(text)
        if opening is None:
            raise DataError(self.path, "expected a JSON array of rows (for one object a line, name the file .jsonl)")
        place = opening.end()
        between, closing = re.compile(r"\s*,\s*"), re.compile(r"\s*\]\s*")
        if closing.match(text, place):
            return
        while True:
            try:
                value, end = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                line = text.count("\n", 0, getattr(error, "pos", place)) + 1
                raise DataError(self.path, f"not valid JSON: {_reason(error)}", line) from error
            yield place, end, value
            comma = between.match(text, end)
            if comma is None:
                break
            place = comma.end()
        last = closing.match(text, end)
        if last is None or last.end() != len(text):
            raise DataError(self.path, "not valid JSON: expected , or ]", text.count("\n", 0, end) + 1)

    def write(self, out: Path, keep: Mask) -> None:
        text = self._text()
        spans = [(start, end) for start, end, _ in self._elements(text)]
        borders = [0, *(end for _, end in spans)]
        with _writing(out) as target:
            target.write(text[: spans[0][0]].encode())
            first = True
            for place in np.flatnonzero(keep[: len(spans)]):
                start, end = spans[place]
                before = ", " if place == 0 else text[borders[place] : start]
                target.write(("" if first else before).encode() + text[start:end].encode())
                first = False
            target.write(text[borders[-1] :].encode())


class Delimited:
    """CSV or TSV with a header; a quoted field may hold line breaks."""

    def __init__(self, path: Path, delimiter: str):
        self.path, self.name, self.delimiter = path, str(path), delimiter
        self.endings: tuple[str, ...] = (".csv",) if delimiter == "," else (".tsv",)

    def _records(self) -> Iterator[tuple[int, str, list[str]]]:
        """``(last line, raw text, fields)`` of the header and every record."""
        csv.field_size_limit(2**31 - 1)
        pending: list[str] = []

        def lines(handle: BinaryIO) -> Iterator[str]:
            for line, raw in enumerate(handle, start=1):
                if line == 1:
                    _refuse_utf16(self.path, raw)
                try:
                    pending.append(raw.decode())
                except UnicodeDecodeError as error:
                    raise DataError(self.path, f"not UTF-8 (byte 0x{raw[error.start]:02x})", line) from error
                yield pending[-1].removeprefix(_BOM) if line == 1 else pending[-1]

        with _reading(self.path) as handle:
            reader = csv.reader(lines(handle), delimiter=self.delimiter, strict=True)
            try:
                for fields in reader:
                    raw = "".join(pending)
                    pending.clear()
                    yield reader.line_num, raw, fields
            except csv.Error as error:
                raise DataError(self.path, f"not valid CSV: {error}", reader.line_num) from error

    def rows(self) -> Iterator[Row]:
        header: list[str] | None = None
        for line, _, fields in self._records():
            if header is None:
                header = fields
                if len(set(header)) != len(header):
                    raise DataError(self.path, f"column names repeat: {header}", 1)
            elif not fields:
                continue
            elif len(fields) != len(header):
                told = f"{len(fields)} fields where the header has {len(header)}"
                yield Row(line, None, DataError(self.path, told, line))
            else:
                yield Row(line, dict(zip(header, fields, strict=True)))

    def write(self, out: Path, keep: Mask) -> None:
        place = -1  # the header
        with _writing(out) as target:
            for _, raw, fields in self._records():
                if not fields:
                    target.write(raw.encode())
                    continue
                if place < 0 or keep[place]:
                    target.write(raw.encode())
                place += 1


class Parquet:
    """Parquet: the schema, its metadata and the compression are kept."""

    endings: tuple[str, ...] = (".parquet",)

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                yield from file.iter_batches(BATCH)
        except (pa.ArrowException, OSError) as error:
            raise DataError(self.path, f"not valid Parquet: {error}") from error

    def rows(self) -> Iterator[Row]:
        number = 0
        for batch in self._batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(number, value)

    def write(self, out: Path, keep: Mask) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            schema, groups = file.schema_arrow, file.metadata
            codec = (
                groups.row_group(0).column(0).compression if groups.num_row_groups and groups.num_columns else "NONE"
            )
        place = 0
        with pq.ParquetWriter(out, schema, compression=codec.lower().replace("uncompressed", "none")) as target:
            for batch in self._batches():
                target.write_batch(batch.filter(pa.array(keep[place : place + len(batch)])))
                place += len(batch)


class HubTable:
    """A ``datasets.Dataset``, which is mapped from disk; written as JSONL or Parquet, as the output's name asks."""

    endings: tuple[str, ...] = (".jsonl", ".parquet")

    def __init__(self, dataset: Any, name: str):
        self.dataset, self.name = dataset, name

    def rows(self) -> Iterator[Row]:
        for number, value in enumerate(self.dataset, start=1):
            yield Row(number, value)

    def write(self, out: Path, keep: Mask) -> None:
        kept = self.dataset.select(np.flatnonzero(keep))
        if plain_ending(out) == ".parquet":
            kept.to_parquet(str(out))
            return
        with _writing(out) as target:
            for value in kept:
                target.write(json.dumps(value, ensure_ascii=False, default=str).encode() + b"\n")


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


def _object(path: Path, line: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(line, value)
    return Row(line, None, DataError(path, f"expected a JSON object, found {type(value).__name__}", line))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _refuse_utf16(path: Path, head: bytes) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(path, f"UTF-16, not UTF-8: `iconv -f UTF-16 -t UTF-8 {path.name} > new` converts it", 1)
