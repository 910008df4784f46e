"""GradSafe-Zero against its plain twin, and its options."""

import copy
import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from baselines import Sample, get_method
from baselines.anchors import EMBEDDED
from baselines.gradients import slices
from baselines.gradsafe import SYSTEM, GradSafe, _Prompts, load_prompts, takes_system_turn
from baselines.method import Engine
from baselines.samples import load_samples
from eval.chat import ChatFormat
from eval.errors import DataError, KeelBenchError
from tests.baselines import plain_twins
from tests.helpers import tiny_model


@pytest.fixture(scope="module")
def samples():
    return load_samples(EMBEDDED / "mini_benign.jsonl", source="mini").samples[:24]


def plain_scores(model, tokenizer, samples, supervise_end=True, gap=1.0):
    twin = plain_twins.GradSafe(model, tokenizer, *load_prompts(), SYSTEM, supervise_end, gap)
    return np.array([twin.score(s.prompt) for s in samples]), twin


def assert_agree(found, plain):
    assert np.abs(found - plain).max() / np.abs(plain).max() < 1e-4
    assert spearmanr(found, plain).statistic >= 0.9999


def test_smollm2_agrees_with_the_plain_twin(smollm2, samples):
    samples = sorted(samples, key=lambda s: len(s.prompt))[:6]
    scores = get_method("gradsafe")().score(*smollm2, samples, engine=Engine(tokens_per_batch=1024))
    plain, twin = plain_scores(*smollm2, samples)
    assert_agree(scores.score, plain)
    critical = sum(int(c.sum()) for c in twin.critical.values())
    # A gap within rounding of the threshold may fall on either side.
    assert scores.info["critical_rows"] + scores.info["critical_columns"] == pytest.approx(critical, rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("supervise_end", [True, False])
def test_tiny_models_agree_with_the_plain_twin(kind, supervise_end, tokenizer, samples, monkeypatch):
    monkeypatch.setattr(slices, "BLOCK", 4000)  # a few samples' slices at a time
    model = tiny_model(kind, tied=False)
    method = GradSafe(supervise_end=supervise_end, gap_threshold=0.3)
    plain, _ = plain_scores(model, tokenizer, samples, supervise_end, 0.3)
    assert_agree(method.score(model, tokenizer, samples, engine=Engine(tokens_per_batch=200)).score, plain)


def test_top_fraction_takes_the_largest_gaps(tiny_llama, samples):
    few, more = (GradSafe(gap="top_fraction", top_fraction=f).score(*tiny_llama, samples[:4]) for f in (0.01, 0.1))
    total = 3 * (3 * (32 + 64) + 2 * (32 + 32) + 2 * (32 + 16))  # rows and columns of seven matrices a block
    assert few.info["critical_rows"] + few.info["critical_columns"] == -(-total // 100)
    assert more.info["critical_rows"] + more.info["critical_columns"] == -(-total // 10)


def test_without_critical_slices_the_error_names_the_way_out(tiny_llama, samples):
    with pytest.raises(KeelBenchError, match=r"method\.gap=top_fraction"):
        GradSafe(gap_threshold=2.1).score(*tiny_llama, samples[:1])


def test_a_model_without_such_matrices(tiny_llama, samples):
    model, tokenizer = tiny_llama
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    with pytest.raises(KeelBenchError, match="no trainable matrix has 'mlp' or 'self' in its name"):
        GradSafe().score(model, tokenizer, samples[:1])


def test_adapters_alone(tiny_llama, samples):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny_llama
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).eval()
    scores = GradSafe(gap="top_fraction", top_fraction=1.0).score(model, tokenizer, samples[:3])
    assert scores.info["critical_rows"] == 3 * (4 + 32 + 4 + 32)
    # lora_B starts at zero, so lora_A has no gradient yet: its slices count as cosine 0.
    assert scores.components["zero_slices"].tolist() == [3 * (32 + 4 + 64 + 4)] * 3


def test_use_input(tiny_llama):
    method = GradSafe(gap="top_fraction", use_input=False)
    pair = [Sample.of("Summarise.", "x", input="Long text."), Sample.of("Summarise.", "y", input="Other words.")]
    assert np.ptp(method.score(*tiny_llama, pair).score) == pytest.approx(0, abs=1e-6)
    assert np.ptp(GradSafe(gap="top_fraction").score(*tiny_llama, pair).score) > 1e-4


def test_16_bit_models_choose_the_slices_of_float32(tokenizer, samples):
    model = tiny_model("llama")
    found = []
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(model).to(dtype)
        wide = copy.deepcopy(half).float()
        method = GradSafe(gap_threshold=0.3)
        prompts = _Prompts(ChatFormat(tokenizer), method.system, True)
        one, other = (method._slices(m, prompts) for m in (half, wide))
        same = sum(len(set(one[n].rows.tolist()) & set(other[n].rows.tolist())) for n in one.keys() & other.keys())
        assert same >= 0.99 * sum(len(s.rows) for s in other.values())
        found.append(method.score(half, tokenizer, samples).score)
        assert spearmanr(found[-1], method.score(wide, tokenizer, samples).score).statistic > 0.98


def test_bfloat16_ranks_like_its_twin(tokenizer, samples):
    model = tiny_model("llama").bfloat16()
    scores = GradSafe(gap="top_fraction", top_fraction=1.0).score(model, tokenizer, samples)
    plain, _ = plain_scores(model, tokenizer, samples, gap=-3)
    assert spearmanr(scores.score, plain).statistic >= 0.995


def test_templates_without_a_system_role(tokenizer):
    chat = ChatFormat(tokenizer)
    assert takes_system_turn(chat, SYSTEM)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    chat = ChatFormat(tokenizer)
    assert not takes_system_turn(chat, SYSTEM)
    (ids, labels), truncated = _Prompts(chat, SYSTEM, True).encode("Hello")
    assert f"user\n{SYSTEM}Hello" in tokenizer.decode(ids)
    assert not truncated
    assert tokenizer.decode([i for i in labels if i >= 0]) == "Sure<|im_end|>"


@pytest.mark.parametrize(
    ("supervise_end", "text"), [(True, "Sure<|im_end|>"), (False, "Sure")]
)  # fmt: skip
def test_what_the_loss_covers(tokenizer, supervise_end, text):
    (_, labels), _ = _Prompts(ChatFormat(tokenizer), SYSTEM, supervise_end).encode("Hello")
    assert tokenizer.decode([i for i in labels if i >= 0]) == text


@pytest.mark.parametrize("content", ["{", "[]", '{"unsafe": ["a"]}', '{"unsafe": ["a"], "safe": []}'])
def test_a_malformed_prompts_file(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"prompts\.json"):
        load_prompts(str(path))


def test_own_prompts(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"unsafe": ["a", "b"], "safe": ["c"]}))
    assert load_prompts(str(path)) == (["a", "b"], ["c"])


@pytest.mark.parametrize("options", [{"gap": "largest"}, {"top_fraction": 0}, {"top_fraction": 1.5}])
def test_options_are_checked(options):
    with pytest.raises(KeelBenchError, match="gradsafe"):
        GradSafe(**options)
