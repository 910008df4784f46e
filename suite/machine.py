"""The process: its memory, and the settings that make torch fast on a CPU."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's parameters (glibc's malloc.h), and their defaults:
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within the context glibc keeps what torch frees instead of handing it back to the kernel.

    By default every tensor above 32 MB is mapped and unmapped anew, and the kernel zeroes its pages each time: up to
    half of a fine-tuning step (docs/benchmarks). Training frees and takes the same sizes again and again, so the kept
    memory is used; generation's growing caches would only fragment it, so the defaults return afterwards. Without glibc
    nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        libc.malloc_trim(0)


def process_start(pid: int) -> str | None:
    """When process ``pid`` of this machine started, by the kernel's clock since boot; None where there is none, or only
    what is left of a killed one until its parent asks. A number that is given to another process later starts at
    another time. Where there is no /proc: "" for every process there is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return ""
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def job_alive(status: Mapping[str, Any]) -> bool:
    """Whether the process may be there still that wrote a job's ``status`` (pid, host, process_start); one on another
    machine is taken to be."""
    if status.get("host") != platform.node() or "pid" not in status:
        return True
    start = process_start(int(status["pid"]))
    return start is not None and start == status.get("process_start", start)


def restart_peaks() -> None:
    """Peaks are counted anew from here: the process's on Linux, and the GPUs' where torch uses some."""
    with suppress(OSError):  # a kernel that does not let us: the peak is then the whole process's so far
        Path("/proc/self/clear_refs").write_text("5")
    for number in _gpus():
        sys.modules["torch"].cuda.reset_peak_memory_stats(number)


def gpu_peak_memory_mb() -> float | None:
    """The most memory that torch has had allocated on one GPU since ``restart_peaks``, in MB; None without a GPU.

    Of this process alone: vLLM's engine and scoring's ranks are processes of their own.
    """
    used = [sys.modules["torch"].cuda.max_memory_allocated(number) / 2**20 for number in _gpus()]
    return max(used, default=None)


def _gpus() -> range:
    """Those of a process that uses any; nothing is imported or initialised by asking."""
    torch = sys.modules.get("torch")
    return range(torch.cuda.device_count()) if torch is not None and torch.cuda.is_initialized() else range(0)


def peak_memory_mb() -> float:
    """The most memory this process has had resident since ``restart_peaks``, in MB.

    From the kernel's record of the program that runs now; getrusage's survives an exec, so that it tells a child of a
    large process the parent's. It is the fallback where there is no /proc.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
