"""What the launchers decide without a cluster: what fits, what a job's state is, what Slurm's programs answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.errors import KeelBenchError
from suite.launchers.plugin import register
from suite.launchers.points import Resources
from suite.launchers.queue import Queue, QueueState, Submitted, ask, merged, settle
from suite.launchers.ray import refuse_unsatisfiable
from suite.paths import conf_dir
from suite.status import progress
from suite.sweep import mark

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def test_a_point_must_fit_on_one_node():
    nodes = [{"CPU": 8.0, "memory": 16.0 * GIB}, {"CPU": 4.0, "GPU": 2.0, "memory": 64.0 * GIB, "a100": 2.0}]
    refuse_unsatisfiable(nodes, {0: {"CPU": 8, "GPU": 0}, 1: {"CPU": 4, "GPU": 2, "memory": 64 * GIB, "a100": 1}})
    with pytest.raises(KeelBenchError) as refused:  # the cluster has eight CPUs and two GPUs, but not together
        refuse_unsatisfiable(nodes, {0: {"CPU": 1}, 3: {"CPU": 8, "GPU": 2}, 4: {"CPU": 8, "GPU": 2}, 7: {"h100": 1}})
    assert str(refused.value).splitlines() == [
        "points 3, 4: no node has 8 CPUs, 2 GPUs",
        "point 7: no node has 1 h100",
        "the cluster's nodes have: 4 CPUs, 2 GPUs, 64 GiB of memory; 8 CPUs, 16 GiB of memory",
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"gpus": 1.5}, "gpus=1.5"), ({"gpus": -1}, "gpus=-1"), ({"cpus": 0}, "cpus=0"), ({"memory_gb": 0}, "memory")],
)
def test_what_is_no_resource(asked, message):
    with pytest.raises(KeelBenchError, match=message):
        Resources(**asked)


@pytest.mark.parametrize(
    ("recorded", "slurm", "state"),
    [
        ("submitted", None, "waiting"),
        ("submitted", "PENDING", "waiting"),
        ("failed", "PENDING", "waiting"),  # stopped, and queued again
        ("failed", "RUNNING", "running"),  # and started again
        ("running", "RUNNING", "running"),
        ("running", None, "running"),
        ("finished", "COMPLETING", "finished"),
        ("running", "TIMEOUT", "failed"),
        ("submitted", "CANCELLED", "failed"),
        ("running", "COMPLETED", "failed"),  # gone without having told how it went
        ("failed", "FAILED", "failed"),
    ],
)
def test_a_state_out_of_the_file_and_the_queue(recorded, slurm, state):
    assert merged(recorded, None if slurm is None else QueueState(slurm)) == state


@pytest.mark.parametrize(("name", "target"), [("ray", "RayLauncher"), ("submitit_slurm", "SlurmLauncher")])
def test_the_shipped_launchers_ask_for_resources_under_the_same_names(name, target):
    register()
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("config", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
    assert Resources(**OmegaConf.to_container(config.resources)) == Resources(gpus=0, cpus=1, memory_gb=None)
    assert config.hydra.launcher._target_ == f"hydra_plugins.keelbench.{target}"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """``programs(squeue=(status, output, errors), ...)`` puts such programs on the path: what Slurm 22.05 said."""

    def install(**answers: tuple[int, str, str]) -> None:
        for name, (code, out, err) in answers.items():
            file = tmp_path / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.write({out!r})\nsys.stderr.write({err!r})\n"
                            f"sys.exit({code})\n")  # fmt: skip
            file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    return install


UNKNOWN = (1, "", "slurm_load_jobs error: Invalid job id specified\n")


def test_squeue_first_then_sacct(programs):
    programs(
        squeue=(0, "12_0|RUNNING|None\n12_1|PENDING|Resources\n", ""),
        sacct=(0, "12_0|PENDING\n12_2|CANCELLED by 0\n12_3|TIMEOUT\n99_[4-5]|PENDING\n", ""),
    )
    queue = ask(["12_0", "12_1", "12_2", "12_3", "77"])
    assert queue.complete
    assert queue.jobs == {
        "12_0": QueueState("RUNNING"),
        "12_1": QueueState("PENDING", "Resources"),
        "12_2": QueueState("CANCELLED"),
        "12_3": QueueState("TIMEOUT"),
    }


def test_a_controller_that_is_down_has_not_answered(programs):
    programs(squeue=(1, "", "slurm_load_jobs error: Unable to contact slurm controller\n"), sacct=(0, "", ""))
    assert ask(["12"]) == Queue(complete=False)
    programs(squeue=UNKNOWN, sacct=(1, "", "Slurm accounting storage is disabled\n"))
    assert ask(["12"]) == Queue(complete=True)


def submitted_sweep(place: Path) -> Path:
    sweep = place / "sweep"
    for number, state in enumerate(["finished", "running", "submitted", "submitted", "failed"]):
        mark(
            sweep / str(number), state, task=f"seed={number}", **({"error": "of its own"} if state == "failed" else {})
        )
    Submitted("suite.sweep:told_failures", {str(n): f"12_{n}" for n in range(5)}).write(sweep)
    return sweep


def test_jobs_that_ended_without_a_word_are_failed_and_the_others_left_alone(programs, tmp_path):
    sweep = submitted_sweep(tmp_path)
    programs(squeue=(0, "12_2|PENDING|Priority\n", ""), sacct=(0, "12_1|NODE_FAIL\n12_4|FAILED\n", ""))
    states = [(j.state, j.last) for j in progress(sweep).jobs]
    assert states == [
        ("finished", ""),
        ("failed", "Slurm: NODE_FAIL"),
        ("waiting", "Priority"),
        ("waiting", ""),
        ("failed", "of its own"),
    ]
    assert settle(sweep) == 1
    errors = {n: json.loads((sweep / str(n) / "status.json").read_text()).get("error") for n in range(5)}
    assert errors == {
        0: None,
        1: "Slurm ended job 12_1: NODE_FAIL",
        2: None,
        3: "Slurm no longer knows job 12_3, and it has not told how it went",
        4: "of its own",
    }


def test_a_queue_that_does_not_answer_fails_nobody(programs, tmp_path):
    sweep = submitted_sweep(tmp_path)
    programs(squeue=(1, "", "slurm_load_jobs error: Unable to contact slurm controller\n"), sacct=(1, "", "down\n"))
    assert settle(sweep) == 3
    command = [sys.executable, "-m", "suite.finish", str(sweep)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PATH": "/nowhere"})
    assert done.returncode == 1
    assert "3 jobs of" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "hydra/launcher=submitit_slurm"], "no sbatch on this machine, so no Slurm"),
        (["hydra/launcher=ray"], "without -m"),
        (["resources.gpus=1"], "resources"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "suite", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PATH": "/nowhere", "SUITE_RUNS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*/*/status.json"))
