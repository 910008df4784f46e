"""Benchmarks as lists of prompts, each read from one file whose count is checked."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.errors import DataError
from eval.records import Expected, Prompt, content_id
from eval.tables import read_rows, text_field


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """Where a benchmark's prompts stand in its published file."""

    name: str
    prompt_column: str
    category_column: str | None = None
    expected: Expected | None = None  # one expectation for every prompt ...
    expected_column: str | None = None  # ... or a column that tells, through expected_values
    expected_values: Mapping[str, Expected] = field(default_factory=dict)
    where: Mapping[str, list[str]] = field(default_factory=dict)  # column -> values kept
    count: int | None = None  # prompts after filtering; another number is an error
    sha256: str | None = None  # checksum of the published file, checked where given

    def __post_init__(self) -> None:
        if (self.expected is None) == (self.expected_column is None):
            raise DataError(self.name, "a benchmark states either `expected` or `expected_column`")


def load_benchmark(spec: BenchmarkSpec, path: Path) -> list[Prompt]:
    """All prompts of a benchmark's file (see ``prompts_from_rows``).

    Raises:
        DataError: also where the file's checksum is not the published one.
    """
    if spec.sha256 is not None and path.is_file():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != spec.sha256:
            raise DataError(path, f"checksum {found[:12]}… is not {spec.name}'s published {spec.sha256[:12]}…")
    return prompts_from_rows(spec, read_rows(path), path)


def prompts_from_rows(spec: BenchmarkSpec, rows: Iterable[tuple[int, dict[str, Any]]], path: object) -> list[Prompt]:
    """All prompts of a benchmark, in the rows' order; a prompt that is published twice is two trials.

    Raises:
        DataError: a malformed row, an empty prompt, a value of ``expected_column`` without a meaning, a count other
            than the published one, or no prompt at all.
    """
    prompts: dict[str, Prompt] = {}
    for line, row in rows:
        if any(text_field(path, line, row, column) not in values for column, values in spec.where.items()):
            continue
        text = text_field(path, line, row, spec.prompt_column).strip()
        if not text:
            raise DataError(path, "empty prompt", line, spec.prompt_column)
        category = text_field(path, line, row, spec.category_column) if spec.category_column else ""
        prompt = Prompt(content_id(spec.name, text), spec.name, text, category, _expected(spec, path, line, row))
        if prompt.id in prompts:
            prompt = replace(prompt, id=content_id(spec.name, text, str(line)))
        prompts[prompt.id] = prompt
    if spec.count is not None and len(prompts) != spec.count:
        raise DataError(path, f"{spec.name} has {len(prompts)} prompts here, {spec.count} as published")
    if not prompts:
        raise DataError(path, f"{spec.name} has no prompt here")
    return list(prompts.values())


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
