"""One command and seed in two processes, each with a cache of its own: the same bytes, from scores to answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXACT = ("scores.parquet", "selected.parquet", "completions.parquet", "training.parquet", "categories.parquet")


def go(world: Path, weights: Path, hash_seed: str) -> Path:
    """A run in a process and a cache of its own; its folder."""
    (world / "cache").mkdir(parents=True)
    (world / "cache" / "model").symlink_to(weights)
    done = subprocess.run(
        [sys.executable, "-m", "suite", "method=larf", "method.layer=13", "model/align=none", "dataset.limit=10",
         "selection.k=6",
         "train.epochs=1", "eval.limit=2", "eval.max_new_tokens=4", "benchmark=[mini_harmful]", "tracking=disabled",
         "compute.threads=1", "seed=3"],
        cwd=ROOT,
        env={**os.environ, "SUITE_CACHE": str(world / "cache"), "SUITE_RUNS": str(world / "runs"),
             "PYTHONHASHSEED": hash_seed},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (world / "runs").glob("*/0")
    return folder


@pytest.fixture(scope="module")
def twice(tmp_path_factory, smollm2_folder):
    root = tmp_path_factory.mktemp("twice")
    return [go(root / str(i), smollm2_folder.parent, hash_seed=str(i)) for i in (1, 2)]


def test_scores_selection_training_and_answers_are_equal_bit_for_bit(twice):
    for name in EXACT:
        one, other = (pq.read_table(folder / name) for folder in twice)
        assert one.num_rows > 0
        assert one.equals(other), name
        assert (twice[0] / name).read_bytes() == (twice[1] / name).read_bytes(), name
    caches = [folder.parents[2] / "cache" for folder in twice]
    stages = [sorted(f.relative_to(c) for f in c.glob("*/*/*.safetensors") if "model/" not in str(f)) for c in caches]
    assert stages[0] == stages[1]
    assert len(stages[0]) == 1  # the adapter
    for place in stages[0]:
        assert (caches[0] / place).read_bytes() == (caches[1] / place).read_bytes()


def test_the_records_differ_in_times_alone(twice):
    one, other = (json.loads((folder / "record.json").read_text()) for folder in twice)
    free = {"finished", "sweep"} | {k for k in one if k.startswith("cost/")}
    assert {k for k in one if one[k] != other.get(k)} <= free
    assert one.keys() == other.keys()
    assert one["run_id"] == other["run_id"]
