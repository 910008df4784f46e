"""No orphans: what a process started is killed when the process itself is killed.

vLLM runs its engine in processes of their own, which go on, and keep their memory, when their parent gets a SIGKILL:
nothing is left then that could tell them. A watchdog is a small process beside the parent. It remembers what the parent
started after it, and when the parent is gone it kills what is left of that.
"""

import os
import subprocess
import sys
import time
from types import TracebackType

_SECONDS = 0.5  # between two looks


class Watchdog:
    """A context: processes that this one starts within it do not outlive it."""

    def __enter__(self) -> "Watchdog":
        # In a session of its own: a Ctrl-C at the terminal is the parent's to deal with.
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, str(os.getpid())], start_new_session=True, stdin=subprocess.DEVNULL
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()


def _watch(parent: int) -> None:
    import psutil

    mine, watched = psutil.Process().create_time(), psutil.Process(parent)
    known: dict[int, psutil.Process] = {}
    while os.getppid() == parent:
        try:
            for child in watched.children(recursive=True):
                if child.pid != os.getpid() and child.create_time() > mine:
                    known[child.pid] = child
        except psutil.Error:  # one ended while it was looked at
            continue
        time.sleep(_SECONDS)
    for child in known.values():
        try:
            if child.is_running():  # the same process, and not another that was given its number
                child.kill()
        except psutil.Error:
            continue


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
