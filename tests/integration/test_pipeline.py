"""The main job on SmolLM2, small: every stage, every record, and nothing computed twice."""

import json
from pathlib import Path

import pandas as pd
import pytest

from eval.errors import CapacityError, KeelBenchError
from suite.pipeline import run
from suite.results import collect
from suite.run_tables import REDACTED
from tests.helpers import plan

SMALL = ("model/align=none", "train.epochs=1", "eval.limit=4", "eval.max_new_tokens=8", "selection.k=12",
         "tracking=offline")  # fmt: skip


def go(cache: Path, folder: Path, *overrides: str):
    folder.mkdir(parents=True)
    return run(plan(None, f"paths.cache={cache}", *SMALL, *overrides), folder, "sweep")


@pytest.fixture(scope="module")
def larf(cache, tmp_path_factory):
    """A finished LARF run: ``(record, folder)``."""
    folder = tmp_path_factory.mktemp("larf") / "0"
    return go(cache, folder, "method=larf", "method.layer=13", "dataset.limit=60"), folder


def test_a_run_leaves_its_record_and_tables(larf):
    record, folder = larf
    row = json.loads((folder / "record.json").read_text())
    assert row == json.loads(json.dumps(record.row()))
    assert (row["method"], row["n_samples"], row["n_selected"], row["seed"]) == ("larf", 60, 12, 42)
    for rate, n in (("asr/mini_harmful", 4), ("false_refusal/mini_overrefusal", 4), ("false_refusal/mini_benign", 4)):
        assert row[f"{rate}/n"] == n
        assert 0 <= row[f"{rate}/low"] <= row[rate] <= row[f"{rate}/high"] <= 1
    assert {s.split("/")[0] for s in json.loads(row["stages"])} == {
        "model", "scores", "adapter", "completions", "verdicts"
    }  # fmt: skip
    assert all(row[f"cost/{stage}/seconds"] > 0 for stage in ("scores", "adapter", "completions"))
    scores = pd.read_parquet(folder / "scores.parquet")
    assert list(scores["rank"]) == list(range(1, 61))
    assert scores["score"].is_monotonic_decreasing
    assert list(scores["selected"]) == [True] * 12 + [False] * 48
    selected = pd.read_parquet(folder / "selected.parquet")
    assert list(selected["id"]) == list(scores["id"][:12])
    assert len(pd.read_parquet(folder / "completions.parquet")) == 12
    training = pd.read_parquet(folder / "training.parquet")
    assert list(training["step"]) == [1.0]
    assert json.loads(row["scorer_info"])["layer"] == 13


def test_what_harmful_requests_brought_about_is_redacted(larf):
    rows = pd.read_parquet(larf[1] / "completions.parquet")
    harmful = rows[(rows["expected"] == "refuse") & (rows["label"] != "refused")]
    assert len(harmful) > 0
    assert set(harmful["completion"]) == {REDACTED}
    assert REDACTED not in set(rows[rows["expected"] == "comply"]["completion"])


def test_wandb_holds_the_same_rows(larf):
    record, folder = larf
    tables = {f.name.split("_")[0]: f for f in (folder / "wandb").rglob("*.table.json")}
    assert set(tables) == {"results", "scores", "selected", "completions", "categories"}
    scores = json.loads(tables["scores"].read_text())
    frame = pd.DataFrame(scores["data"], columns=scores["columns"])
    on_disk = pd.read_parquet(folder / "scores.parquet")
    assert list(frame["id"]) == list(on_disk["id"])
    assert frame["score"].tolist() == pytest.approx(on_disk["score"].tolist())
    results = json.loads(tables["results"].read_text())
    assert dict(zip(results["columns"], results["data"][0], strict=True))["run_id"] == record.run_id


def test_a_second_run_computes_nothing_and_says_the_same(larf, cache, tmp_path):
    record, folder = larf
    again = go(cache, tmp_path / "0", "method=larf", "method.layer=13", "dataset.limit=60")
    assert all(entry.cached for entry in again.entries)
    assert again.run_id == record.run_id
    assert again.rates == record.rates
    for name in ("scores", "selected", "completions"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / f"{name}.parquet"), pd.read_parquet(tmp_path / "0" / f"{name}.parquet")
        )


def test_another_cut_needs_no_rescoring(larf, cache, tmp_path):
    bottom = go(cache, tmp_path / "0", "method=larf", "method.layer=13", "dataset.limit=60", "selection=bottom")
    stages = {e.stage: e.cached for e in bottom.entries if e.stage in ("scores", "adapter")}
    assert stages == {"scores": True, "adapter": False}
    top = set(pd.read_parquet(larf[1] / "selected.parquet")["id"])
    assert top.isdisjoint(pd.read_parquet(tmp_path / "0" / "selected.parquet")["id"])


def test_the_untuned_model_is_neither_scored_nor_trained(cache, tmp_path):
    record = go(cache, tmp_path / "0", "method=none")
    assert {e.stage for e in record.entries} == {"model", "completions", "verdicts"}
    assert record.n_selected == 0
    assert record.train_loss is None


def test_random_is_the_same_for_a_seed_and_another_for_another(cache, tmp_path):
    records = [go(cache, tmp_path / str(i), "method=random", f"seed={seed}") for i, seed in enumerate((1, 1, 2))]
    picked = [set(pd.read_parquet(tmp_path / str(i) / "selected.parquet")["id"]) for i in range(3)]
    assert picked[0] == picked[1] != picked[2]
    assert len(picked[0]) == 12
    assert records[0].run_id == records[1].run_id != records[2].run_id


def test_the_same_command_gives_the_same_bytes_from_an_empty_cache(larf, smollm2_folder, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model").symlink_to(smollm2_folder.parent)
    again = go(tmp_path / "cache", tmp_path / "0", "method=larf", "method.layer=13", "dataset.limit=60")
    assert not any(e.cached for e in again.entries if e.stage != "model")
    for first, second in zip(larf[0].entries, again.entries, strict=True):
        assert first.key == second.key
        for name in ("scores.parquet", "adapter_model.safetensors", "completions.parquet", "verdicts.parquet"):
            if (first.path / name).exists():
                assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_full_trains_on_everything(cache, tmp_path):
    record = go(cache, tmp_path / "0", "method=full", "dataset.limit=16")
    assert record.n_selected == 16


def test_your_own_file_can_be_the_data_set(cache, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"Count to {i}"}, {"role": "assistant", "content": "1 " * i}]}
            for i in range(1, 21)]  # fmt: skip
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = go(cache, tmp_path / "0", "method=random", "dataset=jsonl", f"dataset.path={tmp_path / 'mine.jsonl'}")
    assert (record.dataset, record.n_samples, record.n_selected) == ("jsonl", 20, 12)
    assert str(tmp_path) not in (tmp_path / "0" / "record.json").read_text()


def test_every_problem_is_told_before_a_model_is_loaded(cache, tmp_path):
    with pytest.raises(KeelBenchError) as caught:
        go(cache, tmp_path / "0", "selection.k=900", "benchmark=[hex_phi,harmbench]", "model.source=/no/such/folder")
    text = str(caught.value)
    for part in ("only 430 samples", "hex_phi", "harmbench", "/no/such/folder"):
        assert part in text


def test_a_broken_row_names_file_line_and_field(cache, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": 3}\n')
    with pytest.raises(KeelBenchError, match=r"bad.jsonl, line 2, field 'output': expected text, found int"):
        go(cache, tmp_path / "0", "dataset=jsonl", f"dataset.path={tmp_path / 'bad.jsonl'}")


def test_a_layer_beyond_the_model_is_refused(cache, tmp_path):
    with pytest.raises(CapacityError, match="30 blocks"):
        go(cache, tmp_path / "0", "method=larf", "method.layer=30", "dataset.limit=60")


def test_results_of_a_sweep_are_collected_in_run_order(larf):
    rows = collect(larf[1].parent, write=True)
    assert [r["label"] for r in rows] == ["larf-top"]
    assert list(pd.read_parquet(larf[1].parent / "results.parquet")["run_id"]) == [larf[0].run_id]
