"""Jobs and sweeps: every job leaves its status, a failing one does not stop the others, and the end sums them up."""

import contextlib
import itertools
import json
import logging
import os
import platform
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from eval.errors import KeelBenchError
from suite.configuration.overrides import no_value
from suite.machine import job_alive, process_start
from suite.storage.durable import replace_text

log = logging.getLogger(__name__)

STATUS = "status.json"
DEATHS = 3  # of one point's process, after which it is not tried again


def job(config: DictConfig) -> None:
    """One run of the main pipeline: one point of a sweep, or a single one."""

    def work(values: dict[str, Any], folder: Path, sweep: str) -> str:
        from suite.pipeline import run
        from suite.plan import plan_from_config

        plan = plan_from_config(values)
        log.info("%s on %s, %s, seed %d → %s", plan.label, plan.model.name, plan.dataset.name, plan.seed, folder)
        return run(plan, folder, sweep).run_id

    carry_out(config, work)


def carry_out(config: DictConfig, work: Callable[[dict[str, Any], Path, str], str]) -> None:
    """Do ``work(resolved configuration, run folder, name of the sweep)``, which returns the run's id. The outcome is in
    ``status.json``; an error is told, not raised, so that the other points of a sweep are carried out; the process ends
    non-zero all the same (``told_failures``)."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    sweep = folder.parent.name
    before = _status_in(folder)  # of this point, where a sweep goes on in its folder
    task = hydra.job.override_dirname
    if before.get("state") == "finished" and before.get("task") == task:
        log.info("finished already: %s", task or folder)
        return
    killed = before.get("killed", 0)
    if before.get("state") == "running":
        if job_alive(before) and before.get("pid") != os.getpid():
            raise KeelBenchError(f"process {before.get('pid')} on {before.get('host')} is at work in {folder}")
        killed += 1
    if killed >= DEATHS:
        error = f"its process was killed {killed} times without a word; by the kernel for lack of memory?"
        mark(folder, "failed", task=task, error=error)
        return
    mark(folder, "running", task=task, **({"killed": killed} if killed else {}))
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(resolved, dict)
        resolved.pop("resources", None)  # the launcher's
        run_id = work({str(k): v for k, v in resolved.items()}, folder, sweep)
    except (KeelBenchError, OmegaConfBaseException) as error:
        told = str(error)
        if isinstance(error, MissingMandatoryValue):
            told = no_value(error.full_key)
        for line in told.splitlines():
            log.error("%s", line)
        mark(folder, "failed", task=task, error=told)
    except Exception as error:
        with contextlib.suppress(OSError):  # the error itself may be a full disk
            (folder / "traceback.txt").write_text(traceback.format_exc())
        log.error("%s: %s (traceback in %s)", type(error).__name__, error, folder / "traceback.txt")
        mark(folder, "failed", task=task, error=f"{type(error).__name__}: {error}")
    except BaseException as error:  # interrupted or told to stop: say so, and stop
        mark(folder, "failed", task=task, error=repr(error))
        raise
    else:
        mark(folder, "finished", task=task, run_id=run_id)


def mark(folder: Path, state: str, **fields: Any) -> None:
    """Put a job's state on record: submitted, running, finished or failed."""
    path, now = folder / STATUS, datetime.now(UTC).isoformat(timespec="seconds")
    folder.mkdir(parents=True, exist_ok=True)
    if state == "running":  # by which `suite.status` sees whether it still does
        fields |= {
            "started": now,
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "host": platform.node(),
        }
    elif before := _status_in(folder):
        fields["started"] = before.get("started", now)
    try:
        replace_text(path, json.dumps({"state": state, **fields, "time": now}, indent=1))
    except OSError as error:
        if state == "running":
            raise
        log.error("%s cannot be written: %s", path, error)  # it goes on saying "running", which counts as a failure


def _status_in(folder: Path) -> dict[str, Any]:
    """What ``folder`` says of its job; nothing where it says nothing that can be read."""
    try:
        found = json.loads((folder / STATUS).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def mark_dead(folder: Path, task: str, error: str) -> None:
    """A job that can no longer tell how it went failed, unless it had told before."""
    if read_state(folder) not in ("finished", "failed"):
        mark(folder, "failed", task=task, error=error)


def read_state(folder: Path) -> str:
    """A job's recorded state; "unknown" where there is none."""
    try:
        return str(json.loads((folder / STATUS).read_text())["state"])
    except (OSError, ValueError, KeyError):
        return "unknown"


class SweepFolder(Callback):
    """Remembers where the jobs left their outcomes. (Hydra turns a callback's exceptions into warnings, so what has to
    be reliable is done by the entry point, after Hydra has returned.)"""

    path: ClassVar[Path | None] = None
    detached: ClassVar[bool] = False  # a launcher has handed the jobs over and does not wait for them
    ending: ClassVar[str] = ""  # module:function that sums up this entry point's sweeps

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not _named(config, "hydra.run.dir"):
            place = Path(config.hydra.run.dir)
            free = _claimed(place.parent)
            if free != place.parent:
                with read_write(config.hydra):
                    config.hydra.run.dir = str(free / place.name)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        place = Path(config.hydra.sweep.dir)
        if not _named(config, "hydra.sweep.dir"):
            place = _claimed(place)
            with read_write(config.hydra), open_dict(config.hydra):
                config.hydra.sweep.dir = str(place)
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={place}")  # by which every job finds it
        type(self).path = place

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        type(self).path = Path(config.hydra.runtime.output_dir).parent

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        type(self).path = Path(config.hydra.sweep.dir)


def _named(config: DictConfig, setting: str) -> bool:
    """Whether the command line names the folder."""
    return any(str(override).startswith(f"{setting}=") for override in config.hydra.overrides.hydra)


def _claimed(folder: Path) -> Path:
    """``folder``, made; or the first of ``folder-2``, ``folder-3``, ... that nobody has: two sweeps that start within
    one second, or when a clock is put back, must not write over each other."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError


def killed_points(sweep: Path) -> list[str]:
    """Points of a sweep whose process is no more although it did not end."""
    return [name for name, status in _statuses(sweep).items() if status["state"] == "running" and not job_alive(status)]


def summarise(sweep: Path) -> bool:
    """The end of a sweep: ``results.parquet``, ``report.html``, the comparison table, and every failure by name.

    Returns:
        Whether every run finished.
    """
    if any(status["state"] == "finished" for status in _statuses(sweep).values()):
        from suite.report import write_report
        from suite.report.load import load_sweep
        from suite.results import collect, print_comparison
        from suite.statistics.compare import compare, write_differences
        from suite.statistics.outcomes import points_of
        from suite.statistics.terminal import print_differences
        from suite.tracking.sweep import track_sweep

        rows, runs = collect(sweep, write=True), load_sweep(sweep)[0]
        print_comparison(rows, {run.row["run_id"]: run.name for run in runs})
        found = compare(points_of(runs))
        write_differences(sweep, found)
        print_differences(found)
        track_sweep(sweep, runs, found)
        print(f"\nReport: {write_report(sweep)}\nRows:   {sweep / 'results.parquet'}")
    return not told_failures(sweep)


def told_failures(sweep: Path) -> bool:
    """Name every failed run and its error on standard error.

    Returns:
        Whether any failed, or none ran.
    """
    statuses = _statuses(sweep)
    failures = {name: s for name, s in statuses.items() if s["state"] != "finished"}
    for name, status in failures.items():
        print(f"FAILED {sweep.name}/{name} ({status['task']}): {status.get('error', status['state'])}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {len(statuses)} runs failed.", file=sys.stderr)
    return bool(failures) or not statuses


def _statuses(sweep: Path) -> dict[str, dict[str, Any]]:
    files = sorted(sweep.glob(f"*/{STATUS}"))
    return {f.parent.name: {"state": "unreadable", "task": "?", **_status_in(f.parent)} for f in files}
