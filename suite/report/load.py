"""A sweep's folder, read: finished runs with a name that tells them apart, and what did not finish."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from eval.errors import KeelBenchError
from suite.records import read_row
from suite.results import Row

T = TypeVar("T")

QUALITY = "filter_quality.parquet"


@dataclass
class Failure:
    """A run that left no record."""

    folder: str  # relative to the sweep
    task: str  # what was typed
    state: str  # failed, or running (still, or killed without a word)
    error: str


@dataclass
class Run:
    """A finished run and its tables."""

    folder: Path
    place: str  # the folder, relative to the sweep
    row: Row
    task: str
    name: str = ""  # what it is called in the report: the same for seeds of the same point, different otherwise
    color: int = 0  # index into the palette; one colour a name throughout the page
    missing: list[str] = field(default_factory=list)  # tables it should have and does not

    def table(self, table: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """A table of the run's; None where it is missing or unreadable, which ``missing`` then says."""
        return self._read(table, lambda path: pq.read_table(path, columns=columns))

    def ends(self, table: str, columns: Sequence[str], count: int) -> tuple[int, pa.Table, pa.Table] | None:
        """A table's number of rows, its first ``count`` rows and its last (of those behind them), reading no more of a
        large file than the row groups that they are in; None as ``table``."""

        def read(path: Path) -> tuple[int, pa.Table, pa.Table]:
            with pq.ParquetFile(path) as file:
                groups = range(file.metadata.num_row_groups)
                sizes = [file.metadata.row_group(g).num_rows for g in groups]
                n = sum(sizes)
                head = next((g + 1 for g in groups if sum(sizes[: g + 1]) >= count), len(sizes))
                tail = next((g for g in reversed(groups) if sum(sizes[g:]) >= count), 0)
                first = file.read_row_groups(list(groups[:head]), columns=list(columns)).slice(0, count)
                last = file.read_row_groups(list(groups[tail:]), columns=list(columns))
                behind = min(count, max(0, n - count))
                return n, first, last.slice(last.num_rows - behind)

        return self._read(table, read)

    def _read(self, table: str, read: Callable[[Path], T]) -> T | None:
        path = self.folder / f"{table}.parquet"
        try:
            return read(path)
        except (OSError, pa.ArrowException) as error:
            note = f"{table}.parquet ({'absent' if not path.exists() else type(error).__name__})"
            if self._expected(table) and note not in self.missing:
                self.missing.append(note)
            return None

    def note_absent(self) -> None:
        """Say in ``missing`` which tables are not there, also of those that nobody will read."""
        for table in ("scores", "completions", "training"):
            note = f"{table}.parquet (absent)"
            if self._expected(table) and note not in self.missing and not (self.folder / f"{table}.parquet").exists():
                self.missing.append(note)

    def _expected(self, table: str) -> bool:
        return {"scores": bool(self.scoring), "training": self.row.get("train_loss") is not None}.get(table, True)

    @property
    def stages(self) -> list[str]:
        """``stage/key`` of every stage it rests on."""
        stages: list[str] = json.loads(self.row.get("stages") or "[]")
        return stages

    @property
    def scoring(self) -> str:
        """The key of its scores; "" where nothing was scored."""
        return next((s.split("/", 1)[1] for s in self.stages if s.startswith("scores/")), "")


def load_sweep(*sweeps: Path) -> tuple[list[Run], list[Failure]]:
    """All runs at or below the folders, in run order; of several sweeps as if they were one.

    Raises:
        KeelBenchError: there is none, neither finished nor failed.
    """
    found = {f.parent: sweep for sweep in sweeps for file in ("record.json", "status.json") for f in sweep.rglob(file)}
    runs: list[Run] = []
    failures: list[Failure] = []
    for folder in sorted(found, key=lambda f: [_natural(p) for p in f.parts]):
        place = str(folder.relative_to(found[folder] if len(sweeps) == 1 else found[folder].parent))
        status = _status(folder)
        task = str(status.get("task", ""))
        try:
            row = read_row(folder)
            problem = str(status.get("error", ""))
        except ValueError as error:
            row, problem = None, f"record.json is unreadable: {error}"
        if row is None and status.get("state") == "finished" and (folder / QUALITY).is_file():
            continue  # not a run of the main pipeline: ``load_qualities`` reads it
        if row is None:
            failures.append(Failure(place, task, str(status.get("state", "unknown")), problem))
        else:
            runs.append(Run(folder, place, row, task))
    if not found:
        raise KeelBenchError(f"no run under {', '.join(map(str, sweeps))}; start one with `python -m suite`")
    _hide_paths([*runs, *failures])
    _name(runs)
    return runs, failures


_PATH = re.compile(r"(?<=[=\[, ])((?:~|/)[^,\]}\s]*/)([^,\]}\s/]*)")


def _hide_paths(runs: Sequence["Run | Failure"]) -> None:
    """A report is shown around, so what was typed names files without their folders; where two folders hold files of
    one name, a hash tells them apart. The home is ~ in errors."""

    def plain(found: re.Match[str]) -> str:
        return f"…/{found[2]}"

    def told_apart(found: re.Match[str]) -> str:
        return f"…{hashlib.sha256(found[1].encode()).hexdigest()[:6]}/{found[2]}"

    typed = {run.task for run in runs}
    shortest = plain if len({_PATH.sub(plain, task) for task in typed}) == len(typed) else told_apart
    for run in runs:
        run.task = _PATH.sub(shortest, run.task)
        if isinstance(run, Failure):
            run.error = run.error.replace(str(Path.home()), "~")


@dataclass(frozen=True)
class Quality:
    """What methods found of the rows planted into a data set; one row a method (``suite.quality``)."""

    place: str  # the folder, relative to the sweep
    rows: list[Row]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What the table is about."""
        row = self.rows[0]
        shown = {"model": "model", "alignment": "aligned", "benign data": "dataset", "rows": "samples",
                 "planted among them": "planted", "seed": "seed"}  # fmt: skip
        return [(name, f"{row[c]:,}" if c == "samples" else str(row[c])) for name, c in shown.items()]


def load_qualities(sweep: Path) -> list[Quality]:
    """All readable tables of filter quality at or below ``sweep``, in run order."""
    found = []
    for file in sorted(sweep.rglob(QUALITY), key=lambda f: [_natural(p) for p in f.parts]):
        try:
            rows = pq.read_table(file).to_pylist()
        except (OSError, pa.ArrowException):
            continue
        if rows:
            found.append(Quality(str(file.parent.relative_to(sweep)), rows))
    return found


def _natural(part: str) -> tuple[int, int | str]:
    return (0, int(part)) if part.isdigit() else (1, part)


def _status(folder: Path) -> dict[str, Any]:
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _name(runs: Sequence[Run]) -> None:
    """Names: the label and, where that is ambiguous, what differs. Two rows of one name are seeds of one point, so
    whatever else distinguishes them has to be in it; a mean over "seeds" would otherwise mix apples and pears."""
    for run in runs:
        run.name = str(run.row["label"])
    _tell_apart(runs, _TELLING)
    # A setting that no column of the row shows (a learning rate, say) was typed, so it stands in the task.
    for name, same in by_name(runs).items():
        if len({run.row["seed"] for run in same}) < len(same):
            typed = [{o for o in overrides(run.task) if not o.startswith("seed=")} for run in same]
            shared = set.intersection(*typed)
            for run, mine in zip(same, typed, strict=True):
                run.name = " · ".join([name, *sorted(mine - shared)])
    _tell_apart(runs, _CONTENTS)
    for color, same in enumerate(by_name(runs).values()):
        for run in same:
            run.color = color


def _tell_apart(runs: Sequence[Run], columns: Mapping[str, str]) -> None:
    for column, shown in columns.items():
        for same in by_name(runs).values():
            values = [str(run.row.get(column)) for run in same]
            if len(set(values)) > 1:
                for run, value in zip(same, values, strict=True):
                    run.name += f" · {shown.format(value)}"


# Columns that tell runs of one label apart, the most telling first, and how they read in a name.
_TELLING = {
    "model": "{}",
    "dataset": "{}",
    "aligned": "aligned {}",
    "judge": "{}",
    "backend": "{}",
    "max_new_tokens": "{} tokens",
    "dtype": "{}",
    "selection": "{}",
    "n_selected": "{} samples",
}
# And where neither these nor what was typed does.
_CONTENTS = {
    "fingerprint/prompts": "prompts {:.6}",
    "fingerprint/data": "data {:.6}",
}


def by_name(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs grouped by name, that is, the seeds of each point."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.name].append(run)
    return groups


def overrides(task: str) -> list[str]:
    """What was typed, one override each; commas inside brackets do not separate."""
    return [o for o in re.split(r",(?![^\[{(]*[\]})])", task) if o]
