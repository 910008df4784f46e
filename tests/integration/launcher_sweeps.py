"""One sweep here, on a Slurm and on a Ray of its own, and whether their results are the same but for times:

SUITE_CACHE=cache python -m tests.integration.launcher_sweeps slurm ray

Each has a new cache that holds SUITE_CACHE's weights alone, so that everything else is computed. Two points of SmolLM2,
one of which selects at random and fine-tunes. Minutes; docs/clusters.md has the figures.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from tests.integration.slurm_cluster import SlurmCluster
from tests.integration.test_ray import RayCluster

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ["arm=none,random", "benchmark=[mini_harmful]", "eval.limit=4", "eval.max_new_tokens=8", "selection.k=8",
         "train.epochs=1", "tracking=offline"]  # fmt: skip
WAITING = ["hydra/launcher=submitit_slurm", "hydra.launcher.detach=false", "hydra.launcher.poll_s=1"]
OF_THE_SWEEP = ("cost/", "finished", "sweep")  # columns that two sweeps of the same never share


def here(environment: dict[str, str], place: Path) -> None:
    _suite(SWEEP, environment)


def slurm(environment: dict[str, str], place: Path) -> None:
    with SlurmCluster(place / "cluster") as cluster:
        _suite([*WAITING, *SWEEP], {**cluster.environment, **environment})


def ray(environment: dict[str, str], place: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="ray.", dir="/tmp"))  # its sockets' paths may have 107 characters
    cluster = RayCluster(folder)
    try:
        sweep = cluster.start(*SWEEP, **environment)
        _, said = sweep.communicate()
        assert sweep.returncode == 0, said
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def _suite(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "suite", "-m", *arguments]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)


def found(name: str, launch: Callable[[dict[str, str], Path], None], scratch: Path) -> dict[str, object]:
    """What the sweep left that does not depend on when and where it ran: rows, tables and trained weights."""
    place = scratch / name
    for stage in ("model", "aligned_model"):
        shutil.copytree(Path(os.environ["SUITE_CACHE"]) / stage, place / "cache" / stage, copy_function=os.link)
    begun = time.monotonic()
    launch({"SUITE_CACHE": str(place / "cache"), "SUITE_RUNS": str(place / "runs")}, place)
    print(f"{name}: {time.monotonic() - begun:.0f} s, its cluster's start included", flush=True)
    (sweep,) = (place / "runs").iterdir()
    rows = pq.read_table(sweep / "results.parquet").to_pylist()
    kept = [{k: v for k, v in row.items() if not k.startswith(OF_THE_SWEEP)} for row in rows]
    tables = {str(f.relative_to(sweep)): pq.read_table(f).to_pylist() for f in sorted(sweep.glob("*/*.parquet"))}
    (adapter,) = (place / "cache" / "adapter").glob("*/*.safetensors")
    return {"rows": kept, **tables, "adapter": adapter.read_bytes()}


def main() -> int:
    launchers = {"slurm": slurm, "ray": ray}
    with tempfile.TemporaryDirectory(dir=Path(os.environ["SUITE_CACHE"]).parent) as scratch:  # hard links
        plain = found("here", here, Path(scratch))
        differ = 0
        for name in sys.argv[1:]:
            other = found(name, launchers[name], Path(scratch))
            wrong = sorted(k for k in plain.keys() | other.keys() if plain.get(k) != other.get(k))
            print(f"{name}: {', '.join(wrong) + ' DIFFER' if wrong else f'the same {len(plain)} results'}")
            differ += bool(wrong)
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
