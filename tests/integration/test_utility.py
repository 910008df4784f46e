"""Utility tasks in a run: recorded with what they rest on, found again, refused before a model is loaded."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from baselines.system_prompt import SystemPrompt
from eval.errors import KeelBenchError, UnknownNameError
from suite.pipeline import run
from tests.helpers import plan

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `utility`)")
if shutil.which("bwrap") is None:
    pytest.skip("bubblewrap is not installed", allow_module_level=True)

SMALL = ("model/align=none", "method=none", "eval.limit=1", "eval.max_new_tokens=4", "benchmark=[mini_harmful]",
         "tracking=disabled", "utility.max_new_tokens=8")  # fmt: skip
TASKS = ("+utility.tasks.gsm8k={fewshot: 1, limit: 2}", "+utility.tasks.mmlu={fewshot: 0, limit: 2, parts: [anatomy]}",
         "+utility.tasks.humaneval={limit: 1}")  # fmt: skip


def go(cache: Path, data: Path, folder: Path, *overrides: str):
    folder.mkdir(parents=True)
    return run(plan(None, f"paths.cache={cache}", f"paths.data={data}", *SMALL, *overrides), folder, "sweep")


def test_a_run_records_its_utility_and_finds_it_again(smollm2_folder, shared_data, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model").symlink_to(smollm2_folder.parent)
    record = go(tmp_path / "cache", shared_data, tmp_path / "0", *TASKS)
    row = json.loads((tmp_path / "0" / "record.json").read_text())
    for name, n in (("gsm8k", 2), ("gsm8k_flexible", 2), ("mmlu", 2), ("humaneval", 1)):
        assert row[f"utility/{name}/n"] == n
        assert 0 <= row[f"utility/{name}/low"] <= row[f"utility/{name}"] <= row[f"utility/{name}/high"] <= 1
    assert row["utility/gsm8k/stderr"] is not None
    settings = json.loads(row["utility_settings"])
    assert settings["gsm8k"]["fewshot"] == 1
    assert settings["gsm8k"]["harness"].startswith("lm-eval 0.")
    assert settings["gsm8k"]["filters"] == {"gsm8k": "strict-match", "gsm8k_flexible": "flexible-extract"}
    assert (settings["mmlu"]["parts"], settings["mmlu"]["source"]) == (["anatomy"], "local")
    assert (settings["humaneval"]["sandbox"], settings["mmlu"]["sandbox"]) == ("bubblewrap", None)
    assert len(pd.read_parquet(tmp_path / "0" / "utility.parquet")) == 2 * 2 + 2 + 1
    assert row["cost/utility/tokens"] > 0
    again = go(tmp_path / "cache", shared_data, tmp_path / "1", *TASKS)
    assert all(entry.cached for entry in again.entries)
    assert again.rates == record.rates
    # The fine-tuned model's are its own, and the task is put to it in the same way.
    tuned = go(tmp_path / "cache", shared_data, tmp_path / "2", TASKS[1], "method=random", "dataset.limit=16",
               "selection.k=8", "train.epochs=3", "train.learning_rate=0.01")  # fmt: skip
    (entry,) = [e for e in tuned.entries if e.stage == "utility"]
    assert not entry.cached
    assert tuned.utility_settings["mmlu"] == record.utility_settings["mmlu"]
    likelihoods = [pd.read_parquet(tmp_path / run / "utility.parquet").query("task == 'mmlu'") for run in "02"]
    assert list(likelihoods[0]["prompt_hash"]) == list(likelihoods[1]["prompt_hash"])
    assert list(likelihoods[0]["answer"]) != list(likelihoods[1]["answer"])


def test_what_changes_the_model_as_it_answers_reaches_the_tasks(smollm2_folder, shared_data, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model").symlink_to(smollm2_folder.parent)
    tuning = ("dataset.limit=4", "train.epochs=1", "utility.chat_template=true", TASKS[1])
    methods = {"full": (), "system_prompt": (), "self_cd": (), "vector_ablation": ("method.layer=9", "method.count=4")}
    found = {}
    for name, options in methods.items():
        record = go(tmp_path / "cache", shared_data, tmp_path / name, f"method={name}", *tuning, *options)
        (entry,) = [e for e in record.entries if e.stage == "utility"]
        rows = pd.read_parquet(tmp_path / name / "utility.parquet")
        found[name] = (entry.key, tuple(rows["answer"]), tuple(rows["prompt_hash"]))
        assert record.utility_settings["mmlu"].get("system") == (SystemPrompt().system if "prompt" in name else None)
    assert len({key for key, _, _ in found.values()}) == len({answers for _, answers, _ in found.values()}) == 4
    plain = found["full"][2]
    assert [found[n][2] == plain for n in methods] == [True, False, True, True]  # y is read behind the plain prompt


def test_what_is_missing_is_told_before_the_run(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KeelBenchError) as caught:
        go(tmp_path, shared_data, tmp_path / "0", TASKS[2], "+utility.tasks.math={}", "model.source=/no/such/folder")
    for part in ("bubblewrap is not installed", "no folder math/", "/no/such/folder"):
        assert part in str(caught.value)
    with pytest.raises(UnknownNameError, match="Did you mean 'gsm8k'"):
        plan(None, "+utility.tasks.gsm9k={}")
    with pytest.raises(UnknownNameError, match="subprocess_unsafe"):
        plan(None, "utility.sandbox=none")
    with pytest.raises(KeelBenchError, match=r"utility\.tasks\.mmlu\.limit='all': expected"):
        plan(None, "+utility.tasks.mmlu={limit: all}")
    through_vllm = ("backend=vllm", TASKS[1], "train.target_modules=[q_proj,lm_head]")
    with pytest.raises(KeelBenchError, match=r"lm_head; backend\.merge_adapter=true"):
        plan(None, *through_vllm)
    assert plan(None, *through_vllm, "backend.merge_adapter=true").train.target_modules[1] == "lm_head"
