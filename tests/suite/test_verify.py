"""Verification: what is as it was computed passes, and every tampering is found."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import yaml

from eval.judges import Judge, get_judge
from eval.judges.asking import Reply
from eval.judges.server import Server
from eval.metrics import safety_rates
from eval.records import Completion, Prompt, content_id
from suite.records import RunRecord, write_record
from suite.results import collect
from suite.run_tables import completion_rows
from suite.stages.judging import judge_completions, score_means
from suite.statistics.compare import compare, write_differences
from suite.statistics.outcomes import points_of
from suite.storage.cache import StageCache
from suite.storage.tables import write_table
from suite.verify import main
from tests.eval.judge_settings import judge
from tests.helpers import compose


@pytest.fixture
def sweep(tmp_path) -> Path:
    return made(tmp_path, get_judge("refusal_keywords"))


def made(tmp_path: Path, by: Judge) -> Path:
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
        verdicts, judged = judge_completions(by, prompts, texts, stored.key, cache)
        folder = sweep / str(number)
        folder.mkdir(parents=True)
        write_table(folder / "completions.parquet", completion_rows(prompts, texts, verdicts, show_harmful=False))
        record = RunRecord(
            run_id=f"run{number}", sweep="s", finished="2025-01-31T12:00:00+00:00",
            label=("random", "larf-top")[number],
            model="m", aligned="none", dataset="d", method=("random", "larf")[number], options={}, regularizer="none",
            selection="top", n_samples=9, n_selected=3, seed=1, judge=by.name,
            judge_version=by.described, backend="hf", max_new_tokens=9, prompt_limit=None,
            dtype="float32", device="cpu", rates=safety_rates(prompts, verdicts),
            means=score_means(by, {"b": prompts}, {"b": verdicts}), entries=(stored, judged),
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


SERVER = {"server": "http://127.0.0.1:9/v1", "model": "m", "key_variable": None}


@pytest.fixture
def served(tmp_path, monkeypatch) -> Path:
    """A sweep judged by a model behind a server, which is gone by now."""

    def answer(server, questions, max_new_tokens, on_reply=None, keep=lambda question, reply: None):
        replies = []
        for question in questions:
            asked = question.turns[0][1]
            number = int(asked.split("Request ")[1].split()[0])
            reply = Reply("#thereason: so\n#thescore: " + ("1" if "I'm sorry" in asked else "5"), 9, 9)
            if number == 37:
                reply = Reply("no score", 9, 9)
            if number == 39:
                reply = Reply("", 0, 0, "refused by the server")
            keep(question, reply)
            replies.append(reply)
        return replies

    with monkeypatch.context() as there:
        there.setattr(Server, "answer", answer)
        sweep = made(tmp_path, judge("rubric", **SERVER))
    for folder in sweep.glob("[01]"):
        (folder / ".hydra").mkdir()
        config = {"judge": {**compose(["judge=rubric"])["judge"], **SERVER}}
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    return sweep


def test_a_judges_kept_replies_are_read_again_and_the_rest_is_said(served, verify):
    status, said = verify(served)
    assert status == 0, said
    record = json.loads((served / "0" / "record.json").read_text())
    assert record["unparsed/b"] == 2 / 20
    assert record["gpt_score/b"] > 1
    assert "not asked again: 19 replies that its server gave to these very questions" in said
    assert "not asked again: 1 replies as they stand with the verdicts" in said  # a failed request is not kept
    assert "the judge was not asked again" in verify(served, "--verdicts", "stored")[1]


def test_without_kept_replies_those_of_the_verdicts_are_read(served, verify):
    for file in served.parents[1].glob("cache/judge_replies/*.jsonl"):
        file.unlink()
    status, said = verify(served)
    assert status == 0, said
    assert "20 replies as they stand with the verdicts; nothing kept shows" in said
    assert "these very questions" not in said


def test_a_kept_reply_that_says_otherwise_is_found(served, verify):
    (file,) = served.parents[1].glob("cache/judge_replies/*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    changed = next(i for i, line in enumerate(lines) if line["text"].endswith("5"))
    lines[changed]["text"] = "#thescore: 4"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, said = verify(served)
    assert status == 1
    assert "the table says harmful, now not_harmful" in said
    assert "gpt_score/b: the record says" in said


def test_settings_that_are_lost_or_another_model_are_said(served, verify):
    (served / "0" / ".hydra" / "config.yaml").unlink()
    settings = served / "1" / ".hydra" / "config.yaml"
    settings.write_text(settings.read_text().replace("model: m\n", "model: other\n"))
    status, said = verify(served)
    assert status == 1
    assert "judge rubric has settings" in said
    assert "only --verdicts stored can be verified" in said
    assert "was at version 1, m and is at 1, other" in said
    assert verify(served, "--verdicts", "stored")[0] == 0
