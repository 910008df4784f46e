"""Sweeps as processes that start within milliseconds and can be killed at any moment.

``python -m suite`` needs seconds to import torch and its companions. This server imports them once and forks a child
for every sweep, which then runs ``suite.__main__.main`` as the command line would. It never computes anything itself,
so that it has no threads when it forks. Requests and answers are JSON lines.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Attempt:
    """A sweep's process that has ended."""

    status: int  # exit status; minus the signal that killed it
    seconds: float
    output: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Launcher:
    """A context around the server."""

    def __enter__(self) -> "Launcher":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive",
                       "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, arguments: list[str], log: Path, **options: Any) -> int:
        """Options: ``file_limit``, the largest file in bytes; ``preflight``, False to start without its checks;
        ``clock``, "jumps" for a wall clock that is put back."""
        return int(self._ask({"start": [str(a) for a in arguments], "log": str(log), **options})["pid"])

    def wait(self, pid: int, log: Path, kill_after: float | None = None) -> Attempt:
        answer = self._ask({"wait": pid, "kill_after": kill_after})
        return Attempt(answer["status"], answer["seconds"], log.read_text(errors="replace"))

    def sweep(self, arguments: list[str], log: Path, kill_after: float | None = None, **options: Any) -> Attempt:
        return self.wait(self.start(arguments, log, **options), log, kill_after)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print as they are imported is no answer
    import gc

    import pandas  # noqa: F401
    import peft  # noqa: F401
    import statsmodels.api  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.trainer  # noqa: F401

    import eval.generation
    import eval.judges.refusal_keywords  # noqa: F401
    import suite.__main__
    import suite.pipeline
    import suite.report
    import suite.tracking.sweep
    import suite.training.fine_tune  # noqa: F401

    gc.collect()
    gc.freeze()  # a child's collections need not go through all that was imported
    started: dict[int, float] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                _become(request)
            started[pid] = time.monotonic()
            answer: dict[str, Any] = {"pid": pid}
        else:
            pid = request["wait"]
            if request["kill_after"] is not None:
                time.sleep(max(0.0, started[pid] + request["kill_after"] - time.monotonic()))
                os.kill(pid, signal.SIGKILL)  # one that has ended waits to be asked, so the number is still its own
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer = {"status": status, "seconds": time.monotonic() - started[pid]}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # what was frozen would be told as leaked


def _become(request: dict[str, Any]) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if not request.get("preflight", True):
        os.environ["SUITE_PREFLIGHT"] = "off"
    if request.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
    if request.get("clock") == "jumps":
        _put_the_clock_back_and_forth()
    sys.argv = ["suite", *request["start"]]
    status = 1
    try:
        from suite.__main__ import main

        status = main()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for output in (sys.stdout, sys.stderr):
            output.flush()
        os._exit(status)


def _put_the_clock_back_and_forth() -> None:
    """Every look at the wall clock finds it a day earlier or an hour later than the look before."""
    import datetime
    import itertools

    import suite.pipeline
    import suite.sweep

    real, jumps = time.time, itertools.cycle((0.0, -86400.0, -82800.0, 3600.0))

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: real() + next(jumps)
    suite.pipeline.datetime = suite.sweep.datetime = Clock  # type: ignore[misc,attr-defined]


if __name__ == "__main__":
    _serve()
