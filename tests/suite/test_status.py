"""How far a sweep is, from its folder alone."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eval.errors import KeelBenchError
from suite.status import progress

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2025, 1, 31, 12, 30, tzinfo=UTC)


def job(sweep: Path, number: int, state: str, **fields) -> None:
    folder = sweep / str(number)
    folder.mkdir(parents=True)
    (folder / "keelbench.log").write_text("12:00:00 INFO scores larf: computing\n12:00:09 INFO fine-tuning\n")
    status = {"state": state, "task": f"arm=a{number},seed=1,benchmark=[a,b]", **fields}
    (folder / "status.json").write_text(json.dumps(status))


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two jobs done in ten and twenty minutes, one failed, one running for five, one killed, of twelve points."""
    sweep = tmp_path / "2025-01-31_12-00-00"
    times = {"started": "2025-01-31T12:00:00+00:00"}
    job(sweep, 0, "finished", **times, time="2025-01-31T12:10:00+00:00")
    job(sweep, 1, "finished", **times, time="2025-01-31T12:20:00+00:00")
    job(sweep, 2, "failed", **times, time="2025-01-31T12:00:01+00:00", error="the weights are gated\nask for them")
    here = {"host": platform.node(), "started": "2025-01-31T12:25:00+00:00", "time": "2025-01-31T12:25:00+00:00"}
    job(sweep, 3, "running", **here, pid=os.getpid())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    job(sweep, 10, "running", **here, pid=gone.pid)
    (sweep / "multirun.yaml").write_text(
        "hydra:\n  overrides:\n    task: [+experiment=demo, 'seed=1,2,3', 'benchmark=[a,b]']\n"
        "  sweeper:\n    params:\n      arm: 'none,random,larf_top,larf_bottom'\n"
    )
    return sweep


def test_states_counts_and_time_left(sweep):
    found = progress(sweep, NOW)
    assert [j.state for j in found.jobs] == ["finished", "finished", "failed", "running", "gone"]
    assert (found.total, found.waiting) == (12, 7)
    assert [j.seconds for j in found.jobs] == [600, 1200, 1, 300, 0]
    assert found.jobs[2].last == "the weights are gated"
    assert found.jobs[3].last == "12:00:09 INFO fine-tuning"
    assert found.seconds_left == (900 - 300) + 7 * 900  # the mean of 10 and 20 minutes, one at a time


def test_a_sweep_that_cannot_be_counted_and_a_single_run(sweep, tmp_path):
    (sweep / "multirun.yaml").write_text("hydra: {}\n")
    found = progress(sweep, NOW)
    assert (found.total, found.waiting, found.seconds_left) == (None, None, None)
    (sweep / "multirun.yaml").unlink()
    assert progress(sweep, NOW).waiting == 0
    with pytest.raises(KeelBenchError, match="no job has started"):
        progress(tmp_path / "nothing")


def test_the_command(sweep):
    done = subprocess.run(
        [sys.executable, "-m", "suite.status"], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "SUITE_RUNS": str(sweep.parent)},
    )  # fmt: skip
    assert done.returncode == 1  # something failed
    assert "2 finished, 1 running, 1 failed, 1 gone, 7 waiting, about" in done.stdout
    assert "arm=a3" in done.stdout
    assert "seed=1" not in done.stdout  # what all jobs share
