"""JSONL, JSON arrays, CSV and TSV: rows keep the very bytes they came in."""

import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from eval.errors import DataError
from suite.purify.files import Mask, Row

_BOM = "\ufeff"


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
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
def writing(path: Path) -> Iterator[BinaryIO]:
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
        with reading(self.path) as handle:
            for line, raw in enumerate(handle, start=1):
                if line == 1:
                    _refuse_utf16(self.path, raw)
                if raw.strip():
                    yield self._row(line, raw)

    def _row(self, line: int, raw: bytes) -> Row:
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError as error:
            return Row(line, None, _not_utf8(self.path, error, line))
        try:
            return _object(self.path, line, json.loads(text))
        except (ValueError, RecursionError) as error:
            return Row(line, None, DataError(self.path, f"not valid JSON: {_reason(error)}", line))

    def write(self, out: Path, keep: Mask) -> None:
        place = 0
        with reading(self.path) as handle, writing(out) as target:
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
        with reading(self.path) as handle:
            data = handle.read()
        _refuse_utf16(self.path, data)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise _not_utf8(self.path, error, line) from error

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
        with writing(out) as target:
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
                    raise _not_utf8(self.path, error, line) from error
                yield pending[-1].removeprefix(_BOM) if line == 1 else pending[-1]

        with reading(self.path) as handle:
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
        with writing(out) as target:
            for _, raw, fields in self._records():
                if not fields:
                    target.write(raw.encode())
                    continue
                if place < 0 or keep[place]:
                    target.write(raw.encode())
                place += 1


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


def _not_utf8(path: Path, error: UnicodeDecodeError, line: int) -> DataError:
    convert = f"if it is Latin-1, `iconv -f LATIN1 -t UTF-8 {path.name} > new` converts it"
    return DataError(path, f"not UTF-8 (byte 0x{error.object[error.start]:02x}); {convert}", line)
