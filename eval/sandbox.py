"""Generated code never runs in this process: one sandboxed process a program, told apart by its exit status alone.

``bubblewrap`` gives a program its own namespaces: no network but a loopback of its own, no home, no host file but the
interpreter and ``/usr``, all of it read-only, and one temporary folder of limited size. It sees no process but its own;
it has no capability and cannot gain any; CPU seconds, memory, file size and the number of processes are limited.

The limit on processes (``RLIMIT_NPROC``) counts per user, and the kernel never applies it to the machine's own root,
not even behind a user namespace that maps it to somebody else. So where we are root, bubblewrap makes no user namespace
and the program runs as a user of its own that nobody else has; where we are not, it runs in a user namespace, in which
since Linux 5.14 only its own processes count. Both are set inside, past the namespaces. ``check`` tries all of it
before a run begins and refuses a machine on which any part does not hold.

``subprocess_unsafe`` is a separate process with time and memory limits in a temporary folder, and nothing else: the
program has the user's rights, files and network. It is never chosen for the user.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from eval.errors import KeelBenchError, UnknownNameError

NAMES = ("bubblewrap", "subprocess_unsafe")
PASSED = 97  # exit status of a program that ran to its end; one that leaves early (`exit()`) has another
_BASE_USER = 1_000_000_000  # user ids no account has
_numbers = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 3  # HumanEval's time-out, in CPU time: a busy machine does not change the verdict
    wall_seconds: int = 30  # for programs that wait
    memory_mb: int = 512  # address space of a process
    processes: int = 8  # threads included
    file_mb: int = 1
    scratch_mb: int = 16  # the temporary folder


@dataclass(frozen=True)
class Outcome:
    """What became of a program; ``reason`` is "" where it passed."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class Sandbox:
    """Runs Python programs. ``name`` is one of ``NAMES``."""

    name: str = "bubblewrap"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise UnknownNameError("sandbox", self.name, NAMES)

    def run(self, program: str) -> Outcome:
        """Run one program to its end or to a limit."""
        ending = f"\nimport os as _os\n_os._exit({PASSED})\n"
        command = self._bubblewrap() if self.name == "bubblewrap" else self._plain()
        with (
            tempfile.TemporaryFile() as source,
            tempfile.TemporaryFile() as errors,
            tempfile.TemporaryDirectory(prefix="keelbench-") as scratch,
        ):
            source.write((program + ending).encode(errors="replace"))
            source.seek(0)
            process = subprocess.Popen(
                command,
                stdin=source,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=scratch if self.name == "subprocess_unsafe" else "/",
                env={"PATH": "/usr/bin:/bin", "HOME": scratch},
                start_new_session=True,
            )
            try:
                status = process.wait(self.limits.wall_seconds)
            except subprocess.TimeoutExpired:
                return Outcome(False, f"still running after {self.limits.wall_seconds} s")
            finally:
                _end(process)
            if status == PASSED:
                return Outcome(True, "")
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
            lines = errors.read().decode(errors="replace").strip().splitlines()
            if status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
                return Outcome(False, f"more than {self.limits.cpu_seconds} s of CPU time")
            return Outcome(False, lines[-1][:200] if lines else f"exit status {status}")

    def run_all(self, programs: Sequence[str], workers: int | None = None) -> list[Outcome]:
        """All outcomes, in order; a few programs run at a time."""
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            return list(pool.map(self.run, programs))

    def check(self) -> None:
        """Prove that programs run and that the walls hold.

        Raises:
            KeelBenchError: they do not, with what is missing.
        """
        if self.name == "bubblewrap" and shutil.which("bwrap") is None:
            raise KeelBenchError(f"generated code needs a sandbox and bubblewrap is not installed. {_HELP}")
        outcome = self.run(self._probe() if self.name == "bubblewrap" else "")
        if not outcome.passed:
            raise KeelBenchError(f"generated code needs a sandbox and {self.name} fails: {outcome.reason}. {_HELP}")

    def _plain(self) -> list[str]:
        return [*self._limited(), sys.executable, "-I", "-"]

    def _limited(self) -> list[str]:
        """A command that sets the limits and goes on as the command behind it."""
        used = self.limits
        return [
            "/usr/bin/prlimit",
            f"--cpu={used.cpu_seconds}:{used.cpu_seconds + 1}",  # a signal with a name first, then the end
            f"--as={used.memory_mb << 20}",
            f"--fsize={used.file_mb << 20}",
            f"--nproc={used.processes}",
            "--core=0",
            "--",
        ]

    def _bubblewrap(self) -> list[str]:
        prefix = Path(os.path.realpath(sys.base_prefix))
        user = str(_BASE_USER + (os.getpid() << 6) + next(_numbers) % 64)
        walls = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
                 "--die-with-parent", "--new-session", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin",
                 "--setenv", "HOME", "/tmp", "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"]  # fmt: skip
        for place in ("/lib", "/lib64", "/bin"):
            if os.path.islink(place):
                walls += ["--symlink", os.readlink(place), place]
            elif os.path.isdir(place):
                walls += ["--ro-bind", place, place]
        if not prefix.is_relative_to("/usr"):
            for parent in reversed(prefix.parents[:-1]):  # bubblewrap's own would be for its user's eyes only
                walls += ["--dir", str(parent), "--chmod", "0755", str(parent)]
            walls += ["--ro-bind", str(prefix), str(prefix)]
        walls += ["--proc", "/proc", "--dev", "/dev", "--size", str(self.limits.scratch_mb << 20), "--tmpfs", "/tmp",
                  "--chmod", "1777", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/",
                  "--chdir", "/tmp"]  # fmt: skip
        program = [*self._limited(), str(prefix / "bin" / "python3"), "-I", "-"]
        if os.geteuid() != 0:
            return [*walls, "--unshare-user", *program]
        drop = ["/usr/bin/setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--inh-caps=-all", "--"]
        return [*walls, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", *drop, *program]

    def _probe(self) -> str:
        """A program that passes only where every wall stands."""
        return _PROBE.format(home=str(Path.home()), processes=self.limits.processes, memory=self.limits.memory_mb)


_HELP = (
    "Install it (`apt-get install bubblewrap`), leave out the tasks that run code (humaneval), or, where the machine "
    "is itself a sandbox, say utility.sandbox=subprocess_unsafe"
)

_PROBE = """
import errno, os, socket, sys, time
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert int(status["CapEff"], 16) == 0, "the program has capabilities"
assert [name for _, name in socket.if_nameindex()] in ([], ["lo"]), "the program sees the network"
for place in ("/", "/usr", "/dev", "/dev/shm"):
    try:
        open(place + "/keelbench", "w")
    except OSError:
        continue
    sys.exit(place + " can be written to")
open("/tmp/keelbench", "w").write("x")
home = {home!r}
assert not os.path.isdir(home) or not any(entry.is_file() for entry in os.scandir(home)), "the home is visible"
try:
    bytearray({memory} << 20)
    sys.exit("memory is not limited")
except MemoryError:
    pass
try:
    for _ in range({processes} + 1):
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
    sys.exit("the number of processes is not limited")
except BlockingIOError:
    pass
"""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program with all it started (bubblewrap's process namespace dies with it)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
