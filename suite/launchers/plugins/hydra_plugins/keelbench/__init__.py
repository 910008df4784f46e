"""The launchers by which Hydra knows them: it takes launchers from the namespace ``hydra_plugins`` alone, and reads
every module there at each start. What they do is in ``suite.launchers``."""

import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class _ClusterLauncher(Launcher):
    """Keeps what Hydra hands over, and tells a user's mistake in one line."""

    cluster = ""  # a module of suite.launchers

    def __init__(self, **options: Any):
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from importlib import import_module

        from eval.errors import KeelBenchError
        from suite.launchers.points import SweepToLaunch

        sweep = SweepToLaunch(self.config, self.hydra_context, self.task_function)
        options = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in self.options.items()}
        try:
            launcher = import_module(f"suite.launchers.{self.cluster}")
            returned: Sequence[JobReturn] = launcher.launch(
                sweep, sweep.points(job_overrides, initial_job_idx), options
            )
        except KeelBenchError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        return returned


class RayLauncher(_ClusterLauncher):
    """``hydra/launcher=ray``"""

    cluster = "ray"


class SlurmLauncher(_ClusterLauncher):
    """``hydra/launcher=submitit_slurm``"""

    cluster = "slurm"
