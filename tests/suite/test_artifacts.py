"""Lineage of artifacts: what the client wrote to be sent, offline as online."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from suite.records import RunRecord
from suite.storage.cache import Entry
from suite.storage.tables import write_table
from suite.tracking.artifacts import log_artifacts
from suite.tracking.run import Tracker
from tests.integration.track_run import SPEC


def sent(folder: Path) -> dict[str, tuple[str, bool, dict]]:
    """Artifacts by name, as the client's file of the run has them: type, whether used, metadata."""
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    told = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    records = [json.loads(line) for line in told.stdout.splitlines()]
    artifacts = [
        r["artifact"] for r in records if r["type"] == "artifact" and not r["artifact"]["name"].startswith("run-")
    ]
    return {a["name"]: (a["type"], a.get("use_after_commit", False), json.loads(a["metadata"])) for a in artifacts}


@pytest.fixture
def record(tmp_path):
    """A run's record with scores and an adapter in a cache, and the run's folder."""
    stages = []
    for stage, file in (("scores", "scores.parquet"), ("adapter", "adapter_model.safetensors")):
        path = tmp_path / "cache" / stage
        path.mkdir(parents=True)
        (path / file).write_text(stage)
        (path / "manifest.json").write_text("{}")
        stages.append(Entry(stage, f"{stage}key", path))
    folder = tmp_path / "run"
    folder.mkdir()
    write_table(folder / "completions.parquet", [{"prompt": "p"}])
    write_table(folder / "scores.parquet", [{"selected": True}])
    fields = ("finished", "label", "model", "aligned", "dataset", "method", "regularizer", "selection", "judge",
              "judge_version", "backend", "dtype", "device")  # fmt: skip
    made = RunRecord(
        run_id="run1", sweep="s", options={}, n_samples=1, n_selected=1, seed=1, max_new_tokens=1, prompt_limit=None,
        entries=tuple(stages), **dict.fromkeys(fields, "x"),
    )  # fmt: skip
    return made, folder


def test_completions_come_of_an_adapter_that_comes_of_scores(record, monkeypatch):
    made, folder = record
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Tracker(SPEC, folder=folder, name="n", sweep="g", job_type="run", config={}) as tracker:
        log_artifacts(tracker, folder, made, made.entries[1].path)
        assert not tracker._broken
    found = sent(folder)
    assert {name: (kind, used) for name, (kind, used, _) in found.items()} == {
        "scores-scoreskey": ("scores", True),
        "adapter-adapterkey": ("adapter", True),
        "completions-run1": ("completions", False),
    }
    assert found["adapter-adapterkey"][2]["made_from"] == {"scores": "scores-scoreskey"}
    assert found["completions-run1"][2]["made_from"] == {"adapter": "adapter-adapterkey"}


def test_an_untuned_models_completions_rest_on_nothing(record, monkeypatch):
    made, folder = record
    made = RunRecord(**{**vars(made), "entries": ()})
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Tracker(SPEC, folder=folder, name="n", sweep="g", job_type="run", config={}) as tracker:
        log_artifacts(tracker, folder, made, None)
    assert sent(folder) == {"completions-run1": ("completions", False, {"key": "run1", "made_from": {}})}
