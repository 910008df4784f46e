"""Whether a lock in the cache's folder keeps a second process out, and what its mount says of other machines.

Two processes of one machine are all that can be tried here. A lock that its file system keeps to itself (NFS mounted
with ``nolock`` or ``local_lock``, Lustre with ``localflock``, many FUSE file systems) passes that trial; the mount's
options tell.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from suite.preflight.findings import Finding, State

CHECK = "locks in the cache"
SECONDS = 20.0  # for a child to start, and for a dead one's lock to be free
ELSEWHERE = "paths.cache= on a file system whose locks all machines see; docs/robustness.md has a trial with two"

# The other process: says whether it gets the lock; once more when it is told to; and then holds it until it is killed.
_OTHER = """
import sys, warnings
from filelock import FileLock, Timeout
warnings.simplefilter("ignore")
lock = FileLock(sys.argv[1])
for seconds in (0, float(sys.argv[2])):
    try:
        lock.acquire(timeout=seconds)
        print("free", flush=True)
    except Timeout:
        print("taken", flush=True)
    sys.stdin.readline()
"""


def check_locks(cache: Path, *, at_once: bool, elsewhere: bool) -> Iterator[Finding]:
    """
    Args:
        cache: need not exist yet; the first folder above it that does is tried.
        at_once: several jobs of this command will run at a time.
        elsewhere: on other machines, too.
    """
    place = cache.expanduser().absolute()
    while not place.is_dir():
        place = place.parent
    problem = _tried(place)
    if problem:
        state: State = "failed" if at_once or "cannot" in problem else "warning"
        yield Finding(CHECK, state, f"{place}: {problem}", ELSEWHERE)
        return
    kind, options = mount_of(place)
    local = only_here(kind, options)
    if local:
        said = f"{place} is {kind} mounted with {local}: its locks hold on this machine only"
        yield Finding(CHECK, "failed" if elsewhere else "warning", said, ELSEWHERE)
    elif kind.startswith("fuse"):
        said = f"a second process waits, a dead one's lock is free; whether {kind} tells other machines is not known"
        yield Finding(CHECK, "warning" if elsewhere else "ok", said, ELSEWHERE if elsewhere else "")
    else:
        yield Finding(CHECK, "ok", f"a second process waits, a dead one's lock is free ({kind or 'unknown mount'})")


def _tried(place: Path) -> str:
    """What is wrong with locks in ``place``; "" if nothing is."""
    try:
        with tempfile.TemporaryDirectory(prefix=".keelbench-lock-", dir=place) as folder:
            return _two_processes(Path(folder) / "lock")
    except Timeout:
        return "a dead process's lock is not free, so that a stage it was killed in could not be gone on with"
    except OSError as error:
        return f"no lock can be taken: it cannot be told who computes a stage ({error})"


def _two_processes(file: Path) -> str:
    lock = FileLock(file)
    lock.acquire(timeout=0)
    if isinstance(lock, SoftFileLock):
        lock.release()
        return (
            "this file system has no locks, and lock files stand in for them: one that a killed job on another machine "
            "leaves behind has to be removed by hand"
        )
    with subprocess.Popen(
        [sys.executable, "-c", _OTHER, str(file), str(SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            first = other.stdout.readline().strip()
            lock.release()
            other.stdin.write("\n")
            other.stdin.flush()
            second = other.stdout.readline().strip()
        finally:
            other.kill()
    if (first, second) != ("taken", "free"):
        kept = "does not keep a second process out" if first == "free" else "is not free when it is let go"
        return f"a lock {kept}, so that jobs would compute the same stage at once"
    lock.acquire(timeout=SECONDS)  # the other was killed with it
    lock.release()
    return ""


def mount_of(place: Path, table: Path = Path("/proc/self/mountinfo")) -> tuple[str, str]:
    """A folder's file system and all options of its mount, such as ``("nfs4", "rw,hard,local_lock=none")``; empty where
    the system does not tell (proc_pid_mountinfo(5))."""
    found, longest = ("", ""), -1
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    resolved = place.resolve()
    for line in lines:
        mounted, _, behind = line.partition(" - ")
        fields, rest = mounted.split(), behind.split()
        if len(fields) < 6 or len(rest) < 3:
            continue
        point = Path(fields[4].replace("\\040", " "))
        if resolved.is_relative_to(point) and len(point.parts) >= longest:  # the last of equals lies on top
            found, longest = (rest[0], f"{fields[5]},{rest[2]}"), len(point.parts)
    return found


def only_here(kind: str, options: str) -> str:
    """The mount option by which locks stay on this machine; "" for none (nfs(5), mount.lustre(8))."""
    given = options.split(",")
    telling = {"nfs": ("nolock", "local_lock=all", "local_lock=flock"), "lustre": ("localflock",)}
    family = "nfs" if kind in ("nfs", "nfs4") else kind
    return next((option for option in telling.get(family, ()) if option in given), "")
