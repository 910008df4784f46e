"""The damage estimate trains three models one after the other, and holds one of them at a time."""

import gc
import weakref

import pytest

from baselines.records import Sample
from eval.records import Prompt
from suite.purify.verify import ARMS, damage
from suite.stages import models
from suite.stages.models import LoadedModel, prepare
from suite.storage.cache import StageCache
from tests.helpers import tiny_model
from tests.suite.test_purify_run import compose_purify


@pytest.fixture
def collector_off():
    """Only what lets go of its objects, or collects them itself, is rid of them."""
    gc.disable()
    yield
    gc.enable()


def test_an_arms_model_is_gone_before_the_next_is_loaded(tokenizer, tmp_path, monkeypatch, collector_off):
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    plan = compose_purify(
        "method=length", "keep=0.5", "dataset.path=x.jsonl", "out=y.jsonl", "verify=true", "train=laptop",
        "train.epochs=1", "eval.max_new_tokens=2", "model/align=none", f"model.source={tmp_path / 'tiny'}",
        "model.dtype=float32",
    )  # fmt: skip
    cache = StageCache(tmp_path / "cache")
    loaded: list[weakref.ref] = []
    alive: list[int] = []  # of the models loaded before
    load = models.load

    def counted(*arguments, **options):
        alive.append(sum(model() is not None for model in loaded))
        model, its_tokenizer = load(*arguments, **options)
        loaded.append(weakref.ref(model))
        return model, its_tokenizer

    monkeypatch.setattr(models, "load", counted)
    arms = {name: [Sample.of(f"{name} {i}", "word " * i) for i in range(1, 5)] for name in ARMS}
    prompts = {"mini_harmful": [Prompt("p", "mini_harmful", "How?", "refuse", "fraud")]}
    subject = LoadedModel(prepare(plan.model, plan.compute, cache), plan.model, plan.compute)
    found, _ = damage(plan, arms, prompts, subject, cache)
    assert [arm.rows for arm in found] == [0, 4, 4, 4]
    assert alive == [0] * 6  # one untouched, which the first arm trains; two an arm but for that one
    assert all(model() is None for model in loaded)
