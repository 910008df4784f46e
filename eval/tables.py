"""Rows out of data files: JSONL, JSON, CSV, TSV and Parquet, each plain or gzipped.

Every error names the file and, where one row is at fault, its line.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.errors import DataError

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line, row)``; the line counts from 1 (for JSON arrays and Parquet: the row's number).

    Raises:
        DataError: unknown ending, unreadable bytes, a row that does not parse or is no object.
    """
    suffixes = [s.lower() for s in path.suffixes]
    gzipped = suffixes[-1:] == [".gz"]
    ending = (suffixes[-2:-1] if gzipped else suffixes[-1:]) or [""]
    if ending[0] not in FORMATS:
        raise DataError(path, f"unknown file format; known endings: {', '.join(FORMATS)}, each also with .gz")
    if not path.is_file():
        raise DataError(path, "no such file")
    if ending[0] == ".parquet":
        yield from _parquet_rows(path)
        return
    if ending[0] == ".jsonl":
        yield from _jsonl_rows(path, gzipped)
        return
    try:
        data = gzip.decompress(path.read_bytes()) if gzipped else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read: {error}") from error
    text = _decode(path, data)
    if ending[0] == ".json":
        yield from _json_rows(path, text)
    else:
        yield from _delimited_rows(path, text, "\t" if ending[0] == ".tsv" else ",")


def delimited(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield ``(line, fields)`` of a file without a header; the line is the one where the row ends.

    Raises:
        DataError: no such file, unreadable bytes, a row that does not parse.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(path, f"cannot be read: {error}") from error
    reader = csv.reader(io.StringIO(_decode(path, data), newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(path, f"not valid CSV: {error}", reader.line_num) from error


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(path, f"not UTF-8 (byte 0x{data[error.start]:02x})", line) from error


def _jsonl_rows(path: Path, gzipped: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line by line: a file of a million rows is never in memory whole."""
    try:
        with gzip.open(path) if gzipped else path.open("rb") as handle:
            for line, raw in enumerate(handle, start=1):
                try:
                    text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(path, f"not UTF-8 (byte 0x{raw[error.start]:02x})", line) from error
                if text.strip():
                    yield line, _object(path, line, _parse(path, line, text))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, f"cannot be read: {error}") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    parsed = _parse(path, None, text)
    if not isinstance(parsed, list):
        raise DataError(path, "expected a JSON array of rows")
    for number, row in enumerate(parsed, start=1):
        yield number, {"prompt": row} if isinstance(row, str) else _object(path, number, row)


def _parse(path: Path, line: int | None, raw: str) -> Any:
    try:
        return json.loads(raw)
    except json.JSONDecodeError as error:
        raise DataError(path, f"not valid JSON: {error.msg} at column {error.colno}", line or error.lineno) from error
    except RecursionError as error:
        raise DataError(path, "JSON nested too deeply", line) from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(path, f"not valid JSON: {error}", line) from error


def _object(path: Path, line: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(path, f"expected a JSON object, found {type(row).__name__}", line)
    return row


def _delimited_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 0  # where the last readable record ended
    try:
        columns = reader.fieldnames or []
        line = reader.line_num
        if len(set(columns)) != len(columns):
            raise DataError(path, f"column names repeat: {columns}", 1)
        for row in reader:
            line = reader.line_num
            if None in row or None in row.values():
                found = sum(v is not None for v in row.values()) + len(row.get(None) or []) - (None in row)
                raise DataError(path, f"{found} fields where the header has {len(columns)}", line)
            yield line, dict(row)
    except csv.Error as error:
        raise DataError(path, f"not valid CSV: {error}", line + 1) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"not valid Parquet: {error}") from error


def text_field(path: object, line: int, row: dict[str, Any], field: str, *, required: bool = True) -> str:
    """``row[field]`` as text; a missing optional field or null is the empty string.

    Raises:
        DataError: the field is missing although required, or holds something that is no text or cannot be written as
            UTF-8 (half a surrogate pair, which JSON's escapes allow).
    """
    if field not in row:
        if required:
            raise DataError(path, f"missing; the row has {sorted(map(str, row))}", line, field)
        return ""
    value = row[field]
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise DataError(path, f"expected text, found {type(value).__name__}", line, field)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(path, f"text that is no Unicode: {error.reason}", line, field) from error
    return value
