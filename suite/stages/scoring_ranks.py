"""One scoring spread over several processes of this machine, one GPU each.

The stage starts ``torchrun``, which runs this module once a rank; each loads the model and scores its share
(``baselines.distributed``), and rank 0 writes the whole result. Only the machine's own temporary files pass between
them, so the job travels as a pickle.
"""

import logging
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from baselines.method import Engine, Method
from baselines.records import Sample, Scores
from eval.errors import KeelBenchError
from suite.plan import ComputeSpec, ModelSpec
from suite.progress import progress
from suite.stages.models import load

log = logging.getLogger(__name__)

_TOLD = 15  # last lines of a dead worker's output that its error shows


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
    if asked == "auto":
        import torch

        count = max(1, torch.cuda.device_count())
    else:
        count = asked
    if count < 1:
        raise KeelBenchError(f"compute.scoring_processes={asked}; auto, or a number from 1")
    if count > 1 and not method.per_sample:
        log.info("%s scores in one process: its samples depend on each other", method.name)
        return 1
    return count


def score_over_processes(job: Job, count: int) -> Scores:
    """``job``'s scores by ``count`` processes; beyond rounding the same as one process gives.

    Raises:
        KeelBenchError: what a rank raised; or that one died, with the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="keelbench-") as scratch:
        (Path(scratch) / "job.pickle").write_bytes(pickle.dumps(job))
        threads = job.compute.threads or max(1, (os.cpu_count() or 1) // count)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        done = subprocess.run(
            [*command, "-m", __name__, scratch],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.STDOUT,  # rank 0 shows its progress on a terminal
            text=True,
            check=False,
        )
        result = Path(scratch) / "result.pickle"
        if not result.is_file():
            last = "\n".join(done.stdout.splitlines()[-_TOLD:])
            raise KeelBenchError(f"{job.method.name}: a scoring process died (status {done.returncode})\n{last}")
        found = pickle.loads(result.read_bytes())  # noqa: S301 (our own file)
    if isinstance(found, KeelBenchError):
        raise found
    assert isinstance(found, Scores)
    return found


def _rank(scratch: Path) -> None:
    """One rank: joins the group that accelerate makes of torchrun's environment, scores, and rank 0 writes."""
    from accelerate import PartialState

    job: Job = pickle.loads((scratch / "job.pickle").read_bytes())  # noqa: S301 (our own file)
    state = PartialState(cpu=job.compute.device == "cpu")
    model, tokenizer = load(job.weights, job.spec, replace(job.compute, device=str(state.device)))
    share = -(-len(job.samples) // state.num_processes) if state.is_main_process else None
    result: Scores | KeelBenchError
    try:
        with progress(f"{job.method.name}, rank 0 of {state.num_processes}", share) as bar:
            engine = Engine(
                tokens_per_batch=job.compute.scoring_tokens_per_batch,
                max_length=job.compute.max_length,
                on_progress=bar if state.is_main_process else (lambda done: None),
            )
            result = job.method.score(model, tokenizer, job.samples, seed=job.seed, engine=engine)
    except KeelBenchError as error:
        result = KeelBenchError(str(error))
    if state.is_main_process:
        beside = scratch / "result.part"
        beside.write_bytes(pickle.dumps(result))
        beside.rename(scratch / "result.pickle")
    state.destroy_process_group()


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
    # Not Python's own way out: it aborts where gloo's thread still lets go of the last exchange's tensors (torch 2.13).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
