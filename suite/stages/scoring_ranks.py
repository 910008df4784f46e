"""One scoring spread over several processes of this machine, one GPU each.

``suite.stages.ranks`` runs this module once a rank; each loads the model and scores its share
(``baselines.distributed``), and rank 0 writes the whole result.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from baselines import get_method
from baselines.method import Engine, Method, build_method
from baselines.records import Sample, Scores
from suite.plan import ComputeSpec, ModelSpec
from suite.progress import progress
from suite.stages.models import load
from suite.stages.ranks import process_count, rank_main, read_values, run_over_processes, write_values
from suite.stages.score_files import read_scores, write_scores

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
    return run_over_processes(
        __name__, partial(write_job, job=job), read_scores, count, threads=job.compute.threads, what=what
    )


def write_job(folder: Path, job: Job) -> None:
    """``job.json``, and ``samples.parquet``."""
    write_values(
        folder,
        job.samples,
        weights=job.weights,
        spec=job.spec,
        compute=job.compute,
        method={"name": job.method.name, "options": asdict(job.method)},
        seed=job.seed,
    )


def read_job(folder: Path) -> Job:
    """What ``write_job`` wrote."""
    values = read_values(folder)
    named = values.pop("method")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in named["options"].items()}
    return Job(method=build_method(get_method(named["name"]), options), **values)


def _rank(folder: Path, state: Any) -> Callable[[Path], None]:
    job = read_job(folder)
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
