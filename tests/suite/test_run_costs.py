"""A whole run on a random model: every stage's costs are in its row, and cached ones stay what they were."""

import json

import pytest

from suite.pipeline import run
from tests.helpers import plan, tiny_model

OPTIONS = ("model/align=none", "model.dtype=float32", "dataset.limit=30", "selection.k=6", "train.epochs=1",
           "eval.limit=2", "eval.max_new_tokens=4", "tracking=disabled", "benchmark=[mini_harmful]")  # fmt: skip


@pytest.fixture
def go(tmp_path, tokenizer):
    tiny_model("llama", tied=False).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")

    def make(name: str, *overrides: str) -> dict:
        folder = tmp_path / name
        folder.mkdir()
        source = f"model.source={tmp_path / 'm'}"
        record = run(plan(tmp_path, source, *OPTIONS, *overrides), folder, "s")
        return json.loads(json.dumps(record.row()))

    return make


def test_every_stage_has_its_operations(go):
    row = go("a", "method=larf", "method.layer=1")
    stages = dict.fromkeys(s.split("/")[0] for s in json.loads(row["stages"]))
    assert list(stages) == ["scores", "adapter", "completions", "verdicts"]
    for stage in ("scores", "adapter", "completions"):
        assert row[f"cost/{stage}/flops"] > 1e5
        assert row[f"cost/{stage}/mfu"] > 0
        assert row[f"cost/{stage}/tokens"] > 0
        assert row[f"cost/{stage}/peak_memory_mb"] > 0
        assert row[f"cost/{stage}/gpus"] == 0
    assert row["cost/verdicts/flops"] == 0  # keywords
    assert json.loads(row["scorer_info"])["flops"] == row["cost/scores/flops"]
    again = go("b", "method=larf", "method.layer=1")
    for stage in stages:
        assert again[f"cost/{stage}/flops"] == row[f"cost/{stage}/flops"]
        assert again[f"cost/{stage}/mfu"] is None  # whose machine that was is not known


def test_self_cd_reads_everything_twice(go):
    plain = go("a", "method=full")
    twice = go("b", "method=self_cd")
    assert twice["cost/adapter/flops"] == plain["cost/adapter/flops"]
    # Its second pass has the longer system turn.
    assert twice["cost/completions/flops"] > 2 * plain["cost/completions/flops"] * 0.9
