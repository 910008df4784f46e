"""One scoring spread over several processes of this machine, one GPU each.

``suite.stages.ranks`` runs this module once a rank; each loads the model and scores its share
(``baselines.distributed``), and rank 0 returns the whole result.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from baselines.method import Engine, Method
from baselines.records import Sample, Scores
from suite.plan import ComputeSpec, ModelSpec
from suite.progress import progress
from suite.stages.models import load
from suite.stages.ranks import process_count, rank_main, run_over_processes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What every rank needs."""

    method: Method
    samples: Sequence[Sample]
    weights: Path
    spec: ModelSpec
    compute: ComputeSpec
    seed: int


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
    what = f"{job.method.name}: a scoring"
    scores: Scores = run_over_processes(__name__, job, count, threads=job.compute.threads, what=what)
    return scores


def _rank(job: Job, state: Any) -> Scores:
    model, tokenizer = load(job.weights, job.spec, replace(job.compute, device=str(state.device)))
    share = -(-len(job.samples) // state.num_processes) if state.is_main_process else None
    with progress(f"{job.method.name}, rank 0 of {state.num_processes}", share) as bar:
        engine = Engine(
            tokens_per_batch=job.compute.scoring_tokens_per_batch,
            max_length=job.compute.max_length,
            on_progress=bar if state.is_main_process else (lambda done: None),
        )
        return job.method.score(model, tokenizer, job.samples, seed=job.seed, engine=engine)


if __name__ == "__main__":
    rank_main(_rank)
