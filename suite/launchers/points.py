"""What the launchers share: a sweep's points, what each of them asks for, and how one is carried out on a node."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from eval.errors import KeelBenchError
from suite.sweep import mark


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a point asks of the cluster."""

    gpus: float = 0  # a share below 1 is for Ray only
    cpus: int = 1
    memory_gb: float | None = None  # GiB; None = as the cluster likes

    def __post_init__(self) -> None:
        problems = []
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            problems.append(f"resources.gpus={self.gpus:g}: a whole number, or a share of one")
        if self.cpus < 1:
            problems.append(f"resources.cpus={self.cpus}: at least 1")
        if self.memory_gb is not None and self.memory_gb <= 0:
            problems.append(f"resources.memory_gb={self.memory_gb:g}: more than 0")
        if problems:
            raise KeelBenchError("\n".join(problems))


@dataclass(frozen=True)
class Point:
    """One job of a sweep, ready to be sent somewhere."""

    number: int
    task: str  # what was typed
    folder: Path  # absolute
    resources: Resources
    config: DictConfig


@dataclass(frozen=True)
class SweepToLaunch:
    """What Hydra hands to a launcher."""

    config: DictConfig
    context: HydraContext
    function: TaskFunction

    @property
    def folder(self) -> Path:
        return Path(str(self.config.hydra.sweep.dir)).absolute()

    def points(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Point]:
        """The jobs, composed.

        Raises:
            KeelBenchError: one asks for what is no resource.
        """
        from suite.plan import build

        setup_globals()
        points = []
        for number, overrides in enumerate(job_overrides, start=first):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = number
                config.hydra.job.num = number
            asked = OmegaConf.to_container(config.resources, resolve=True)
            assert isinstance(asked, dict)
            resources = build(Resources, {str(k): v for k, v in asked.items()}, "resources")
            # As Hydra does for a job: ${hydra:...} is looked up in the job's own configuration.
            before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, config
            try:
                folder, task = self.folder / str(config.hydra.sweep.subdir), config.hydra.job.override_dirname
            finally:
                HydraConfig.instance().cfg = before
            points.append(Point(number, task, folder, resources, config))
        return points


@dataclass(frozen=True)
class Work:
    """A point with all that a process on another machine needs to carry it out; it is pickled on the way."""

    point: Point
    context: HydraContext
    function: TaskFunction
    singletons: Mapping[Any, Any]
    home: Path  # where the sweep was started: relative paths are meant from here
    environment: Mapping[str, str]

    def carry_out(self) -> None:
        """The job's outcome is in its ``status.json`` when this returns.

        Raises:
            KeelBenchError: the folder of the sweep is not on this machine.
        """
        try:
            os.chdir(self.home)
        except OSError as error:
            raise KeelBenchError(
                f"{platform.node()} has no folder {self.home} ({error.strerror}): a sweep must be started in a folder "
                "that all nodes share"
            ) from error
        os.environ.update(self.environment)
        # Where a scheduler does not bind jobs to CPUs, torch would otherwise take all of the machine's.
        os.environ.setdefault("OMP_NUM_THREADS", str(self.point.resources.cpus))
        Singleton.set_state(dict(self.singletons))
        setup_globals()
        HydraConfig.instance().set_config(self.point.config)
        done = run_job(
            hydra_context=self.context,
            task_function=self.function,
            config=self.point.config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        _ = done.return_value  # raises what the job raised


def work_of(sweep: SweepToLaunch, point: Point, environment: Mapping[str, str]) -> Work:
    return Work(point, sweep.context, sweep.function, Singleton.get_state(), Path.cwd(), environment)


def announce(points: Sequence[Point], **driver: Any) -> None:
    """Every job is on record before the cluster has it, so that none can vanish unseen; with the process on which
    they depend, if any."""
    for point in points:
        mark(point.folder, "submitted", task=point.task, **driver)


def told(points: Sequence[Point]) -> list[JobReturn]:
    """What Hydra expects of a launcher. How each job went is in its folder, whence the entry point takes it."""
    return [JobReturn(overrides=[], _return_value=None, status=JobStatus.COMPLETED) for _ in points]
