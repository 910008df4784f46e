"""A job run by several processes of this machine, one GPU each.

The stage starts ``torchrun``, which runs the job's module once a rank; rank 0 writes the result. Only the machine's own
temporary files pass between them, so job and result travel as pickles.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from eval.errors import KeelBenchError

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


def run_over_processes(module: str, job: Any, count: int, *, threads: int | None, what: str) -> Any:
    """What rank 0 of ``count`` processes of ``python -m module`` makes of ``job``.

    Args:
        threads: CPU threads a process; None = the cores, shared out.
        what: what died, in the error's words, if one does.

    Raises:
        KeelBenchError: what a rank raised; or that one died, with the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="keelbench-") as scratch:
        (Path(scratch) / "job.pickle").write_bytes(pickle.dumps(job))
        threads = threads or max(1, (os.cpu_count() or 1) // count)
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
        result = Path(scratch) / "result.pickle"
        if not result.is_file():
            last = "\n".join(said.splitlines()[-_TOLD:])
            raise KeelBenchError(f"{what} process died (status {launcher.returncode})\n{last}")
        found = pickle.loads(result.read_bytes())  # noqa: S301 (our own file)
    if isinstance(found, KeelBenchError):
        raise found
    return found


def rank_main(work: Callable[[Any, Any], Any]) -> None:
    """One rank, the whole process: joins the group that accelerate makes of torchrun's environment, does
    ``work(job, accelerate's state)``, and rank 0 writes what it returns or the KeelBenchError it raises."""
    from accelerate import PartialState

    scratch = Path(sys.argv[1])
    job = pickle.loads((scratch / "job.pickle").read_bytes())  # noqa: S301 (our own file)
    state = PartialState(cpu=job.compute.device == "cpu")
    try:
        result = work(job, state)
    except KeelBenchError as error:
        result = KeelBenchError(str(error))
    if state.is_main_process:
        beside = scratch / "result.part"
        beside.write_bytes(pickle.dumps(result))
        beside.rename(scratch / "result.pickle")
    state.destroy_process_group()
    # Not Python's own way out: it aborts where gloo's thread still lets go of the last exchange's tensors (torch 2.13).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
