"""A job run by several processes of this machine, one GPU each.

The stage starts ``torchrun``, which runs the job's module once a rank; rank 0 writes the result. What passes between
them lies in a temporary folder, as JSON, Parquet, Arrow: whoever could write there could not make a rank run code of
theirs.
"""

import json
import os
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from baselines.records import Sample
from eval.errors import KeelBenchError
from suite.plan import ComputeSpec, ModelSpec
from suite.stages.sample_table import SampleTable
from suite.storage.tables import read_table, write_table

R = TypeVar("R")

_TOLD = 15  # last lines of a dead worker's output that its error shows


def process_count(asked: int | Literal["auto"], setting: str) -> int:
    """``asked``; auto: one a visible GPU.

    Raises:
        KeelBenchError: ``asked`` is below 1.
    """
    if asked == "auto":
        import torch

        return max(1, torch.cuda.device_count())
    if asked < 1:
        raise KeelBenchError(f"{setting}={asked}; auto, or a number from 1")
    return asked


@dataclass(frozen=True, kw_only=True)
class RankJob(ABC):
    """What every rank needs, whatever it does."""

    samples: Sequence[Sample]
    weights: Path
    spec: ModelSpec
    compute: ComputeSpec
    seed: int

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """What else there is, as JSON values: ``read_job`` gives them back."""


def run_over_processes(module: str, job: RankJob, read_result: Callable[[Path], R], count: int, *, what: str) -> R:
    """What rank 0 of ``count`` processes of ``python -m module`` makes of ``job``.

    Args:
        module: reads the job with ``read_job`` out of the folder that its ``rank_main`` is given.
        read_result: reads what rank 0 left in a folder.
        what: what died, in the error's words, if one does.

    Raises:
        KeelBenchError: what a rank raised; or that one died, with the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="keelbench-") as scratch:
        write_job(Path(scratch), job)
        threads = job.compute.threads or max(1, (os.cpu_count() or 1) // count)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        with subprocess.Popen(
            [*command, "-m", module, scratch],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.STDOUT,  # rank 0 shows its progress on a terminal
            text=True,
        ) as launcher:
            try:
                said, _ = launcher.communicate()
            except BaseException:  # this process is told to stop: torchrun ends its ranks when it is told, not killed
                launcher.terminate()
                raise
        result, problem = Path(scratch) / "result", Path(scratch) / "error.txt"
        if problem.is_file():
            raise KeelBenchError(problem.read_text(encoding="utf-8"))
        if not result.is_dir():
            last = "\n".join(said.splitlines()[-_TOLD:])
            raise KeelBenchError(f"{what} process died (status {launcher.returncode})\n{last}")
        return read_result(result)


def rank_main(work: Callable[[Path, Any], Callable[[Path], None]]) -> None:
    """One rank, the whole process: joins the group that accelerate makes of torchrun's environment and does
    ``work(the job's folder, accelerate's state)``. What that returns writes the result into a folder, for rank 0; a
    KeelBenchError's words are written in its place."""
    from accelerate import PartialState

    scratch = Path(sys.argv[1])
    on_cpu = json.loads((scratch / "job.json").read_text(encoding="utf-8"))["compute"]["device"] == "cpu"
    state = PartialState(cpu=on_cpu)
    write_result: Callable[[Path], None] | None = None
    problem = ""
    try:
        write_result = work(scratch, state)
    except KeelBenchError as error:
        problem = str(error)
    if state.is_main_process:
        beside = scratch / "part"
        if write_result is None:
            beside.write_text(problem, encoding="utf-8")
            beside.rename(scratch / "error.txt")
        else:
            beside.mkdir()
            write_result(beside)
            beside.rename(scratch / "result")
    state.destroy_process_group()
    # Not Python's own way out: it aborts where gloo's thread still lets go of the last exchange's tensors (torch 2.13).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def write_job(folder: Path, job: RankJob) -> None:
    """``job.json`` and, where the samples do not lie in a file already, ``samples.parquet``."""
    values = job.values() | {
        "weights": str(job.weights),
        "spec": asdict(replace(job.spec, align=None)),  # these weights are aligned already
        "compute": asdict(job.compute),
        "seed": job.seed,
    }
    if isinstance(job.samples, SampleTable):
        values["table"] = str(job.samples.path)
    else:
        write_table(folder / "samples.parquet", [asdict(sample) for sample in job.samples])
    (folder / "job.json").write_text(json.dumps(values), encoding="utf-8")


def read_job(folder: Path) -> dict[str, Any]:
    """What ``write_job`` wrote: a ``RankJob``'s fields, and its other values."""
    values: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    table = values.pop("table", None)
    return values | {
        "samples": [Sample(**row) for row in read_table(folder / "samples.parquet")]
        if table is None
        else SampleTable(Path(table)),
        "weights": Path(values["weights"]),
        "spec": ModelSpec(**values["spec"]),
        "compute": ComputeSpec(**values["compute"]),
    }
