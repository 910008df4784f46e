"""Safety along the fine-tuning: the curve, its checkpoints, and that keeping them changes nothing."""

import json
from pathlib import Path

import pandas as pd

from suite.pipeline import run
from tests.helpers import plan

SMALL = ("model/align=none", "train.epochs=2", "eval.limit=4", "eval.max_new_tokens=8", "selection.k=12",
         "method=random", "dataset.limit=40", "benchmark=[mini_harmful,mini_overrefusal]",
         "eval.every_limit=2")  # fmt: skip


def go(cache: Path, folder: Path, *overrides: str):
    folder.mkdir(parents=True)
    return run(plan(None, f"paths.cache={cache}", *SMALL, *overrides), folder, "sweep")


def test_safety_is_asked_along_the_training_and_the_training_is_the_same(cache, tmp_path):
    plain = go(cache, tmp_path / "plain", "tracking=disabled")
    assert not (tmp_path / "plain" / "safety_curve.parquet").exists()
    # The adapter is in the cache, so its checkpoints take a second training, which must end where the first did.
    record = go(cache, tmp_path / "0", "eval.every=1", "tracking=offline")
    stages = {e.stage: e for e in record.entries}
    assert (stages["adapter"].cached, stages["checkpoints"].cached) == (True, False)
    assert record.rates == plain.rates
    weights = "adapter_model.safetensors"
    steps = {f.name: (f / weights).read_bytes() for f in stages["checkpoints"].path.glob("step-*")}
    assert set(steps) == {"step-1", "step-2"}
    assert steps["step-2"] == (stages["adapter"].path / weights).read_bytes() != steps["step-1"]

    curve = pd.read_parquet(tmp_path / "0" / "safety_curve.parquet")
    assert list(curve["step"]) == [0, 0, 1, 1, 2, 2]
    assert set(zip(curve["metric"], curve["benchmark"], strict=True)) == {
        ("asr", "mini_harmful"), ("false_refusal", "mini_overrefusal")
    }  # fmt: skip
    assert set(curve["n"]) == {2}
    assert ((curve["low"] <= curve["value"]) & (curve["value"] <= curve["high"])).all()
    (table,) = (tmp_path / "0" / "wandb").rglob("safety_curve_*.table.json")
    assert [row[0] for row in json.loads(table.read_text())["data"]] == list(curve["step"])

    again = go(cache, tmp_path / "1", "eval.every=1", "tracking=disabled")
    assert all(entry.cached for entry in again.entries)
    pd.testing.assert_frame_equal(curve, pd.read_parquet(tmp_path / "1" / "safety_curve.parquet"))


def test_one_training_makes_adapter_and_checkpoints(cache, tmp_path):
    record = go(cache, tmp_path / "0", "eval.every=5", "seed=7", "tracking=disabled")
    cost = {e.stage: e.cost for e in record.entries}
    assert cost["adapter"].tokens > 0 == cost["checkpoints"].tokens
    # Fewer steps than asked for: before and after are what is left.
    assert set(pd.read_parquet(tmp_path / "0" / "safety_curve.parquet")["step"]) == {0, 2}
