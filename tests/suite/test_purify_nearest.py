"""Nearest anchors: a request's own anchor, or one of its category, is nearest to it; and it is only looked up once."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from baselines import get_method
from baselines.anchors import EMBEDDED, load_anchors
from baselines.method import Engine
from baselines.records import Sample
from baselines.samples import load_samples
from suite.purify.nearest import _nearest, nearest_anchors
from suite.storage.cache import StageCache
from tests.helpers import COMPUTE


def test_an_anchors_own_request_is_nearest_to_it_whatever_the_answer(tiny_llama):
    anchors = load_anchors()[:12]
    samples = [Sample.of(a.instruction, "No. " * (i % 5 + 1)) for i, a in enumerate(reversed(anchors))]
    places, likeness = _nearest(samples, anchors, SimpleNamespace(get=lambda: tiny_llama), Engine())  # type: ignore[arg-type]
    assert places.tolist() == list(range(11, -1, -1))
    assert likeness == pytest.approx([1] * 12, abs=1e-4)


def test_planted_rows_lie_nearest_to_their_own_category(smollm2_folder, tokenizer):
    """Ten categories: 7 of 63 by chance; 14 or more have a probability below 1 %."""
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.bfloat16).eval()
    planted, anchors = load_samples(EMBEDDED / "planted.jsonl", source="planted").samples[::3], load_anchors()
    places, _ = _nearest(planted, anchors, SimpleNamespace(get=lambda: (model, tokenizer)), Engine())  # type: ignore[arg-type]
    right = sum(anchors[place].category == sample.category for place, sample in zip(places, planted, strict=True))
    assert right >= 14


def test_it_is_a_stage_that_all_methods_share(tiny_llama, tmp_path):
    asked = []

    def get():
        asked.append(1)
        return tiny_llama

    spec = SimpleNamespace(dtype="float32", attention="eager")
    model = SimpleNamespace(get=get, spec=spec, weights=SimpleNamespace(key="k"))
    samples = [Sample.of("Say hello", "Hello"), Sample.of(load_anchors()[3].instruction, load_anchors()[3].compliance)]

    def find(**methods):
        return nearest_anchors(samples, methods, model, compute=COMPUTE, cache=StageCache(tmp_path))  # type: ignore[arg-type]

    larf, gradsafe = get_method("larf")(layer=1), get_method("gradsafe")()
    found, entries = find(gradsafe=gradsafe, larf=larf)
    assert found[samples[1].id].anchor == load_anchors()[3]
    assert set(found) == {s.id for s in samples}
    assert find(larf=larf)[1][0].key == entries[0].key
    assert len(asked) == 1  # from the cache
    assert find(gradsafe=gradsafe)[1][0].key == entries[0].key
    own = tmp_path / "anchors.jsonl"
    own.write_text('{"instruction": "Say it", "refusal": "No.", "compliance": "Yes.", "category": "mine"}\n')
    found, entries = find(gradsafe=gradsafe, larf=get_method("larf")(layer=1, anchors=str(own)))
    assert {near.anchor.category for near in found.values()} == {"mine"}
    assert find(length=get_method("length")()) == ({}, [])
