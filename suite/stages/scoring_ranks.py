"""One scoring spread over several processes of this machine, one GPU each.

``suite.stages.ranks`` runs this module once a rank; each loads the model and scores its share
(``baselines.distributed``), and rank 0 writes the whole result.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from baselines import get_method
from baselines.method import Engine, Method, build_method
from baselines.records import Scores
from suite.progress import progress
from suite.stages.models import load
from suite.stages.ranks import RankJob, process_count, rank_main, read_job, run_over_processes
from suite.stages.score_files import read_scores, write_scores

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job(RankJob):
    method: Method

    def values(self) -> dict[str, Any]:
        return {"method": {"name": self.method.name, "options": asdict(self.method)}}

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """What ``write_job`` wrote."""
        values = read_job(folder)
        named = values.pop("method")
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in named["options"].items()}
        return cls(method=build_method(get_method(named["name"]), options), **values)


def processes(asked: int | Literal["auto"], method: Method) -> int:
    """How many processes score: ``asked`` (auto: one a visible GPU), 1 for a method that needs all samples at once.

    Raises:
        KeelBenchError: ``asked`` is below 1.
    """
    count = process_count(asked, "compute.scoring_processes")
    if count > 1 and not method.per_sample:
        log.info("%s scores in one process: its samples depend on each other", method.name)
        return 1
    return count


def score_over_processes(job: Job, count: int) -> Scores:
    """``job``'s scores by ``count`` processes; beyond rounding the same as one process gives.

    Raises:
        KeelBenchError: what a rank raised; or that one died, with the end of its output.
    """
    return run_over_processes(__name__, job, read_scores, count, what=f"{job.method.name}: a scoring")


def _rank(folder: Path, state: Any) -> Callable[[Path], None]:
    job = Job.read(folder)
    model, tokenizer = load(job.weights, job.spec, replace(job.compute, device=str(state.device)))
    share = -(-len(job.samples) // state.num_processes) if state.is_main_process else None
    with progress(f"{job.method.name}, rank 0 of {state.num_processes}", share) as bar:
        engine = Engine(
            tokens_per_batch=job.compute.scoring_tokens_per_batch,
            max_length=job.compute.max_length,
            on_progress=bar if state.is_main_process else (lambda done: None),
        )
        scores = job.method.score(model, tokenizer, job.samples, seed=job.seed, engine=engine)
    return partial(write_scores, scores=scores)


if __name__ == "__main__":
    rank_main(_rank)
