"""One scoring spread over several processes of this machine, one GPU each.

The stage starts ``torchrun``, which runs this module once a rank; each loads the model and scores its share
(``baselines.distributed``), and rank 0 writes the whole result. What passes between them lies in a temporary folder, as
JSON and Parquet: whoever could write there could not make a rank run code of theirs.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from baselines import get_method
from baselines.method import Engine, Method, build_method
from baselines.records import Sample, Scores
from eval.errors import KeelBenchError
from suite.plan import ComputeSpec, ModelSpec
from suite.progress import progress
from suite.stages.models import load
from suite.stages.score_files import read_scores, write_scores
from suite.tables import read_table, write_table

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
        write_job(Path(scratch), job)
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
        result, problem = Path(scratch) / "result", Path(scratch) / "error.txt"
        if problem.is_file():
            raise KeelBenchError(problem.read_text(encoding="utf-8"))
        if not result.is_dir():
            last = "\n".join(done.stdout.splitlines()[-_TOLD:])
            raise KeelBenchError(f"{job.method.name}: a scoring process died (status {done.returncode})\n{last}")
        return read_scores(result)


def write_job(folder: Path, job: Job) -> None:
    """``job.json``, and ``samples.parquet``."""
    values = {
        "method": {"name": job.method.name, "options": asdict(job.method)},
        "weights": str(job.weights),
        "spec": asdict(replace(job.spec, align=None)),  # these weights are aligned already
        "compute": asdict(job.compute),
        "seed": job.seed,
    }
    write_table(folder / "samples.parquet", [asdict(sample) for sample in job.samples])
    (folder / "job.json").write_text(json.dumps(values), encoding="utf-8")


def read_job(folder: Path) -> Job:
    """What ``write_job`` wrote."""
    values = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in values["method"]["options"].items()}
    method: Method = build_method(get_method(values["method"]["name"]), options)
    samples = [Sample(**row) for row in read_table(folder / "samples.parquet")]
    spec, compute = ModelSpec(**values["spec"]), ComputeSpec(**values["compute"])
    return Job(method, samples, Path(values["weights"]), spec, compute, values["seed"])


def _rank(scratch: Path) -> None:
    """One rank: joins the group that accelerate makes of torchrun's environment, scores, and rank 0 writes."""
    from accelerate import PartialState

    job = read_job(scratch)
    state = PartialState(cpu=job.compute.device == "cpu")
    model, tokenizer = load(job.weights, job.spec, replace(job.compute, device=str(state.device)))
    share = -(-len(job.samples) // state.num_processes) if state.is_main_process else None
    result: Scores | None = None
    problem = ""
    try:
        with progress(f"{job.method.name}, rank 0 of {state.num_processes}", share) as bar:
            engine = Engine(
                tokens_per_batch=job.compute.scoring_tokens_per_batch,
                max_length=job.compute.max_length,
                on_progress=bar if state.is_main_process else (lambda done: None),
            )
            result = job.method.score(model, tokenizer, job.samples, seed=job.seed, engine=engine)
    except KeelBenchError as error:
        problem = str(error)
    if state.is_main_process:
        beside = scratch / "part"
        if result is None:
            beside.write_text(problem, encoding="utf-8")
            beside.rename(scratch / "error.txt")
        else:
            beside.mkdir()
            write_scores(beside, result)
            beside.rename(scratch / "result")
    state.destroy_process_group()


if __name__ == "__main__":
    _rank(Path(sys.argv[1]))
    # Not Python's own way out: it aborts where gloo's thread still lets go of the last exchange's tensors (torch 2.13).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
