"""``python -m suite.status [SWEEP]``: how far a sweep is: done, running, waiting, failed and with what error.

python -m suite.status                          # the latest sweep under runs/
python -m suite.status runs/2025-01-31_12-00-00 --watch
"""

import json
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from suite.command_line import one_line_errors, parser_of, runs_folder
from suite.launchers.queue import QueueState, ask, merged, submitted
from suite.machine import job_alive
from suite.report.find import find_sweep
from suite.report.load import overrides

WHICH = "a sweep, its folder, or an experiment; default: the latest one"


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as its folder tells."""

    name: str
    task: str
    state: str  # finished, failed, running, waiting (in a queue), gone (it was running, and its process is no more)
    seconds: float
    last: str  # its error, or what it logged last


@dataclass(frozen=True)
class Progress:
    jobs: list[Job] = field(default_factory=list)
    total: int | None = None  # points of the sweep; None where its command line cannot be counted

    def count(self, state: str) -> int:
        return sum(job.state == state for job in self.jobs)

    @property
    def waiting(self) -> int | None:
        return None if self.total is None else max(0, self.total - len(self.jobs)) + self.count("waiting")

    @property
    def seconds_left(self) -> float | None:
        """By the mean of the finished jobs, as many at a time as are running now. A rough figure: what is in the cache
        takes no time, and a method's first point scores for all its others."""
        done = [job.seconds for job in self.jobs if job.state == "finished"]
        running = [job.seconds for job in self.jobs if job.state == "running"]
        if not done or self.waiting is None:
            return None
        mean = sum(done) / len(done)
        left = sum(max(0.0, mean - seconds) for seconds in running) + mean * self.waiting
        return left / max(1, len(running))


def progress(sweep: Path, now: datetime | None = None) -> Progress:
    """Read a sweep's folder, and ask Slurm where it has the jobs; nothing is changed, and nothing asks the jobs.

    Raises:
        KeelBenchError: no job has started there.
    """
    now = now or datetime.now(UTC)
    handed = submitted(sweep)
    ids = handed.jobs if handed else {}
    queue = ask(ids.values()).jobs
    jobs = []
    for file in sorted(sweep.glob("*/status.json"), key=lambda f: (len(f.parent.name), f.parent.name)):
        try:
            status = json.loads(file.read_text())
        except (OSError, ValueError):  # being written at this moment
            continue
        jobs.append(_job(file.parent, status, now, queue.get(ids.get(file.parent.name, ""))))
    if not jobs:
        raise KeelBenchError(f"no job has started under {sweep}")
    return Progress(jobs, _total(sweep) if (sweep / "multirun.yaml").is_file() else len(jobs))


def _job(folder: Path, status: dict[str, Any], now: datetime, queue: QueueState | None = None) -> Job:
    recorded = str(status.get("state", "unknown"))
    state = merged(recorded, queue)
    written = datetime.fromisoformat(status["time"]) if "time" in status else now
    started = datetime.fromisoformat(status["started"]) if "started" in status else written
    if state in ("running", "waiting") and queue is None and not job_alive(status):
        state = "gone"
    end = now if state == "running" else written
    last = str(status.get("error", "")).split("\n")[0] if state in ("failed", "waiting") else ""
    if queue is not None and state == "waiting":
        last = ": ".join(filter(None, (queue.reason, last)))
    elif queue is not None and state == "failed" and recorded != "failed":
        last = f"Slurm: {queue.name}"  # it ended without a word
    if state in ("running", "gone"):
        last = _last_line(folder / "keelbench.log")
    return Job(folder.name, str(status.get("task", "")), state, max(0.0, (end - started).total_seconds()), last)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def _total(sweep: Path) -> int | None:
    """The points of a sweep, from what Hydra kept of its command line."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        hydra = OmegaConf.load(sweep / "multirun.yaml").hydra
        overrides = [f"{k}={v}" for k, v in (hydra.sweeper.get("params") or {}).items()] + list(hydra.overrides.task)
        parsed = OverridesParser.create().parse_overrides(overrides=overrides)
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except (HydraException, OmegaConfBaseException, OSError, AttributeError):
        return None
    return sum(len(batch) for batch in batches)


def show(sweep: Path, found: Progress) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160)
    waiting = "an unknown number" if found.waiting is None else found.waiting
    left = "" if found.seconds_left is None else f", about {_duration(found.seconds_left)} left"
    counts = ", ".join(f"{found.count(s)} {s}" for s in ("finished", "running", "failed", "gone") if found.count(s))
    console.print(f"{sweep.name}: {counts}, {waiting} waiting{left}", highlight=False)
    table = Table()
    for column in ("job", "state", "time", "asked for", "last said"):
        table.add_column(column)
    style = {"failed": "red", "gone": "red", "running": "yellow"}
    typed = [overrides(job.task) for job in found.jobs]
    shared = set.intersection(*map(set, typed)) if len(typed) > 1 else set()
    for job, mine in zip(found.jobs, typed, strict=True):
        own = " ".join(o for o in mine if o not in shared)
        table.add_row(job.name, job.state, _duration(job.seconds), escape(own), escape(job.last),
                      style=style.get(job.state))  # fmt: skip
    console.print(table)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@one_line_errors
def main() -> int:
    parser = parser_of("suite.status", __doc__)
    parser.add_argument("sweep", nargs="?", help=WHICH)
    parser.add_argument("--watch", action="store_true", help="again every five seconds, until nothing runs")
    options = parser.parse_args()
    try:
        sweep = asked_for(options.sweep)
        while True:
            found = progress(sweep)
            show(sweep, found)
            if not options.watch or not (found.count("running") or found.waiting):
                break
            time.sleep(5)
    except KeyboardInterrupt:
        return 130
    return 1 if found.count("failed") or found.count("gone") else 0


def asked_for(sweep: str | None) -> Path:
    """The folder of ``WHICH``, a finished run in it or not."""
    runs = runs_folder()
    return find_sweep(sweep, runs) if sweep else latest(runs)


def latest(runs: Path) -> Path:
    """The newest sweep, a finished run in it or not."""
    sweeps = sorted({f.parent.parent for f in runs.glob("*/*/status.json")})
    if not sweeps:
        raise KeelBenchError(f"no sweep under {runs}; start one with `python -m suite`")
    return sweeps[-1]


if __name__ == "__main__":
    sys.exit(main())
