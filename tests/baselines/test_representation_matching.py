"""Representation matching against hidden states read one sequence at a time."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from baselines import get_method
from baselines.anchors import EMBEDDED, load_anchors
from baselines.bi_anchoring import spread_over_categories
from baselines.method import Engine
from baselines.representation_matching import RepresentationMatching
from baselines.samples import load_samples
from eval.chat import ChatFormat
from eval.errors import KeelBenchError


@pytest.fixture(scope="module")
def samples():
    return load_samples(EMBEDDED / "mini_benign.jsonl", source="mini").samples[:20]


def plain_cosines(model, tokenizer, samples, token, count):
    chat = ChatFormat(tokenizer)
    states = []
    catch = model.model.layers[-1].register_forward_hook(lambda module, args, out: states.append(out[0]))
    pairs = spread_over_categories(load_anchors())[:count]
    texts = [(s.prompt, s.response) for s in samples] + [(a.instruction, a.compliance) for a in pairs]
    with torch.no_grad():
        for place, text in enumerate(texts):
            found = chat.conversation(*text)
            model(input_ids=torch.tensor([found.ids]))
            states[place] = states[place][found.end_of_turn if token == "end_of_turn" else -1]
    catch.remove()
    of_samples, references = torch.stack(states).split([len(samples), len(pairs)])
    return cosine_similarity(of_samples[:, None], references[None], dim=-1).numpy()


@pytest.mark.parametrize("token", ["end_of_turn", "last"])
def test_agrees_with_plain_hidden_states(token, tiny_llama, samples):
    method = get_method("representation_matching")(token=token, anchor_count=7)
    scores = method.score(*tiny_llama, samples, engine=Engine(tokens_per_batch=500))
    plain = plain_cosines(*tiny_llama, samples, token, 7)
    assert np.abs(scores.score - plain.max(1)).max() < 1e-5
    assert np.abs(scores.components["mean"] - plain.mean(1)).max() < 1e-5


def test_all_pairs_are_references_by_default(tiny_llama, samples):
    scores = RepresentationMatching().score(*tiny_llama, samples[:2], engine=Engine(max_length=40))
    assert {k: scores.info[k] for k in ("references", "truncated")} == {"references": 50, "truncated": 2}


@pytest.mark.parametrize("options", [{"token": "first"}, {"anchor_count": 0}])
def test_options_are_checked(options):
    with pytest.raises(KeelBenchError, match="representation_matching"):
        RepresentationMatching(**options)
