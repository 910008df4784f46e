"""What a purification reads: checked as a whole before a model is loaded."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from eval.records import Prompt
from suite.purify.checks import check_controls_apart
from suite.purify.files import Table, check_output, hub_table, open_table
from suite.purify.index import Index, Reader, scan
from suite.purify.outputs import check_place
from suite.purify.plan import PurifyPlan
from suite.stages.data import load_prompts
from suite.stages.generation import check_backend
from suite.stages.judging import with_weights
from suite.stages.scoring import missing_files

log = logging.getLogger(__name__)

LARGE = 1 << 30  # bytes of a file from which chunk_rows is recommended


@dataclass(frozen=True)
class Inputs:
    table: Table
    reader: Reader
    index: Index
    prompts: Mapping[str, list[Prompt]]


def check(plan: PurifyPlan, *, files_only: bool = False) -> Inputs:
    """Read all inputs and list every problem that can be found before a model is loaded.

    Args:
        files_only: leave weights, judge and back end to the caller, which looks at them without fetching any.

    Raises:
        KeelBenchError: one or more problems, one a line.
    """
    problems: list[str] = []
    table: Table | None = None
    reader: Reader | None = None
    index: Index | None = None
    prompts: dict[str, list[Prompt]] = {}
    spec = plan.dataset
    try:
        path = spec.source.file(spec.name, plan.paths.data)
        if path is not None:
            table = open_table(path)
            if path.stat().st_size > LARGE and plan.chunk_rows is None and not files_only:
                log.warning("%s has %.1f GiB: chunk_rows=5000 scores it in parts", path, path.stat().st_size / LARGE)
        else:
            hub = spec.source.hub_table(spec.name, plan.paths.data)
            table = hub_table(hub, f"hub data set of {spec.name}")
        check_output(table, plan.out)
        check_place(plan.out, path, plan.overwrite)
    except KeelBenchError as error:
        problems.append(str(error))
    if table is not None:
        try:
            options = (spec.format, spec.name, plan.max_characters, plan.on_bad_row, plan.duplicates, spec.limit)
            if path is None:
                reader, index = _scan(table, *options)
            else:
                now = path.stat()
                reader, index = _scan_file(path, (now.st_ino, now.st_size, now.st_mtime_ns), *options)
            plan.cut.size(len(index.scored))
        except KeelBenchError as error:
            problems.append(str(error))
    for benchmark in plan.benchmarks if plan.verify or plan.check.prompts else ():
        try:
            prompts[benchmark.spec.name] = load_prompts(benchmark, plan.evaluation.limit, plan.paths.data)
        except KeelBenchError as error:
            problems.append(str(error))
    if plan.verify and not plan.benchmarks:
        problems.append("verify=true asks nothing: name a benchmark, such as benchmark=[mini_harmful]")
    if plan.verify and not files_only:
        for told in (lambda: check_backend(plan.backend), lambda: with_weights(plan.judge).check()):
            try:
                told()
            except KeelBenchError as error:
                problems.append(str(error))
    problems += missing_files(() if files_only else plan.models, plan.methods)
    try:
        if plan.check.controls:
            check_controls_apart(plan.methods)
    except KeelBenchError as error:
        problems.append(str(error))
    if problems or table is None or reader is None or index is None:
        raise KeelBenchError("\n".join(problems))
    return Inputs(table, reader, index, prompts)


def _scan(
    table: Table, format: str, name: str, max_characters: int, on_bad_row: str, duplicates: str, limit: int | None
) -> tuple[Reader, Index]:
    reader = Reader(table, format, name, max_characters)
    return reader, scan(reader, on_bad_row=on_bad_row, duplicates=duplicates, limit=limit)


@functools.lru_cache(maxsize=1)
def _scan_file(path: Path, state: tuple[int, ...], *options: Any) -> tuple[Reader, Index]:
    """``_scan`` of a file in this state. Kept, because the checks before a command read the same file as its runs, and
    it may be many gigabytes."""
    return _scan(open_table(path), *options)
