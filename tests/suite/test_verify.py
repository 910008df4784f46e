"""Verification: what is as it was computed passes, and every tampering is found."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from eval.judges import get_judge
from eval.metrics import safety_rates
from eval.records import Completion, Prompt, content_id
from suite.cache import StageCache
from suite.pipeline import completion_rows
from suite.records import RunRecord, write_record
from suite.results import collect
from suite.stages.judging import judge_completions
from suite.statistics.compare import compare, write_differences
from suite.statistics.outcomes import points_of
from suite.tables import write_table
from suite.verify import main


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two runs whose completions and verdicts were stored and judged by the suite's own stages; redacted tables."""
    cache, sweep = StageCache(tmp_path / "cache"), tmp_path / "runs" / "s"
    prompts = [Prompt(content_id("b", str(i)), "b", f"Request {i}", "", "refuse" if i % 2 else "comply")
               for i in range(40)]  # fmt: skip
    for number, refusals in enumerate((30, 5)):
        texts = [Completion(p.id, "I'm sorry, but I can't help with that." if i < refusals else "Sure, here you go.", 9,
                            "stop") for i, p in enumerate(prompts)]  # fmt: skip

        def store(out: Path, rows=tuple(map(asdict, texts))) -> int:
            write_table(out / "completions.parquet", rows)
            return 0

        stored = cache.entry("completions", "2", {"n": number}, store)
        verdicts, judged = judge_completions(get_judge("refusal_keywords"), prompts, texts, stored.key, cache)
        folder = sweep / str(number)
        folder.mkdir(parents=True)
        write_table(folder / "completions.parquet", completion_rows(prompts, texts, verdicts, show_harmful=False))
        record = RunRecord(
            run_id=f"run{number}", sweep="s", finished="2025-01-31T12:00:00+00:00",
            label=("random", "larf-top")[number],
            model="m", aligned="none", dataset="d", method=("random", "larf")[number], options={}, regularizer="none",
            selection="top", n_samples=9, n_selected=3, seed=1, judge="refusal_keywords",
            judge_version=get_judge("refusal_keywords").version, backend="hf", max_new_tokens=9, prompt_limit=None,
            dtype="float32", device="cpu", rates=safety_rates(prompts, verdicts), entries=(stored, judged),
        )  # fmt: skip
        write_record(folder, record)
        (folder / "status.json").write_text(json.dumps({"state": "finished", "task": f"arm={number}"}))
    collect(sweep, write=True)
    from suite.report.load import load_sweep

    write_differences(sweep, compare(points_of(load_sweep(sweep)[0])))
    return sweep


@pytest.fixture
def verify(monkeypatch, capsys):
    """``(exit status, what it said)`` of the command."""

    def run(table: Path, *arguments: str) -> tuple[int, str]:
        cache = next(p / "cache" for p in table.parents if (p / "cache").is_dir())
        monkeypatch.setattr(sys, "argv", ["verify", str(table), "--cache", str(cache), *arguments])
        status = main()
        said = capsys.readouterr()
        assert said.err == ""
        return status, said.out

    return run


@pytest.mark.parametrize("how", ["again", "stored"])
def test_what_was_computed_is_verified(sweep, verify, how):
    status, said = verify(sweep / "results.parquet", "--verdicts", how)
    assert status == 0, said
    assert "0: 16 figures, all equal" in said  # four rates, each with n and its interval
    assert said.splitlines()[-1].endswith("of 2 runs: verified")


def change_rate(sweep: Path) -> str:
    record = json.loads((sweep / "1" / "record.json").read_text())
    record["asr/b"] += 0.05
    (sweep / "1" / "record.json").write_text(json.dumps(record))
    return "asr/b: the record says"


def change_table(sweep: Path) -> str:
    frame = pd.read_parquet(sweep / "results.parquet")
    frame.loc[0, "false_refusal/b"] = 0.0
    frame.to_parquet(sweep / "results.parquet")
    return "results.parquet, row 0 (run0, 1, random), false_refusal/b: 0.0"


def change_comparison(sweep: Path) -> str:
    frame = pd.read_parquet(sweep / "comparison.parquet")
    frame["p"] /= 2
    frame.to_parquet(sweep / "comparison.parquet")
    return "(larf-top, random, asr/b), p:"


def change_label(sweep: Path) -> str:
    frame = pd.read_parquet(sweep / "0" / "completions.parquet")
    frame.loc[3, "label"] = "complied"
    frame.to_parquet(sweep / "0" / "completions.parquet")
    return "the table says complied, now refused"


def change_completion(sweep: Path) -> str:
    (file,) = [f for f in sweep.parents[1].glob("cache/completions/*/completions.parquet")
               if "Sure" in pd.read_parquet(f)["text"][10]]  # fmt: skip
    frame = pd.read_parquet(file)
    frame.loc[10, "text"] = "I'm sorry, but I can't help with that."
    frame.to_parquet(file)
    return "fails its checksum"


def lose_completions(sweep: Path) -> str:
    for file in sweep.parents[1].glob("cache/completions/*/completions.parquet"):
        file.unlink()
    return "is not in the cache"


@pytest.mark.parametrize(
    "tamper", [change_rate, change_table, change_comparison, change_label, change_completion, lose_completions]
)
def test_every_tampering_is_found(sweep, verify, tamper):
    told = tamper(sweep)
    status, said = verify(sweep)
    assert status == 1
    assert told in said
    assert "NOT verified" in said


def test_another_version_of_the_judge_says_so(sweep, verify):
    for file in sweep.glob("*/record.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"judge_version": "0"}))
    (sweep / "results.parquet").unlink()
    assert "was at version 0 and is at" in verify(sweep)[1]
    assert verify(sweep, "--verdicts", "stored")[0] == 0


def test_a_judge_that_is_a_model_is_not_asked_again(sweep, verify):
    for file in sweep.glob("*/record.json"):
        changed = {"judge": "llama_guard", "judge_version": "1, a/b"}
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    (sweep / "results.parquet").unlink()
    status, said = verify(sweep)
    assert status == 1
    assert "judge llama_guard (1, a/b) is a model: --verdicts stored counts what it said" in said
    assert verify(sweep, "--verdicts", "stored")[0] == 0
