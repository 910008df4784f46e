"""Points as jobs of Slurm, by submitit: submitted and left alone, queued again when they are stopped.

Slurm itself queues a job again that it preempts or whose node fails (``--requeue``). submitit does so when the time
runs out: Slurm sends SIGUSR2 before the end. Either way the point starts once more, and finds its finished stages.
"""

import itertools
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log

from eval.errors import KeelBenchError
from suite.launchers.points import Point, Resources, SweepToLaunch, Work, announce, told, work_of
from suite.launchers.queue import Submitted, settle, submitted
from suite.sweep import STATUS, SweepFolder, mark, read_state
from suite.tracking.run import Terminated

log = logging.getLogger(__name__)


def launch(sweep: SweepToLaunch, points: Sequence[Point], options: Mapping[str, Any]) -> list[JobReturn]:
    """Submit ``points``; returns then, or with ``detach=false`` when the last one has ended, however it did.

    Raises:
        KeelBenchError: no submitit, no Slurm, or Slurm refuses a job.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise KeelBenchError("hydra/launcher=submitit_slurm needs submitit: pip install 'keelbench[slurm]'") from error
    for command in ("sbatch", "srun"):
        if shutil.which(command) is None:
            raise KeelBenchError(f"hydra/launcher=submitit_slurm: no {command} on this machine, so no Slurm")
    for point in points:
        if point.resources.gpus != int(point.resources.gpus):
            raise KeelBenchError(f"resources.gpus={point.resources.gpus}: Slurm gives whole GPUs")

    configure_log(sweep.config.hydra.hydra_logging, sweep.config.hydra.verbose)
    announce(points)
    handed = submitted(sweep.folder)
    before = dict(handed.jobs) if handed else {}  # Hydra hands over long sweeps in several batches
    jobs = dict(before)
    try:
        for resources, same in itertools.groupby(sorted(points, key=_asked), key=lambda point: point.resources):
            jobs |= _submit(sweep, list(same), resources, options)
            Submitted(SweepFolder.ending, jobs, handed.summary if handed else None).write(sweep.folder)
    except Exception as error:
        if taken := _bases(jobs.values()) - _bases(before.values()):  # of other resources: all of a batch, or none
            subprocess.run(["scancel", *taken], timeout=60)
        for point in points:
            mark(point.folder, "failed", task=point.task, error=f"not submitted: {error}")
        raise KeelBenchError(f"Slurm refuses: {error}") from error
    log.info("Slurm: %d points of %s, jobs %s", len(points), sweep.folder, ", ".join(sorted(_bases(jobs.values()))))
    if options["detach"]:
        _leave(sweep.folder, points, jobs, options)
    else:
        _wait(sweep.folder, float(options["poll_s"]))
    return told(points)


def _asked(point: Point) -> tuple[float, int, float, int]:
    asked = point.resources
    return asked.gpus, asked.cpus, asked.memory_gb or 0, point.number


def _bases(ids: Any) -> set[str]:
    return {i.split("_")[0] for i in ids}


def _submit(
    sweep: SweepToLaunch, points: Sequence[Point], resources: Resources, options: Mapping[str, Any]
) -> dict[str, str]:
    """The jobs' ids by the points' folders; one array, or one job each."""
    executor = _executor(sweep.folder, sweep.config.hydra.job.name, resources, options, options["timeout_min"])
    # sbatch hands over the environment, unless a site forbids it.
    environment = {k: v for k, v in os.environ.items() if k.startswith("SUITE_")}
    work = [SlurmWork(work_of(sweep, point, environment)) for point in points]
    jobs = executor.submit_array(work) if options["array"] else [executor.submit(one) for one in work]
    places = [str(point.folder.relative_to(sweep.folder)) for point in points]
    return dict(zip(places, (job.job_id for job in jobs), strict=True))


def _executor(
    sweep: Path, name: str, resources: Resources, options: Mapping[str, Any], minutes: int, **more: Any
) -> Any:
    import submitit

    executor = submitit.SlurmExecutor(folder=sweep / ".submitit" / "%j", max_num_timeout=options["max_num_timeout"])
    given: dict[str, Any] = {
        "partition": options["partition"],
        "account": options["account"],
        "qos": options["qos"],
        "constraint": options["constraint"],
        "gpus_per_node": int(resources.gpus) or None,
        "mem": f"{round(resources.memory_gb * 1024)}M" if resources.memory_gb else None,
        "setup": list(options["setup"]) or None,
    }
    executor.update_parameters(
        job_name=name,
        time=minutes,
        nodes=1,
        ntasks_per_node=1,
        cpus_per_task=resources.cpus,
        # Since Slurm 22.05 a step does not inherit this from its job.
        srun_args=["--cpus-per-task", str(resources.cpus)],
        signal_delay_s=options["signal_delay_s"],
        array_parallelism=options["array_parallelism"],
        additional_parameters={"requeue": True, **options["additional_parameters"]},
        **{k: v for k, v in given.items() if v is not None},
        **more,
    )
    return executor


class SlurmWork:
    """What submitit pickles: it calls it on the node, and ``checkpoint`` when the job's time is up."""

    def __init__(self, work: Work):
        self.work = work
        self.again = False

    def __call__(self) -> None:
        """
        Raises:
            KeelBenchError: the point failed, so that Slurm's own records say so, too.
        """
        self.again = False
        point = self.work.point
        try:
            self.work.carry_out()
        except (SystemExit, Terminated) as stop:  # how submitit leaves after it has queued the job again; SIGTERM
            if self.again or (isinstance(stop, Terminated) and _requeued_after_preemption()):
                mark(point.folder, "submitted", task=point.task, error="stopped by Slurm, and queued again")
            raise
        if read_state(point.folder) != "finished":
            raise KeelBenchError(f"the point failed: {point.folder / STATUS}")

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        self.again = True
        return DelayedSubmission(SlurmWork(self.work))


def _requeued_after_preemption() -> bool:
    """Queue this job again if it was told to stop within its grace time (``GraceTime`` of a partition or QOS): Slurm
    takes a job that then ends for one that failed. One that was cancelled stays so."""
    import submitit

    job = submitit.JobEnvironment().job_id
    shown = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True, timeout=60)
    fields = dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)
    if fields.get("JobState") != "RUNNING" or fields.get("PreemptTime", "None") in ("None", "Unknown"):
        return False
    return subprocess.run(["scontrol", "requeue", job], timeout=60).returncode == 0


def _leave(sweep: Path, points: Sequence[Point], jobs: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Have a last job sum up the sweep, and tell the user how to go on."""
    SweepFolder.detached = True
    summary = None
    if options["summary"]:
        handed = submitted(sweep)
        if handed and handed.summary:  # of an earlier batch; the new one waits for that batch's jobs, too
            subprocess.run(["scancel", handed.summary], timeout=60)
        after = "afterany:" + ":".join(sorted(_bases(jobs.values())))
        small = Resources(memory_gb=4 if any(point.resources.memory_gb for point in points) else None)
        try:
            executor = _executor(sweep, "keelbench-summary", small, options, 60, dependency=after)
            summary = executor.submit(SumUp(sweep, Path.cwd())).job_id
        except Exception as error:  # the points are in the queue; this is a convenience
            log.warning("no summary job (%s): run `python -m suite.finish %s` at the end", error, sweep)
    Submitted(SweepFolder.ending, jobs, summary).write(sweep)
    print(
        f"Submitted; this shell may end.\n  python -m suite.status {sweep}\n  python -m suite.finish {sweep}"
        + (f"      (job {summary} does so when all have ended)" if summary else "")
        + f"\n  scancel {' '.join(sorted(_bases(jobs.values())))}",
    )


class SumUp:
    """The last job of a sweep."""

    def __init__(self, sweep: Path, home: Path):
        self.sweep, self.home = sweep, home

    def __call__(self) -> None:
        from suite.finish import finish

        os.chdir(self.home)
        for _ in range(60):  # Slurm may still be clearing up after the last one
            if not settle(self.sweep):
                break
            time.sleep(5)
        finish(self.sweep)


def _wait(sweep: Path, seconds: float) -> None:
    try:
        left = settle(sweep)
        while left:
            time.sleep(seconds)
            now = settle(sweep)
            if now != left:
                log.info("Slurm: %d points left", now)
            left = now
    except KeyboardInterrupt:
        print(f"\nThe jobs go on. python -m suite.status {sweep}", flush=True)
        raise
