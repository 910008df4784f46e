"""What Slurm says of a sweep's jobs, and what became of each of them when that is put beside its own status file.

Slurm is asked by ``squeue``, which knows a job until a few minutes after its end, then by ``sacct``, where accounting
is on. Without either, the files in the sweep's folder are all there is.
"""

import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from suite.sweep import STATUS, mark_dead, read_state

SUBMITTED = "submitted.json"

# Slurm's job states (squeue(1), "job state codes").
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
_RUNNING = {"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
_ASK_SECONDS = 60


@dataclass(frozen=True)
class Submitted:
    """What a launcher handed over, as kept in the sweep's folder."""

    ending: str  # module:function that sums up such a sweep
    jobs: Mapping[str, str]  # a point's folder within the sweep: Slurm's id of its job
    summary: str | None = None  # id of the job that sums up

    def write(self, sweep: Path) -> None:
        part = sweep / f".{SUBMITTED}.part"
        part.write_text(json.dumps(asdict(self), indent=1))
        part.replace(sweep / SUBMITTED)  # whole or not at all: suite.status reads it meanwhile


def submitted(sweep: Path) -> Submitted | None:
    """None where no launcher handed over this sweep."""
    path = sweep / SUBMITTED
    return Submitted(**json.loads(path.read_text())) if path.is_file() else None


@dataclass(frozen=True)
class QueueState:
    """A job as Slurm sees it."""

    name: str  # Slurm's: PENDING, RUNNING, TIMEOUT, ...
    reason: str = ""  # why it waits

    @property
    def waiting(self) -> bool:
        return self.name in _WAITING

    @property
    def running(self) -> bool:
        return self.name in _RUNNING


@dataclass(frozen=True)
class Queue:
    """Slurm's answer. ``complete`` = whoever is not in ``jobs`` is unknown to Slurm, not merely unanswered."""

    jobs: Mapping[str, QueueState] = field(default_factory=dict)
    complete: bool = False


def ask(ids: Iterable[str]) -> Queue:
    """The states of jobs and of elements of arrays (``12_3``)."""
    wanted = set(ids)
    bases = ",".join(sorted({i.split("_")[0] for i in wanted}))
    if not wanted or shutil.which("squeue") is None:
        return Queue()
    found: dict[str, QueueState] = {}
    lines, answered = _lines(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", "--jobs", bases])
    for line in lines:
        job, name, reason = line.split("|", 2)
        found[job] = QueueState(name, "" if reason == "None" else reason)
    if not wanted <= set(found):
        rows, told = _lines(
            ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", "--jobs", bases]
        )
        for row in rows:
            job, name = row.split("|", 1)
            if job not in found and "[" not in job:  # "12_[3-5]": waiting, so squeue had them
                found[job] = QueueState(name.split(" ")[0])  # "CANCELLED by 1000"
        answered = answered and told
    return Queue({i: found[i] for i in wanted if i in found}, complete=answered)


def _lines(command: list[str]) -> tuple[list[str], bool]:
    """What it printed, and whether that is an answer: a controller that is down is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return [], False
    unknown = "Invalid job id" in done.stderr
    no_accounting = "accounting storage is disabled" in done.stderr
    return [line for line in done.stdout.splitlines() if "|" in line], not done.returncode or unknown or no_accounting


def merged(status: str, queue: QueueState | None) -> str:
    """A job's state, one of finished, failed, running, waiting, out of its status file's and Slurm's.

    Slurm knows of a job that was queued again after it had been stopped, and of one that died without a word; the
    file knows how a job that ended by itself went.
    """
    if status == "finished":
        return "finished"
    if queue is None:
        return "waiting" if status == "submitted" else status
    if queue.waiting:
        return "waiting"
    if queue.running:
        return "running"
    return "failed"


def settle(sweep: Path) -> int:
    """Mark jobs failed that Slurm has ended and that could not tell.

    Returns:
        How many are still to come to an end.
    """
    handed = submitted(sweep)
    if handed is None:
        return 0
    queue = ask(handed.jobs.values())
    still = 0
    for place, job in handed.jobs.items():
        folder = sweep / place
        state, seen = read_state(folder), queue.jobs.get(job)
        if seen is None and queue.complete and state not in ("finished", "failed"):
            mark_dead(folder, _task(folder), f"Slurm no longer knows job {job}, and it has not told how it went")
        elif merged(state, seen) in ("waiting", "running"):
            still += 1
        elif seen is not None:
            mark_dead(folder, _task(folder), f"Slurm ended job {job}: {seen.name}")
    return still


def _task(folder: Path) -> str:
    try:
        status: dict[str, Any] = json.loads((folder / STATUS).read_text())
    except (OSError, ValueError):
        return ""
    return str(status.get("task", ""))
