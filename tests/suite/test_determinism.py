"""Guards compute.deterministic: what is set, when, for whom; on a CPU, where it must change nothing."""

import os
import subprocess
import sys

import pytest
import torch

from baselines.method import Engine
from baselines.registry import get_method
from eval.errors import KeelBenchError
from eval.generation import generate
from suite.determinism import WORKSPACE, settle
from suite.plan import plan_from_config
from suite.stages.models import load
from suite.training.fine_tune import attach_lora, fine_tune
from tests.helpers import compose, plan, tiny_model
from tests.integration.test_cli import ROOT
from tests.integration.test_out_of_memory import PROMPTS, SAMPLES


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_loading_a_model_settles_it_both_ways(tokenizer, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for asked in (True, False):
        made = plan(None, f"model.source={tmp_path}", f"compute.deterministic={asked}")
        load(tmp_path, made.model, made.compute)
        assert torch.are_deterministic_algorithms_enabled() is asked
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == WORKSPACE


def test_the_workspace_is_set_before_cuda_starts_and_a_users_own_stands(tmp_path):
    code = (
        "import os, torch; from suite.determinism import settle\n"
        "settle(True); print(torch.cuda.is_initialized(), os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    )
    for own, kept in ((None, WORKSPACE), (":16:8", ":16:8")):
        environment = {**os.environ} | ({} if own is None else {"CUBLAS_WORKSPACE_CONFIG": own})
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["False", kept]


def test_every_kind_of_work_runs_under_it_and_gives_the_same_bits(tokenizer, tmp_path):
    recipe = plan(None, "train.batch_size=6", "train.accumulation=1", "train.epochs=1").train

    def work(deterministic: bool):
        settle(deterministic)
        model = tiny_model("llama")
        engine = Engine(tokens_per_batch=700, max_length=256)
        scores = [
            get_method(name)(**options).score(model, tokenizer, SAMPLES, seed=1, engine=engine).score.tolist()
            for name, options in (("larf", {"layer": 1}), ("gradsafe", {}), ("bi_anchoring", {"anchor_count": 2}))
        ]
        answers = generate(model, tokenizer, PROMPTS, max_new_tokens=6, tokens_per_batch=400)
        adapted = attach_lora(model, recipe, seed=3)
        log = fine_tune(adapted, tokenizer, SAMPLES, recipe, seed=3, work_dir=tmp_path)
        trained = [p.detach().clone() for p in adapted.parameters() if p.requires_grad]
        return scores, answers, [p["loss"] for p in log.curve], trained

    plain, settled = work(False), work(True)
    assert settled[:3] == plain[:3]
    assert all(torch.equal(a, b) for a, b in zip(settled[3], plain[3], strict=True))


def test_vllm_cannot_promise_it():
    with pytest.raises(KeelBenchError, match="needs backend=hf"):
        plan_from_config(compose(["compute.deterministic=true", "backend=vllm"]))
