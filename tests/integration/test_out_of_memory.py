"""A lack of memory in the real paths: every pass of a model above so many tokens fails, as on a device that is full."""

from contextlib import contextmanager

import pytest
import torch

from baselines.method import Engine
from baselines.records import Sample
from baselines.registry import get_method
from baselines.regularizer import build_regularizer
from eval.errors import CapacityError
from eval.generation import generate
from eval.memory import recorded
from eval.records import Prompt
from suite.training.fine_tune import attach_lora, fine_tune
from tests.helpers import plan, tiny_model

SAMPLES = [
    Sample.of(f"Say the word number {i}", "word " * (1 + 3 * (i % 4)) + f"{i}", source="test") for i in range(13)
]
PROMPTS = [Prompt(f"p{i}", "b", "Say hello " * (1 + i % 5), "", "comply") for i in range(11)]


@contextmanager
def full_above(model, tokens: int, *, backward: bool = False):
    """Passes of more input tokens fail: in the forward pass, or half-way through the backward pass."""
    failures = []
    block = model.get_submodule("model.layers.1")

    def hook(module, args, kwargs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        size = hidden.shape[0] * hidden.shape[1]

        def fail(gradient=None):
            failures.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

        if size > tokens:
            if not backward:
                fail()
            if hidden.requires_grad:
                hidden.register_hook(fail)

    handle = block.register_forward_hook(hook, with_kwargs=True)
    try:
        yield failures
    finally:
        handle.remove()


def test_generation_gives_the_same_completions_in_smaller_batches(tiny_llama):
    model, tokenizer = tiny_llama
    options = {"max_new_tokens": 6, "tokens_per_batch": 2000}
    whole = generate(model, tokenizer, PROMPTS, **options)
    kept = []
    with full_above(model, 150) as failures, recorded() as events:
        assert generate(model, tokenizer, PROMPTS, keep=kept.extend, **options) == whole
    assert len(failures) == len(events) >= 2
    assert {e.what for e in events} == {"generation"}
    assert sorted(c.prompt_id for c in kept) == sorted(p.id for p in PROMPTS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("larf", {"layer": 1}),
        ("representation_matching", {}),
        ("gradsafe", {}),
        ("bi_anchoring", {"anchor_count": 2}),
        ("seal", {"batch_size": 6, "epochs": 1, "upper_weight_decay": 0.0, "upper_weight": 0.5}),
    ],
)
def test_scores_are_the_same_in_smaller_batches(tiny_llama, name, options, monkeypatch):
    model, tokenizer = tiny_llama
    method = get_method(name)(**options)
    if name == "seal":
        monkeypatch.setattr(type(method), "safe_samples", lambda self: SAMPLES[:4])
    engine = Engine(tokens_per_batch=700, max_length=256)
    whole = method.score(model, tokenizer, SAMPLES, seed=1, engine=engine)
    with full_above(model, 250) as failures, recorded() as events:
        shrunk = method.score(model, tokenizer, SAMPLES, seed=1, engine=engine)
    assert len(events) == len(failures) >= 1
    assert shrunk.score.tolist() == pytest.approx(whole.score.tolist(), rel=1e-4, abs=1e-6)


@pytest.fixture
def recipe():
    return plan(None, "train.batch_size=6", "train.accumulation=1", "train.epochs=2", "train.learning_rate=0.01").train


@pytest.mark.parametrize("backward", [False, True])
def test_training_takes_the_same_steps_in_smaller_passes(tokenizer, recipe, tmp_path, backward):
    """A backward pass that fails half-way has left a part of its gradient behind."""

    def train(tokens: int | None):
        base = tiny_model("llama")
        model = attach_lora(base, recipe, seed=3)
        with full_above(base, tokens or 10**9, backward=backward) as failures, recorded() as events:
            log = fine_tune(model, tokenizer, SAMPLES, recipe, seed=3, work_dir=tmp_path, tokens_per_pass=2048)
        tensors = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        return [p["loss"] for p in log.curve], tensors, failures, events

    losses, tensors, _, _ = train(None)
    again, shrunk, failures, events = train(120)
    assert again == pytest.approx(losses, rel=1e-5)
    for name, value in tensors.items():
        torch.testing.assert_close(shrunk[name], value, rtol=1e-3, atol=1e-5)
    assert [e.what for e in events] == ["fine-tuning"] * len(failures)
    assert 1 <= len(failures) <= 3  # later steps start with what fits


def test_a_pass_that_must_stay_whole_says_what_to_do(tokenizer, recipe, tmp_path):
    base = tiny_model("llama")
    model = attach_lora(base, recipe, seed=3)
    vcl = build_regularizer("vcl", {})
    with full_above(base, 120), pytest.raises(CapacityError, match=r"lower train.batch_size and raise"):
        fine_tune(
            model, tokenizer, SAMPLES, recipe, seed=3, work_dir=tmp_path, auxiliary_loss=vcl.auxiliary_loss,
            hidden_states=True,
        )  # fmt: skip


def test_the_run_records_what_shrank_and_its_keys_do_not_know(tmp_path, tokenizer, monkeypatch):
    """Through the whole pipeline, and again from the cache: what the stages met stays with them."""
    import json

    from suite.pipeline import run
    from suite.stages.models import LoadedModel

    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = (
        f"model.source={folder}", "model.attention=sdpa", "model.dtype=float32", "model/align=none", "method=larf",
        "method.layer=1", "dataset.limit=12", "selection.k=6", "train.epochs=1", "train.batch_size=6",
        "train.accumulation=1", "train.max_length=256", "train.warmup_ratio=0", "eval.limit=2", "eval.max_new_tokens=4",
        "tracking=disabled", "compute.max_length=256",
    )  # fmt: skip

    def go(name: str, tokens: int):
        made = plan(tmp_path / name, *settings)
        get = LoadedModel.get

        def limited(self):
            base, tok = get(self)
            guards.enter_context(full_above(base, tokens))
            return base, tok

        (tmp_path / name / "run").mkdir(parents=True, exist_ok=True)
        from contextlib import ExitStack

        with ExitStack() as guards, monkeypatch.context() as patched:
            patched.setattr(LoadedModel, "get", limited)
            return run(made, tmp_path / name / "run", "sweep")

    whole, shrunk = go("whole", 10**9), go("shrunk", 300)
    assert shrunk.run_id == whole.run_id  # the same keys
    told = json.loads(shrunk.row()["shrunk"])
    assert {e["stage"] for e in told} >= {"scores", "adapter"}
    assert all(e["items"] > 1 and e["budget"] < e["tokens"] for e in told)
    assert json.loads(whole.row()["shrunk"]) == []
    again = go("shrunk", 10**9)
    assert all(e.cached for e in again.entries)
    assert json.loads(again.row()["shrunk"]) == told
    assert shrunk.rates == whole.rates
