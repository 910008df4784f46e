"""The per-sample gradient engine against autograd, one sample and one whole gradient at a time."""

import copy
import functools
import re

import pytest
import torch
from scipy.stats import spearmanr

from baselines.anchors import EMBEDDED
from baselines.gradients import capture, contractions, prefix
from baselines.gradients.arithmetic import float32_arithmetic
from baselines.gradients.capture import frozen, observe_backward, trainable_layers
from baselines.gradients.whole import gradient_terms, reference_gradients
from baselines.losses import collate, supervised_labels
from baselines.method import Engine
from baselines.samples import load_samples
from eval.chat import ChatFormat
from eval.errors import KeelBenchError
from tests.baselines import plain_twins
from tests.helpers import tiny_model

MODELS = {
    "llama, tied": lambda: tiny_model("llama", tied=True),
    "llama, untied": lambda: tiny_model("llama", tied=False),
    "qwen2 with biases": lambda: tiny_model("qwen2", tied=False),
    "adapters alone": lambda: with_adapters(tiny_model("llama")),
    "feed-forward alone": lambda: train_only(tiny_model("llama"), "mlp"),
    "norms alone": lambda: train_only(tiny_model("llama"), "norm"),
}


def with_adapters(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    found = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in found.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave lora_A without a gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return found.eval()


def train_only(model, part):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part in name)
    return model


@pytest.fixture(scope="module")
def texts():
    samples = load_samples(EMBEDDED / "mini_benign.jsonl", source="mini").samples
    return [(s.prompt, s.response) for s in samples[:48]]


@pytest.fixture(scope="module")
def conversations(tokenizer, texts):
    chat = ChatFormat(tokenizer)
    return [chat.conversation(*t, max_length=128) for t in texts]


def terms(model, conversations, references, tokens=None, engine=Engine(tokens_per_batch=600)):
    """Engine's dot products and norm, [n, r + 1], against references out of the last conversations."""
    samples = conversations[: len(conversations) - 2 * references]
    items = [supervised_labels(c, tokens=tokens) for c in conversations]
    weights = torch.zeros(references, len(items))
    for r in range(references):
        weights[r, len(samples) + 2 * r : len(samples) + 2 * r + 2] = torch.tensor([0.25, 0.75])
    against = reference_gradients(model, items, weights, engine=engine) if references else None
    found = gradient_terms(model, len(samples), items.__getitem__, str, against, engine=engine)
    return torch.cat([found.dots, found.norms[:, None]], dim=1)


def plain_terms(model, conversations, references, tokens=None):
    samples = conversations[: len(conversations) - 2 * references]
    gradients = [plain_twins.gradients(model, plain_twins.loss(model, c, tokens)) for c in conversations]
    rows = []
    against = [
        {n: 0.25 * g + 0.75 * second[n] for n, g in first.items()}
        for first, second in zip(gradients[len(samples) :: 2], gradients[len(samples) + 1 :: 2], strict=True)
    ]
    for g in gradients[: len(samples)]:
        rows.append([plain_twins.dot(g, r) for r in against] + [plain_twins.dot(g, g) ** 0.5])
    return torch.tensor(rows, dtype=torch.float64)


def assert_close(found, plain, tolerance=1e-4):
    error = (found - plain).abs().amax(0) / plain.abs().amax(0)
    assert error.max() < tolerance, error


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("tokens", [10, None])
def test_dots_and_norms_agree_with_autograd(kind, tokens, conversations):
    model = MODELS[kind]()
    chosen = conversations[:14]
    assert_close(terms(model, chosen, 3, tokens), plain_terms(model, chosen, 3, tokens))


@pytest.mark.parametrize("stream", [0, 10**9])
def test_both_routes_of_a_linear_layer_are_exact(stream, conversations, monkeypatch):
    monkeypatch.setattr(contractions, "STREAM", stream)  # 0: gradients are written out; large: never
    monkeypatch.setattr(contractions, "BLOCK", 5000)  # two samples at a time
    model = tiny_model("llama")
    assert_close(terms(model, conversations[:12], 2), plain_terms(model, conversations[:12], 2))


def test_windows_and_batches_change_nothing(conversations, monkeypatch):
    model = tiny_model("llama")
    whole = terms(model, conversations, 1)
    monkeypatch.setattr(capture, "WINDOW", 5)
    assert_close(terms(model, conversations, 1, engine=Engine(tokens_per_batch=1)), whole)


def test_progress_counts_every_sample_once(conversations):
    done = []
    items = [supervised_labels(c) for c in conversations]
    gradient_terms(tiny_model("llama"), len(items), items.__getitem__, str, engine=Engine(on_progress=done.append))
    assert sum(done) == len(items)


def test_bfloat16_ranks_like_its_twin(conversations):
    model = tiny_model("llama").bfloat16()
    found, plain = terms(model, conversations, 2), plain_terms(model, conversations, 2)
    for j in range(3):
        assert spearmanr(found[:, j], plain[:, j]).statistic > 0.995


def test_float16_is_scaled_into_range(conversations):
    model = tiny_model("llama")
    expected = terms(model, conversations[:12], 2)
    assert_close(terms(copy.deepcopy(model).half(), conversations[:12], 2), expected, 0.02)


def test_a_model_is_left_as_it_was_found(conversations):
    model = train_only(tiny_model("llama"), "mlp")
    model.train()
    parameter = model.model.layers[0].mlp.up_proj.weight
    parameter.grad = torch.ones_like(parameter)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    terms(model, conversations[:6], 1)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert model.training
    assert parameter.grad is not None
    assert bool((parameter.grad == 1).all())
    assert all(p.grad is None for p in model.parameters() if p is not parameter)
    assert not any(m._forward_hooks or "forward" in m.__dict__ for m in model.modules())


def test_a_common_prefix_is_computed_once_and_changes_nothing(conversations, monkeypatch):
    model = tiny_model("qwen2")
    once = terms(model, conversations[:12], 1)
    monkeypatch.setattr(prefix, "WORTH", 10**6)
    assert_close(terms(model, conversations[:12], 1), once, 1e-5)


def test_layers_with_a_forward_of_their_own_keep_it(conversations):
    model = tiny_model("llama")
    layer = model.model.layers[0].mlp.up_proj
    layer.forward = functools.partial(torch.nn.Linear.forward, layer)  # as accelerate's device maps do
    own = layer.forward
    terms(model, conversations[:6], 1)
    assert layer.forward is own


def test_a_sample_that_is_not_finite_is_named(conversations):
    model = tiny_model("llama", tied=False)
    items = [supervised_labels(c) for c in conversations[:6]]
    others = {i for k, (ids, _) in enumerate(items) if k != 3 for i in ids}
    token = next(i for i in items[3][0] if i not in others)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    with pytest.raises(KeelBenchError, match="loss of sample row 3 is not finite"):
        gradient_terms(model, 6, items.__getitem__, lambda i: f"row {i}")


def test_a_module_without_a_known_form_is_named():
    model = tiny_model("llama")
    model.model.layers[1].mlp.gate = torch.nn.PReLU()
    with pytest.raises(KeelBenchError, match=r"model\.layers\.1\.mlp\.gate \(PReLU"):
        trainable_layers(model)
    model.model.layers[1].mlp.gate.requires_grad_(False)
    assert trainable_layers(model)


def test_parameters_shared_otherwise_than_by_a_tied_head_are_refused():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(KeelBenchError, match=re.escape("model.layers.0.mlp.up_proj shares")):
        trainable_layers(model)


def test_a_layer_that_runs_twice_is_refused(conversations):
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    items = [supervised_labels(c) for c in conversations[:2]]
    with pytest.raises(KeelBenchError, match="runs twice"):
        gradient_terms(model, 2, items.__getitem__, str)


def test_a_frozen_model_has_no_gradients():
    with pytest.raises(KeelBenchError, match="no parameter requires a gradient"):
        trainable_layers(tiny_model("llama").requires_grad_(False))


def test_layer_norm_gradients():
    torch.manual_seed(0)
    module = torch.nn.LayerNorm(8)
    x, g = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    found = contractions.norm_gradients(module, x, g)
    for b in range(3):
        (plain,) = torch.autograd.grad((module(x[b]) * g[b]).sum(), module.weight)
        assert torch.allclose(found[b], plain, atol=1e-5)


def test_float32_arithmetic_equals_a_float32_copy(conversations):
    half = tiny_model("qwen2").half()
    wide = copy.deepcopy(half).float()
    batch = collate([supervised_labels(c) for c in conversations[:4]])
    seen: list[dict] = []
    for model, arithmetic in ((half, float32_arithmetic(half)), (wide, frozen(wide))):
        found: dict = {}
        with arithmetic:
            layers = [layer for layer in trainable_layers(tiny_layers(model)) if layer.kind == "linear"]
            scale = capture.loss_scale(model)
            observe_backward(
                model, batch, layers, lambda at, x, g, _, f=found, s=scale: f.update({at.name: (x, g / s)})
            )
        seen.append(found)
    assert seen[0].keys() == seen[1].keys()
    for name, (x, g) in seen[0].items():
        assert x.dtype == g.dtype == torch.float32
        assert torch.allclose(x, seen[1][name][0], atol=1e-4)
        assert torch.allclose(g, seen[1][name][1], atol=1e-6)
    assert not any("forward" in m.__dict__ for m in half.modules())


def tiny_layers(model):
    return model.requires_grad_(True)
