"""Several trainings one after the other in one group of processes; ``suite.stages.training_ranks`` has one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from suite.stages import training_ranks
from suite.stages.ranks import RankJob, rank_main, read_job, run_over_processes, write_job


@dataclass(frozen=True, kw_only=True)
class Group(RankJob):
    folder: Path  # of the jobs

    def values(self) -> dict[str, Any]:
        return {"folder": str(self.folder)}


def run(jobs: list[training_ranks.Job], count: int, folder: Path) -> None:
    """Train ``jobs``, which compute alike, over ``count`` processes; they are handed over in ``folder``."""
    for number, job in enumerate(jobs):
        (folder / str(number)).mkdir(parents=True)
        write_job(folder / str(number), job)
    one = jobs[0]
    group = Group(samples=[], weights=one.weights, spec=one.spec, compute=one.compute, seed=one.seed, folder=folder)
    run_over_processes(__name__, group, lambda result: None, count, what="a test's")


def _rank(folder: Path, state: Any) -> Callable[[Path], None]:
    for place in sorted(Path(read_job(folder)["folder"]).iterdir()):
        write_work = training_ranks._rank(place, state)
    return write_work


if __name__ == "__main__":
    rank_main(_rank)
