"""A sweep on a real Ray cluster of three nodes, with a worker that is killed; and what a cluster cannot give."""

import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.slurm_cluster import until

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (make setup)")


class RayCluster:
    """In a network namespace of its own where that is allowed; commands join it there."""

    def __init__(self, folder: Path):
        alone = subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0
        start = [sys.executable, "-m", "tests.integration.ray_cluster"]
        if alone:
            start = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *start]
        # Ray's own protection; otherwise whoever reaches a node's ports can run code there.
        self.environment = {**os.environ, "RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "token",
                            "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # fmt: skip
        self.log = (folder / "cluster.log").open("w")
        self.start_command = start
        # A node that has not come up within Ray's own 30 s, on a busy machine say, ends the whole cluster.
        self.address = next((address for _ in range(3) if (address := self._up())), "")
        assert self.address, (folder / "cluster.log").read_text()[-2000:]
        self.prefix = ["nsenter", f"--target={self.process.pid}", "--net"] if alone else []

    def _up(self) -> str:
        self.process = subprocess.Popen(
            self.start_command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=self.environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        return next((line.strip() for line in self.process.stdout if line[:1].isdigit()), "")

    def close(self) -> None:
        self.process.communicate(timeout=60)
        self.log.close()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "suite", "-m", "hydra/launcher=ray", *arguments],
            cwd=ROOT, env={**self.environment, "RAY_ADDRESS": self.address, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    # Not pytest's folder: the paths of Ray's sockets may have 107 characters.
    folder = Path(subprocess.run(["mktemp", "-d", "/tmp/ray.XXXX"], capture_output=True, text=True).stdout.strip())
    cluster = RayCluster(folder)
    yield cluster
    cluster.close()
    shutil.rmtree(folder, ignore_errors=True)


def cache_with_weights(cache_root: Path, place: Path) -> str:
    """A new cache that holds the base weights alone."""
    shutil.copytree(cache_root / "model", place / "model", copy_function=os.link)
    return str(place)


def status(folder: Path) -> dict:
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def test_a_killed_worker_is_one_failed_point(cluster, cache_root, smollm2_folder, tmp_path):
    runs, cache = tmp_path / "runs", cache_with_weights(cache_root, tmp_path / "cache")
    sweep = cluster.start(
        "method=none", "model/align=none", "benchmark=[mini_harmful]", "eval.limit=2", "eval.max_new_tokens=3,4",
        "seed=1,2",
        SUITE_RUNS=str(runs), SUITE_CACHE=cache,
    )  # fmt: skip
    until(lambda: any(status(f).get("state") == "running" for f in runs.glob("*/1")), 300, every=0.05)
    (folder,) = runs.iterdir()
    os.kill(status(folder / "1")["pid"], signal.SIGKILL)
    out, err = sweep.communicate(timeout=400)

    states = {n: status(folder / str(n))["state"] for n in range(4)}
    assert states == {0: "finished", 1: "failed", 2: "finished", 3: "finished"}, err
    assert sweep.returncode == 1
    assert f"FAILED {folder.name}/1 (" in err
    assert "WorkerCrashedError" in status(folder / "1")["error"]
    assert "1 of 4 runs failed." in err
    assert "mini_harmful" in out  # the table of the other three, and their report
    assert (folder / "report.html").is_file()
    for number in (0, 2, 3):
        assert json.loads((folder / f"{number}/record.json").read_text())["sweep"] == folder.name
        assert len(list((folder / f"{number}/wandb").glob("offline-run-*/*.wandb"))) == 1
    # One cache for all: the un-tuned model's answers do not depend on the seed, so two points share them.
    assert len(list((tmp_path / "cache/completions").glob("*/manifest.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["resources.gpus=0.5,2", "resources.cpus=1"],
            "point 1: no node has 1 CPUs, 2 GPUs\nthe cluster's nodes have: 1 CPUs, 1 GPUs, ",
        ),
        (["resources.cpus=0"], "resources.cpus=0: at least 1"),
        (["resources.gpu=1"], "resources.gpu"),
        (["hydra.launcher.init.address=127.0.0.1:9"], "no Ray cluster answers at 127.0.0.1:9"),
        (["hydra.launcher.init.address=null"], "which cluster? Give hydra.launcher.init.address=HOST:PORT"),
    ],
)
def test_what_the_cluster_cannot_give_is_refused_before_anything_starts(cluster, tmp_path, arguments, message):
    sweep = cluster.start(*arguments, SUITE_RUNS=str(tmp_path))
    _, err = sweep.communicate(timeout=300)
    assert sweep.returncode != 0
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("*/*/status.json"))
