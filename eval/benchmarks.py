"""Benchmarks as lists of prompts, each read from one file whose count is checked."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.errors import DataError
from eval.records import Expected, Prompt, content_id
from eval.tables import delimited, read_rows, text_field


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """Where a benchmark's prompts stand in its published file."""

    name: str
    prompt_column: str
    category_column: str | None = None
    context_column: str | None = None  # a text that stands before the prompt, as HarmBench's contextual behaviours have
    expected: Expected | None = None  # one expectation for every prompt ...
    expected_column: str | None = None  # ... or a column that tells, through expected_values
    expected_values: Mapping[str, Expected] = field(default_factory=dict)
    where: Mapping[str, list[str]] = field(default_factory=dict)  # column -> values kept
    count: int | None = None  # prompts after filtering; another number is an error
    sha256: str | None = None  # checksum of the file the count and the figures in docs/ were checked with

    def __post_init__(self) -> None:
        if (self.expected is None) == (self.expected_column is None):
            raise DataError(self.name, "a benchmark states either `expected` or `expected_column`")


def load_benchmark(spec: BenchmarkSpec, path: Path) -> list[Prompt]:
    """All prompts of a benchmark's file (see ``prompts_from_rows``).

    ``path`` may be a folder of one-column CSV files without a header, one a category (HEx-PHI is published so): the
    category is the file's name.
    """
    return prompts_from_rows(spec, _category_files(spec, path) if path.is_dir() else read_rows(path), path)


def checksum(path: Path) -> str:
    """SHA-256 of a benchmark's file, or of all CSV files of its folder, in hexadecimal."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _category_files(spec: BenchmarkSpec, folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise DataError(folder, "no .csv file in this folder")
    number = 0
    for file in files:
        for line, row in delimited(file, ","):
            if len(row) != 1:
                raise DataError(
                    file,
                    f"expected one prompt a row and no header, found {len(row)} columns; "
                    f"a file with named columns goes by benchmark.{spec.name}.path",
                    line,
                )
            number += 1
            yield number, {spec.prompt_column: row[0], spec.category_column or "category": file.stem}


def prompts_from_rows(spec: BenchmarkSpec, rows: Iterable[tuple[int, dict[str, Any]]], path: object) -> list[Prompt]:
    """All prompts of a benchmark, in the rows' order; a prompt that is published twice is two trials.

    A context is put before its prompt as HarmBench's direct requests do it (Mazeika et al. 2024): an empty line, three
    dashes and an empty line between them.

    Raises:
        DataError: a malformed row, an empty prompt, a value of ``expected_column`` without a meaning, a count other
            than the published one, or no prompt at all.
    """
    prompts: dict[str, Prompt] = {}
    for line, row in rows:
        if any(_value(path, line, row, column) not in values for column, values in spec.where.items()):
            continue
        text = _value(path, line, row, spec.prompt_column).strip()
        if not text:
            raise DataError(path, "empty prompt", line, spec.prompt_column)
        if spec.context_column is not None:
            context = _value(path, line, row, spec.context_column).strip()
            if not context:
                raise DataError(path, "empty context", line, spec.context_column)
            text = f"{context}\n\n---\n\n{text}"
        category = _value(path, line, row, spec.category_column) if spec.category_column else ""
        prompt = Prompt(content_id(spec.name, text), spec.name, text, category, _expected(spec, path, line, row))
        if prompt.id in prompts:
            prompt = replace(prompt, id=content_id(spec.name, text, str(line)))
        prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(path, f"{spec.name} has no prompt here")
    if spec.count is not None and len(prompts) != spec.count:
        raise DataError(
            path,
            f"{spec.name} has {len(prompts)} prompts here, {spec.count} as published "
            f"(another version on purpose: benchmark.{spec.name}.count={len(prompts)})",
        )
    return list(prompts.values())


def _value(path: object, line: int, row: dict[str, Any], column: str) -> str:
    """A column's text; a conversation of one turn (SORRY-Bench's ``turns``) is that turn, a number its digits."""
    value = row.get(column)
    if isinstance(value, list):
        if len(value) != 1:
            raise DataError(path, f"expected one turn, found {len(value)}", line, column)
        row = {column: value[0]}
    elif isinstance(value, int) and not isinstance(value, bool):
        row = {column: str(value)}
    return text_field(path, line, row, column)


def _expected(spec: BenchmarkSpec, path: object, line: int, row: dict[str, Any]) -> Expected:
    if spec.expected is not None:
        return spec.expected
    assert spec.expected_column is not None  # __post_init__ saw to it
    value = text_field(path, line, row, spec.expected_column)
    if value not in spec.expected_values:
        known = ", ".join(spec.expected_values)
        raise DataError(path, f"{value!r} has no stated expectation; known: {known}", line, spec.expected_column)
    return spec.expected_values[value]


def take(prompts: list[Prompt], limit: int | None) -> list[Prompt]:
    """At most ``limit`` prompts of each expectation, in the file's order.

    Published files are sorted by category, so the first rows would be one category: the cut goes by the hash in the
    id, which is the same subset for every run, seed and method.
    """
    if limit is None:
        return prompts
    kept: set[str] = set()
    for expected in ("refuse", "comply"):
        ids = sorted(p.id for p in prompts if p.expected == expected)
        kept.update(ids[:limit])
    return [p for p in prompts if p.id in kept]
