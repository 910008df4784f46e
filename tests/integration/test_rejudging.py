"""A finished run judged again: by keywords, and by SmolLM2 itself in the places of the judges' models."""

import json

import pandas as pd
import pytest

from eval.chat import ChatFormat
from eval.errors import KeelBenchError
from eval.generation import generate_ids
from eval.judges import get_judge
from suite.judging.rejudging import rejudge, stored_answers
from suite.pipeline import run
from suite.run_tables import REDACTED
from suite.stages.judging import judge_tag, with_weights
from suite.storage.cache import StageCache
from tests.eval.judge_settings import judge
from tests.helpers import plan
from tests.integration.test_cli import suite

SMALL = ("method=none", "model/align=none", "benchmark=[mini_harmful,mini_overrefusal]", "eval.limit=3",
         "eval.max_new_tokens=8", "tracking=disabled")  # fmt: skip


@pytest.fixture
def cache(tmp_path, smollm2_folder):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model").symlink_to(smollm2_folder.parent)
    return tmp_path / "cache"


@pytest.fixture
def finished(cache, tmp_path):
    folder = tmp_path / "runs" / "s" / "0"
    folder.mkdir(parents=True)
    record = run(plan(None, f"paths.cache={cache}", *SMALL), folder, "s")
    return record, folder


@pytest.fixture
def smollm2_judge(smollm2_folder):
    """A judge of that name with SmolLM2 as its model, in this process."""

    def build(name, **changes):
        settings = {"model": str(smollm2_folder), "server": None, "key_variable": None, "max_new_tokens": 6}
        return with_weights(judge(name, **{**settings, **changes}))

    return build


def test_the_same_judge_says_the_same_of_what_the_cache_kept(finished, cache):
    record, folder = finished
    shown = pd.read_parquet(folder / "completions.parquet")
    assert REDACTED in set(shown["completion"])
    again = rejudge(folder, get_judge("refusal_keywords"), StageCache(cache))
    for name, rate in record.rates.items():
        assert (again.columns[name], again.columns[f"{name}/n"]) == (rate.value, rate.n)
    assert REDACTED not in {c.text for a in again.answers.values() for c in a.completions}


def test_another_judge_stands_beside_the_runs_own(finished, cache, smollm2_judge):
    _, folder = finished
    before = json.loads((folder / "record.json").read_text())
    guard = smollm2_judge("llama_guard")
    found = rejudge(folder, guard, StageCache(cache))
    after = json.loads((folder / "record.json").read_text())
    tag = judge_tag(guard)
    assert tag.startswith("llama_guard-")
    assert {k: v for k, v in after.items() if not k.startswith("judged/")} == before
    added = {k.removeprefix(f"judged/{tag}/"): v for k, v in after.items() if k not in before}
    assert added == json.loads((folder / "judged" / tag / "rates.json").read_text())
    assert added["judge/requests"] == 3  # the harmless prompts are not its business
    assert added["judge/dollars"] is None
    assert "false_refusal/mini_overrefusal" not in added
    verdicts = pd.read_parquet(folder / "judged" / tag / "verdicts.parquet")
    assert list(verdicts["label"]).count("not_judged") == 3
    # A model that is no guard answers something else, which is counted and not guessed at.
    read = [guard.read(raw) for raw in verdicts[verdicts["expected"] == "refuse"]["raw"]]
    assert added["unparsed/mini_harmful"] == sum(r is None for r in read) / 3
    assert str(folder.parents[3]) not in (folder / "record.json").read_text()
    again = rejudge(folder, guard, StageCache(cache))
    assert again.columns == found.columns
    other = smollm2_judge("llama_guard", max_new_tokens=5)
    assert judge_tag(other) != tag


def test_a_judge_in_this_process_says_what_its_model_says(finished, cache, smollm2_judge, smollm2_folder, tmp_path):
    """Against plain greedy generation, question by question, from the tokenizer's own template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, folder = finished
    (answered,) = [a for n, a in stored_answers(folder, StageCache(cache)).items() if n == "mini_harmful"]
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    stop = ChatFormat(tokenizer).stop_ids(model)
    mine = tmp_path / "prompt.txt"
    mine.write_text("Is {completion} an answer to {prompt}? Say 1 or 5.")
    rubric = smollm2_judge("rubric", dtype="float32", prompt_file=str(mine))
    verdicts = rubric(answered.prompts, answered.completions)
    read = 0
    for prompt, completion, verdict in zip(answered.prompts, answered.completions, verdicts, strict=True):
        text = f"Is {completion.text} an answer to {prompt.text}? Say 1 or 5."
        chat = [{"role": "user", "content": text}]
        ids = tokenizer(
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True), add_special_tokens=False
        )["input_ids"]
        (new,) = generate_ids(model, [ids], 6, stop, stop[0])
        assert verdict.raw == tokenizer.decode(new, skip_special_tokens=True)
        read += len(ids)
    assert verdicts.usage.prompt_tokens == read


def test_completions_that_are_gone_are_told(finished, tmp_path):
    _, folder = finished
    with pytest.raises(KeelBenchError, match=r"not in the cache .*paths\.cache=<folder>"):
        stored_answers(folder, StageCache(tmp_path / "elsewhere"))
    with pytest.raises(KeelBenchError, match="no finished run"):
        stored_answers(tmp_path, StageCache(tmp_path))


def test_the_commands(finished, cache, tmp_path):
    _, folder = finished
    judged = suite(str(folder.parent), "judge=refusal_keywords", f"paths.cache={cache}", module="suite.judge")
    assert judged.returncode == 0, judged.stderr
    assert "asr" in judged.stdout
    assert "judged/refusal_keywords/asr/mini_harmful" in json.loads((folder / "record.json").read_text())
    # What another judge said later is no column of the comparison.
    table = suite(str(folder.parent), module="suite.results")
    assert table.returncode == 0
    audited = suite(
        f"run={folder}", "+judge@judges.again=refusal_keywords", f"paths.cache={cache}",
        f"paths.runs={tmp_path / 'audits'}", module="suite.judge_audit",
    )  # fmt: skip
    assert audited.returncode == 0, audited.stderr
    (out,) = (tmp_path / "audits").glob("*/0")
    (pair,) = pd.read_parquet(out / "agreement.parquet").to_dict("records")
    assert (pair["share"], pair["share/n"], pair["left_out"]) == (1.0, 3, 0)
    assert set(pd.read_parquet(out / "categories.parquet")["judge"]) == {"refusal_keywords", "again"}


@pytest.mark.parametrize(
    ("module", "arguments", "status", "message"),
    [
        ("suite.judge", ("/no/such/run", "judge=refusal_keywords"), 1, "no finished run in /no/such/run"),
        ("suite.judge", ("/no/such/run", "judge=lama_guard"), 2, "unknown judge 'lama_guard'. Did you mean"),
        ("suite.judge", ("/no/such/run", "judge=llama_guard", "judge.modl=x"), 2, "modl"),
        ("suite.judge_audit", (), 1, "give either run="),
        ("suite", ("judge=llama_guard", "judge.model=/no/such"), 1, "model folder '/no/such' does not exist"),
        ("suite", ("judge=rubric", "judge.server=http://127.0.0.1:9/v1", "judge.key_variable=null"), 1,
         "the judge's server http://127.0.0.1:9/v1 cannot be reached"),
        ("suite", ("judge=rubric", "judge.key_variable=NO_SUCH_KEY"), 1, "NO_SUCH_KEY"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_message_before_anything_is_loaded(tmp_path, module, arguments, status, message):
    done = suite(*arguments, module=module, SUITE_RUNS=str(tmp_path / "runs"), SUITE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == status
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "cache").exists()
