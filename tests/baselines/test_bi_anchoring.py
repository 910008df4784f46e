"""Bi-Anchoring against its plain twin, and its options."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from baselines import Sample, get_method
from baselines.anchors import EMBEDDED, load_anchors
from baselines.bi_anchoring import BiAnchoring, spread_over_categories
from baselines.method import Engine
from baselines.samples import load_samples
from eval.errors import CapacityError, KeelBenchError
from tests.baselines import plain_twins
from tests.helpers import tiny_model


@pytest.fixture(scope="module")
def samples():
    return load_samples(EMBEDDED / "mini_benign.jsonl", source="mini").samples[:24]


def sets(count):
    pairs = spread_over_categories(load_anchors())
    first, second = pairs[:count], pairs[count : 2 * count]
    return [
        [(a.instruction, a.compliance) for a in first],
        [(a.instruction, a.refusal) for a in first],
        [(a.instruction, a.refusal) for a in second],
    ]


def plain_scores(model, tokenizer, samples, count, tokens=10, anchor_tokens=10):
    twin = plain_twins.BiAnchoring(model, tokenizer, sets(count), anchor_tokens)
    return np.array([twin.terms((s.prompt, s.response), tokens) for s in samples]).T


def assert_agree(scores, plain):
    found = [scores.components[n] for n in ("harmful", "safe1", "safe2", "gradient_norm")] + [scores.score]
    for values, expected in zip(found, [*plain, plain[0] - plain[1] - plain[2]], strict=True):
        assert np.abs(values - expected).max() / np.abs(expected).max() < 1e-4
        assert spearmanr(values, expected).statistic >= 0.9999


def test_smollm2_agrees_with_the_plain_twin(smollm2, samples):
    samples = sorted(samples, key=lambda s: len(s.prompt + s.response))[:6]
    method = get_method("bi_anchoring")(anchor_count=1, separate_terms=True)
    # Batches of one would compare MKL's float32 products of few rows with those of many, which differ by 1e-4 here.
    scores = method.score(*smollm2, samples, engine=Engine(tokens_per_batch=1024))
    assert scores.ids == tuple(s.id for s in samples)
    plain = plain_scores(*smollm2, samples, 1)
    assert_agree(scores, plain)
    joint = replace(method, separate_terms=False).score(*smollm2, samples, engine=Engine(tokens_per_batch=1024))
    assert joint.components.keys() == {"gradient_norm", "loss"}
    expected = plain[0] - plain[1] - plain[2]
    assert np.abs(joint.score - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.parametrize("tokens", [3, "all"])
def test_response_tokens(tokens, tiny_llama, samples):
    method = BiAnchoring(response_tokens=tokens, anchor_response_tokens=tokens, anchor_count=4, separate_terms=True)
    number = None if tokens == "all" else tokens
    assert_agree(method.score(*tiny_llama, samples), plain_scores(*tiny_llama, samples, 4, number, number))


def test_short_responses_use_what_there_is_and_truncation_is_counted(tiny_llama, samples):
    short = [Sample.of("Say yes.", "Yes."), Sample.of("Say no.", "No."), *samples[:3]]
    scores = BiAnchoring(anchor_count=2).score(*tiny_llama, short, engine=Engine(max_length=64))
    assert scores.info["short_responses"] == 2
    lengths = [len(tiny_llama[1].apply_chat_template(chat(s), return_dict=False)) for s in short]
    assert scores.info["truncated"] == sum(length > 64 for length in lengths) > 0
    assert np.isfinite(scores.score).all()


def chat(sample):
    return [{"role": "user", "content": sample.prompt}, {"role": "assistant", "content": sample.response}]


def test_weights_choose_the_terms(tiny_llama, samples):
    apart = BiAnchoring(anchor_count=2, separate_terms=True).score(*tiny_llama, samples[:4])
    one = BiAnchoring(weights=(1, 0, 0), anchor_count=2).score(*tiny_llama, samples[:4])
    assert one.score == pytest.approx(apart.components["harmful"], rel=1e-4)
    mixed = BiAnchoring(weights=(2, 0, -0.5), anchor_count=2).score(*tiny_llama, samples[:4])
    expected = 2 * apart.components["harmful"] - 0.5 * apart.components["safe2"]
    assert mixed.score == pytest.approx(expected, rel=1e-4)


def test_accumulated_anchors_are_running_sums(tiny_llama, samples):
    model, tokenizer = tiny_llama
    method = BiAnchoring(accumulate_anchors=True, anchor_count=3, separate_terms=True)
    found = method.score(model, tokenizer, samples[:3]).components["safe2"]
    twin = plain_twins.BiAnchoring(model, tokenizer, [], 10)
    of_each = [plain_twins.gradients(model, twin.loss_of(pair, 10)()) for pair in sets(3)[2]]
    reference = {n: torch.zeros_like(g) for n, g in of_each[0].items()}
    running = {n: torch.zeros_like(g) for n, g in of_each[0].items()}
    for g in of_each:
        running = {n: running[n] + g[n] for n in g}
        norm = plain_twins.dot(running, running) ** 0.5
        reference = {n: reference[n] + running[n] / (3 * norm) for n in g}
    for value, sample in zip(found, samples[:3], strict=True):
        g = plain_twins.gradients(model, twin.loss_of((sample.prompt, sample.response), 10)())
        expected = plain_twins.dot(g, reference) / plain_twins.dot(g, g) ** 0.5
        assert value == pytest.approx(expected, abs=1e-5)


def test_anchors_are_spread_over_categories():
    pairs = load_anchors()
    categories = list(dict.fromkeys(a.category for a in pairs))
    spread = spread_over_categories(pairs)
    assert [a.category for a in spread[: len(categories)]] == categories
    assert sorted(a.instruction for a in spread) == sorted(a.instruction for a in pairs)


def test_bfloat16_ranks_like_its_twin(tokenizer, samples):
    model = tiny_model("llama").bfloat16()
    scores = BiAnchoring(anchor_count=4).score(model, tokenizer, samples)
    plain = plain_scores(model, tokenizer, samples, 4)
    assert spearmanr(scores.score, plain[0] - plain[1] - plain[2]).statistic >= 0.995


def test_a_sample_whose_loss_is_not_finite_is_named(tokenizer, samples):
    model = tiny_model("llama", tied=False)
    odd = Sample.of("quetzalcoatl", "Who?")
    token = tokenizer("quetzalcoatl", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    with pytest.raises(KeelBenchError, match=f"sample {odd.id} is not finite"):
        BiAnchoring(anchor_count=2).score(model, tokenizer, [odd])


@pytest.mark.parametrize(
    "options",
    [{"response_tokens": 0}, {"response_tokens": "some"}, {"anchor_response_tokens": True}, {"weights": (0, 0, 0)},
     {"weights": (1, 2)}, {"anchor_count": 0}],
)  # fmt: skip
def test_options_are_checked(options):
    with pytest.raises(KeelBenchError, match="bi_anchoring"):
        BiAnchoring(**options)


def test_too_few_anchors(tiny_llama, samples):
    with pytest.raises(CapacityError, match="anchor_count=26 needs 52"):
        BiAnchoring(anchor_count=26).score(*tiny_llama, samples[:1])
