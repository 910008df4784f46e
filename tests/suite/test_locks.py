"""Guards the trial of locks in the cache's folder, and what becomes of two jobs on one stage where locks do not hold.

A file system without working locks is Python's ``fcntl.flock`` replaced in every process that is started; the mounts of
shared file systems are lines of mountinfo as Linux writes them.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.errors import KeelBenchError
from suite.plan import plan_from_config
from suite.preflight import locks
from suite.preflight.locks import check_locks, mount_of, only_here
from suite.preflight.points import read_command_line
from suite.storage import cache as storage
from suite.storage.cache import MANIFEST, StageCache
from tests.integration.test_cli import ROOT

FLOCKS = {
    "lets everybody in": "lambda fd, what: None",
    "is not there": f"lambda fd, what: (_ for _ in ()).throw(OSError({errno.ENOSYS}, 'Function not implemented'))",
    "needs a service": f"lambda fd, what: (_ for _ in ()).throw(OSError({errno.ENOLCK}, 'No locks available'))",
}


def with_flock(tmp_path: Path, kind: str) -> dict[str, str]:
    """The environment of processes in which ``flock`` is of that kind."""
    (tmp_path / "site").mkdir(exist_ok=True)
    (tmp_path / "site" / "sitecustomize.py").write_text(f"import fcntl\nfcntl.flock = {FLOCKS[kind]}\n")
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}


def told(tmp_path: Path, kind: str, **asked: bool) -> list[str]:
    """State and words of the trial in a process with such a ``flock``."""
    place = tmp_path / "files"
    place.mkdir(exist_ok=True)
    code = (
        "import json, sys; from pathlib import Path; from suite.preflight.locks import check_locks\n"
        f"found = list(check_locks(Path(sys.argv[1]) / 'cache', **{asked or {'at_once': False, 'elsewhere': False}}))\n"
        "print(json.dumps([[f.state, f.said] for f in found]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(place)],
        env=with_flock(tmp_path, kind), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert list(place.iterdir()) == []  # nothing is left
    ((state, said),) = json.loads(done.stdout)
    return [state, said]


def test_locks_that_hold(tmp_path):
    (found,) = check_locks(tmp_path / "not" / "yet", at_once=True, elsewhere=False)
    assert found.state == "ok", found
    assert "a second process waits, a dead one's lock is free" in found.said
    assert list(tmp_path.iterdir()) == []


def test_locks_that_do_not_hold(tmp_path):
    state, said = told(tmp_path, "lets everybody in")
    assert (state, "does not keep a second process out" in said) == ("warning", True)
    state, _ = told(tmp_path, "lets everybody in", at_once=True, elsewhere=False)
    assert state == "failed"  # several jobs of this very command would meet
    state, said = told(tmp_path, "is not there")
    assert (state, "removed by hand" in said) == ("warning", True)
    state, said = told(tmp_path, "needs a service")
    assert (state, "No locks available" in said) == ("failed", True)  # no stage could be computed at all


def test_a_lock_that_is_never_free_is_told(tmp_path, monkeypatch):
    """The other process says "taken" a second time."""
    monkeypatch.setattr(
        locks, "_OTHER", "import sys\nfor _ in 'ab':\n print('taken', flush=True)\n sys.stdin.readline()"
    )
    (found,) = check_locks(tmp_path, at_once=False, elsewhere=False)
    assert "is not free when it is let go" in found.said


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / {0}/nfs rw,relatime shared:1 - nfs4 server:/export rw,vers=4.2,hard,local_lock=none
31 22 0:41 / {0}/nfs/nolock rw,relatime - nfs server:/old rw,vers=3,nolock,local_lock=all
32 22 0:42 / {0}/lustre rw - lustre mgs:/fs rw,localflock,lazystatfs
33 22 0:43 / {0}/my\\040bucket rw - fuse.s3fs s3fs rw,user_id=0
"""


def test_a_mounts_options_tell_what_one_machine_cannot_try(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS.format(tmp_path))
    for name in ("nfs/nolock", "lustre", "my bucket"):
        (tmp_path / name).mkdir(parents=True)
    assert mount_of(tmp_path, table)[0] == "ext4"
    assert mount_of(tmp_path / "nfs", table) == ("nfs4", "rw,relatime,rw,vers=4.2,hard,local_lock=none")
    assert mount_of(tmp_path / "nfs" / "nolock", table)[0] == "nfs"
    assert mount_of(tmp_path, tmp_path / "none") == ("", "")
    assert only_here("nfs4", "rw,local_lock=none") == ""
    monkeypatch.setattr(locks, "mount_of", lambda place: mount_of(place, table))

    def state(name: str, elsewhere: bool) -> tuple[str, str]:
        (found,) = check_locks(tmp_path / name, at_once=True, elsewhere=elsewhere)
        return found.state, found.said

    assert state("nfs", True)[0] == "ok"
    for name, option in (("nfs/nolock", "nolock"), ("lustre", "localflock")):
        assert state(name, True)[0] == "failed"
        assert state(name, False)[0] == "warning"
        assert f"mounted with {option}" in state(name, True)[1]
    assert [state("my bucket", elsewhere)[0] for elsewhere in (True, False)] == ["warning", "ok"]


def test_which_commands_jobs_may_meet():
    def at_once(*arguments: str) -> bool:
        asked = read_command_line(arguments, "config", plan_from_config)
        assert asked is not None
        return asked.at_once

    assert not at_once("-m", "method=none", "seed=1,2")  # one after the other
    assert at_once("-m", "method=none", "seed=1,2", "hydra/launcher=joblib")
    assert not at_once("-m", "method=none", "hydra/launcher=joblib")


# Two jobs on one stage. The first begins, the second computes it too, and then the first goes on.
_JOB = """
import sys, time
from pathlib import Path
from suite.storage.cache import StageCache
root, name = Path(sys.argv[1]), sys.argv[2]
def compute(out):
    (out / "one").write_text("1")
    print("begun", flush=True)
    sys.stdin.readline()
    (out / "two").write_text("2")
    return 0
StageCache(root).entry("s", "1", {}, compute)
"""


def test_where_locks_do_not_hold_a_job_may_fail_and_no_entry_is_partial(tmp_path):
    environment = with_flock(tmp_path, "lets everybody in")

    def start() -> subprocess.Popen:
        job = subprocess.Popen(
            [sys.executable, "-c", _JOB, str(tmp_path / "cache"), "x"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert job.stdout.readline() == "begun\n"
        return job

    first, second = start(), start()
    _, problem = first.communicate("\n", timeout=60)
    assert (first.returncode, "FileNotFoundError" in problem) == (1, True)  # its folder was taken for a dead job's
    second.communicate("\n", timeout=60)
    assert second.returncode == 0
    (entry,) = (tmp_path / "cache" / "s").glob(f"*/{MANIFEST}")
    assert json.loads(entry.read_text())["files"].keys() == {"one", "two"}
    assert [p for p in (tmp_path / "cache" / "s").iterdir() if p.is_dir()] == [entry.parent]


def test_whoever_comes_second_to_the_end_takes_what_is_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(storage, "_try", lambda lock: True)
    monkeypatch.setattr(storage, "_remove_leftovers", lambda home, key: None)
    mine, other = StageCache(tmp_path), StageCache(tmp_path)

    def theirs(out: Path) -> int:
        (out / "value").write_text("equal")
        return 3

    def meanwhile(out: Path) -> int:
        other.entry("s", "1", {}, theirs)
        return theirs(out)

    found = mine.entry("s", "1", {}, meanwhile)
    assert (found.cached, found.cost.tokens) == (True, 3)
    assert "another job has finished it meanwhile; locks do not work" in caplog.text
    assert [p.name for p in (tmp_path / "s").iterdir() if p.is_dir()] == [found.key]


def test_a_cache_without_lock_service_is_one_clear_message(tmp_path, monkeypatch):
    def refused(fd: int, what: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(KeelBenchError, match=r"No locks available.*docs/robustness.md"):
        StageCache(tmp_path).entry("s", "1", {}, lambda out: 0)
