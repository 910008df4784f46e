"""Sweeps on a real Slurm: the submitting shell ends, a job is killed, one is pre-empted, one runs out of time."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.integration.slurm_cluster import SlurmCluster, missing, until
from tests.integration.test_ray import cache_with_weights, status

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="submitit is not installed (make setup)"),
]

# No fine-tuning, two prompts of one benchmark, a few tokens: what is tested is around it.
QUICK = ["method=none", "model/align=none", "benchmark=[mini_harmful]", "eval.limit=2", "tracking=offline"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class Desk:
    """A user's folder and shell."""

    def __init__(self, slurm: SlurmCluster, cache: str, runs: Path):
        self.slurm, self.cache, self.runs = slurm, Path(cache), runs
        self.environment = {**slurm.environment, "SUITE_RUNS": str(runs), "SUITE_CACHE": cache}

    def suite(self, *arguments: str, module: str = "suite") -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True,
            timeout=400,
        )  # fmt: skip

    def submit(self, *arguments: str) -> Path:
        done = self.suite("-m", "hydra/launcher=submitit_slurm", *QUICK, *arguments)
        assert done.returncode == 0, done.stderr
        assert "Submitted; this shell may end." in done.stdout
        return max(self.runs.iterdir())

    def ended(self, sweep: Path) -> bool:
        """Whether the last job, which sums up, is out of the queue, so that all others are."""
        summary = json.loads((sweep / "submitted.json").read_text())["summary"]
        return summary not in self.slurm.run("squeue", "--noheader", "--format=%i").split()

    def hold(self, job: str) -> None:
        """Keep a job in the queue, once it is there again."""
        command = ["scontrol", "hold", job]
        until(lambda: subprocess.run(command, env=self.environment, capture_output=True).returncode == 0, 60)

    def hold_answers(self, tokens: int) -> FileLock:
        """The lock of the answers of this length, taken, and the answers gone: a point that wants them waits."""
        manifests = list(self.cache.glob("completions/*/manifest.json"))
        entries = [f.parent for f in manifests if json.loads(f.read_text())["inputs"]["max_new_tokens"] == tokens]
        assert len(entries) == 1
        shutil.rmtree(entries[0])
        lock = FileLock(entries[0].parent / f".{entries[0].name}.lock")
        lock.acquire()
        return lock


@pytest.fixture(scope="module")
def desk(slurm, cache_root, smollm2_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("desk")
    (place / "runs").mkdir()
    return Desk(slurm, cache_with_weights(cache_root, place / "cache"), place / "runs")


@pytest.fixture(scope="module")
def sweep(desk):
    """Three points in an array, two at a time; the second was killed. The process that submitted them has ended."""
    sweep = desk.submit("eval.max_new_tokens=3,4,5")
    seen = desk.suite(module="suite.status")
    assert "3 waiting" in seen.stdout or "running" in seen.stdout, seen.stdout + seen.stderr
    until(lambda: status(sweep / "1").get("state") == "running", 300, every=0.05)
    os.kill(status(sweep / "1")["pid"], signal.SIGKILL)
    until(lambda: desk.ended(sweep), 400, every=1)
    return sweep


def test_a_sweep_outlives_its_shell_and_a_killed_job_is_one_failed_point(desk, sweep):
    states = {n: status(sweep / str(n))["state"] for n in range(3)}
    assert states == {0: "finished", 1: "failed", 2: "finished"}
    jobs = json.loads((sweep / "submitted.json").read_text())["jobs"]
    array = jobs["1"].split("_")[0]
    assert jobs == {str(n): f"{array}_{n}" for n in range(3)}
    assert status(sweep / "1")["error"] == f"Slurm ended job {jobs['1']}: FAILED"
    # Left by the sweep's own last job.
    assert (sweep / "report.html").is_file()
    assert len(list(sweep.glob("*/wandb/offline-run-*/*.wandb"))) >= 2

    told = desk.suite(module="suite.status")
    assert told.returncode == 1
    assert "2 finished, 1 failed, 0 waiting" in told.stdout
    end = desk.suite(str(sweep), module="suite.finish")
    assert end.returncode == 1
    assert "mini_harmful" in end.stdout
    assert f"FAILED {sweep.name}/1 (" in end.stderr
    assert "1 of 3 runs failed." in end.stderr


def test_a_preempted_point_and_one_out_of_time_go_on_later(desk, sweep):
    """Both wait for the answers that the test withholds, until Slurm has stopped them."""
    locks = [desk.hold_answers(tokens) for tokens in (3, 5)]
    two = desk.submit("eval.max_new_tokens=3,5", "hydra.launcher.array=false", "hydra.launcher.timeout_min=5")
    jobs = json.loads((two / "submitted.json").read_text())["jobs"]
    waits = "waiting for another job"
    until(lambda: all(waits in _log(two / n) for n in ("0", "1")), 300)

    desk.slurm.run("scancel", "--signal=USR2", jobs["0"])  # what Slurm sends ahead of the time limit
    until(lambda: status(two / "0").get("error") == "stopped by Slurm, and queued again", 60)
    desk.hold(jobs["0"])  # or Slurm starts it again after two minutes
    urgent = ["sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null", "--wrap=sleep 3"]
    desk.slurm.run(*urgent)
    until(lambda: status(two / "1").get("error") == "stopped by Slurm, and queued again", 60)
    desk.hold(jobs["1"])
    # A stopped job is "completing" for a moment before it waits again.
    until(lambda: "2 waiting" in desk.suite(str(two), module="suite.status").stdout, 60)
    seen = desk.suite(str(two), module="suite.status")
    assert "stopped by Slurm, and queued again" in seen.stdout
    for lock in locks:
        lock.release()
    for job in jobs.values():
        desk.slurm.run("scontrol", "release", job)
        desk.slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    until(lambda: desk.ended(two), 400, every=1)
    for number in ("0", "1"):
        assert status(two / number)["state"] == "finished"
        assert _log(two / number).count(waits) == 1  # and the second time nobody held them
        row = json.loads((two / number / "record.json").read_text())
        assert row["stages_from_cache"] >= 1
    assert desk.suite(str(two), module="suite.finish").returncode == 0


def test_waiting_for_the_end_and_what_slurm_refuses(desk, sweep):
    done = desk.suite("-m", "hydra/launcher=submitit_slurm", *QUICK, "eval.max_new_tokens=5",
                      "hydra.launcher.detach=false", "hydra.launcher.poll_s=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Rows:" in done.stdout  # summed up here
    refused = desk.suite("-m", "hydra/launcher=submitit_slurm", *QUICK, "resources.cpus=1,64")
    assert refused.returncode == 2
    assert "Slurm refuses" in refused.stderr
    assert "Traceback" not in refused.stderr
    last = max(desk.runs.iterdir())
    assert {status(last / n)["state"] for n in ("0", "1")} == {"failed"}  # the first had been taken, and was cancelled


def _log(folder: Path) -> str:
    try:
        return (folder / "keelbench.log").read_text()
    except OSError:
        return ""
