"""Drift: its arithmetic on states checked by hand, its states against transformers, and the whole on a sweep."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from eval.chat import ChatFormat
from eval.errors import CapacityError, KeelBenchError
from suite.drift.measure import common_directions, compliance_direction, drift, prompt_states
from suite.drift.plan import drift_plan
from suite.drift.run import find_adapters
from suite.papers.compare import compare, sweep_rows
from suite.papers.published import table
from suite.report.__main__ import main as report
from suite.report.others import write_other
from tests.helpers import compose, tiny_model
from tests.integration.test_cli import suite
from tests.suite.test_report import Page

RNG = np.random.default_rng(0)


def test_a_common_move_is_its_length_in_spreads_and_its_direction():
    before = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])  # spread 1
    towards = np.array([0.0, 0, 2])
    moved = drift(before, before + towards, compliance=np.array([0.0, 0, 5]))
    assert (moved.shift, moved.distance, moved.towards_compliance) == (2, 2, 1)
    assert drift(before, before - towards, compliance=np.array([0.0, 0, 5])).towards_compliance == -1
    apart = drift(before, before * 3, compliance=towards)  # all away from the mean, which stays
    assert (apart.shift, apart.distance, apart.towards_compliance) == (0, 2, 0)


def test_states_are_those_behind_the_block_where_the_answer_begins(tiny_llama):
    model, tokenizer = tiny_llama
    texts = ["Name a fish.", "What is the capital of a country that borders the sea?"]
    found = prompt_states(model, tokenizer, texts, 1)
    for text, state in zip(texts, found, strict=True):
        ids = torch.tensor([ChatFormat(tokenizer).prompt_ids(text)])
        with torch.no_grad():
            plain = model(ids, output_hidden_states=True).hidden_states[2][0, -1]
        np.testing.assert_allclose(state, plain.numpy(), atol=1e-5)
    assert compliance_direction(model, tokenizer, 1).shape == (32,)
    with pytest.raises(CapacityError, match="layer 3 of a model with 3 blocks"):
        prompt_states(model, tokenizer, texts, 3)


def test_the_directions_are_those_of_all_states_together():
    states = {
        "a": RNG.normal(size=(20, 5)) * [5, 1, 1, 1, 1],
        "b": RNG.normal(size=(20, 5)) + np.array([0, 40, 0, 0, 0]),
    }
    found = common_directions(states)
    assert abs(found.directions[0][1]) > 0.99  # what parts them
    assert abs(found.directions[1][0]) > 0.9
    np.testing.assert_allclose(found.mean, np.concatenate(list(states.values())).mean(axis=0))


def test_a_layer_has_to_be_named():
    with pytest.raises(KeelBenchError, match="layer=auto: a block number"):
        drift_plan(compose(["experiments=[x]", "layer=auto"], "drift"))
    with pytest.raises(KeelBenchError, match="at least one"):
        drift_plan(compose(["experiments=[]"], "drift"))


def written(runs, sweep, label, key, seed=42):
    folder = runs / sweep / label
    folder.mkdir(parents=True)
    row = {
        "label": label,
        "model": "smollm2",
        "aligned": "mini",
        "seed": seed,
        "stages": json.dumps([f"adapter/{key}"]),
    }
    (folder / "record.json").write_text(json.dumps(row))


def test_adapters_of_one_seed_are_found_once_and_contradictions_refused(tmp_path):
    written(tmp_path, "one", "larf-top", "aaa")
    written(tmp_path, "one", "random-top", "bbb")
    written(tmp_path, "one", "seal-top", "ccc", seed=100)
    written(tmp_path, "two", "larf-top", "aaa")
    plan = drift_plan(compose(["experiments=[one,two]", f"paths.runs='{tmp_path}'"], "drift"))
    assert find_adapters(plan) == {"larf-top": "aaa", "random-top": "bbb"}
    written(tmp_path, "three", "larf-top", "ddd")
    plan = drift_plan(compose(["experiments=[one,three]", f"paths.runs='{tmp_path}'"], "drift"))
    with pytest.raises(KeelBenchError, match="two runs called larf-top"):
        find_adapters(plan)


def test_a_sweep_its_drift_its_page_and_the_papers_table(tokenizer, tmp_path, monkeypatch, capsys):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    common = [f"model.source={tmp_path / 'tiny'}", "model/align=none", "model.larf_layer=1", "model.dtype=float32",
              "tracking=disabled", "benchmark=[mini_harmful]"]  # fmt: skip
    recipe = ["train=laptop", "train.learning_rate=0.05", "train.batch_size=2", "selection.k=8", "dataset.limit=30"]
    answers = ["eval.limit=2", "eval.max_new_tokens=2"]
    trained = suite("-m", "method=random,larf", *recipe, *answers, *common, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    done = suite(f"experiments=[{sweep.name}]", *common, cwd=tmp_path, module="suite.drift")
    assert done.returncode == 0, done.stderr
    assert "cos with compliance" in done.stdout
    (folder,) = (f.parent for f in (tmp_path / "runs").glob("*/*/drift.parquet"))
    rows, dots = (pd.read_parquet(folder / f"{name}.parquet") for name in ("drift", "drift_points"))
    assert list(rows["label"]) == ["random-top", "larf-top"]
    assert (rows["shift"] > 0).all()
    assert len(dots) == 3 * 40
    joined = {r["trained_on"]: r for r in compare(table("larf_fig17"), sweep_rows(table("larf_fig17"), folder))
              if r["quantity"] == "shift"}  # fmt: skip
    assert joined["larf-top"]["ours"] == rows["shift"][1]
    assert joined["random-top"]["note"] == "the paper has no such cell"
    assert Page(folder / "drift.html").tags.count("figure") == 2
    (folder / "drift.html").unlink()
    monkeypatch.setattr("sys.argv", ["suite.report", str(folder.parent)])
    assert report() == 0
    assert (folder / "drift.html").is_file()
    assert write_other(sweep) == []
