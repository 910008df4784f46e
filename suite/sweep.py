"""Jobs and sweeps: every job leaves its status, a failing one does not stop the others, and the end sums them up."""

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
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.errors import KeelBenchError

log = logging.getLogger(__name__)

STATUS = "status.json"


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
    mark(folder, "running", task=hydra.job.override_dirname)
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(resolved, dict)
        resolved.pop("resources", None)  # the launcher's
        run_id = work({str(k): v for k, v in resolved.items()}, folder, sweep)
    except (KeelBenchError, OmegaConfBaseException) as error:
        for line in str(error).splitlines():
            log.error("%s", line)
        mark(folder, "failed", task=hydra.job.override_dirname, error=str(error))
    except Exception as error:
        (folder / "traceback.txt").write_text(traceback.format_exc())
        log.error("%s: %s (traceback in %s)", type(error).__name__, error, folder / "traceback.txt")
        mark(folder, "failed", task=hydra.job.override_dirname, error=f"{type(error).__name__}: {error}")
    except BaseException as error:  # interrupted or told to stop: say so, and stop
        mark(folder, "failed", task=hydra.job.override_dirname, error=repr(error))
        raise
    else:
        mark(folder, "finished", task=hydra.job.override_dirname, run_id=run_id)


def mark(folder: Path, state: str, **fields: Any) -> None:
    """Put a job's state on record: submitted, running, finished or failed."""
    path, now = folder / STATUS, datetime.now(UTC).isoformat(timespec="seconds")
    folder.mkdir(parents=True, exist_ok=True)
    if state == "running":  # by which `suite.status` sees whether it still does
        fields |= {"started": now, "pid": os.getpid(), "host": platform.node()}
    elif path.is_file():
        fields["started"] = json.loads(path.read_text()).get("started", now)
    text = json.dumps({"state": state, **fields, "time": now}, indent=1)
    part = path.with_name(f".{STATUS}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)  # whole or not at all: others read it meanwhile


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

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        type(self).path = Path(config.hydra.runtime.output_dir).parent

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        type(self).path = Path(config.hydra.sweep.dir)


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
        from suite.sweep_tracking import track_sweep

        print_comparison(collect(sweep, write=True))
        runs = load_sweep(sweep)[0]
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
    return {f.parent.name: json.loads(f.read_text()) for f in sorted(sweep.glob(f"*/{STATUS}"))}
