"""Counted operations against PyTorch's own counter: passes, every scoring method, training, answering."""

import json
import mmap
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from baselines import Sample, get_method
from baselines.method import Engine
from eval.flops import Shape, Work
from eval.generation import generate_ids
from suite.conditions import devices
from suite.flops import compute_costs
from suite.plan import BackendSpec, LoraRecipe, VllmSpec
from suite.storage.cache import Cost, Entry, StageCache
from suite.training.fine_tune import attach_lora, fine_tune
from tests.helpers import tiny_model

TOKENS = 40
ONE_BY_ONE = Engine(tokens_per_batch=1)  # neither padding nor a shared prefix, which the formulas leave out
SAMPLES = [
    Sample.of("Name three colours of a traffic light", "Red, yellow and green, from top to bottom."),
    Sample.of("What is a keel?", "The beam along a ship's bottom, which keeps her upright when the wind blows."),
    Sample.of("Say yes", "Yes."),
]
RECIPE = LoraRecipe(
    name="t", rank=8, alpha=16, dropout=0.0, target_modules=("q_proj", "v_proj", "down_proj"), learning_rate=1e-3,
    epochs=1, batch_size=1, accumulation=1, warmup_ratio=0.0, schedule="constant", weight_decay=0.0, max_grad_norm=1.0,
    max_length=64,
)  # fmt: skip


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.fixture
def model():
    """Eager attention, whose products the counter sees one by one in both directions."""
    found = tiny_model("llama", layers=8)
    found.set_attn_implementation("eager")
    return found


def test_a_pass_is_exact(model):
    ids, shape = torch.randint(3, 1000, (1, TOKENS)), Shape.of(model)
    assert shape.blocks == 8
    with torch.no_grad():
        assert counted(lambda: model.model(ids)) == shape.forward([TOKENS])
        assert counted(lambda: model(ids, logits_to_keep=7)) == shape.forward([TOKENS], 7)
        assert counted(lambda: model.model.layers[0].mlp(torch.zeros(1, TOKENS, 32))) < shape.upto(1).forward([TOKENS])
    back = counted(lambda: model(ids).logits.sum().backward())
    # The head is trained too: 2 V d a position on top.
    expected = shape.forward([TOKENS], TOKENS) + shape.backward([TOKENS], TOKENS) + 2 * shape.head * TOKENS
    assert back == expected


def test_a_folders_shape_is_its_models(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    loaded, kept = Shape.of(model), Shape.of_folder(tmp_path / "m")
    assert (kept.parameters, kept.blocks, kept.attention, kept.head) == (
        loaded.parameters, loaded.blocks, loaded.attention, loaded.head,
    )  # fmt: skip
    adapted = attach_lora(model, RECIPE, 0)
    adapted.save_pretrained(tmp_path / "a")
    assert Shape.of_folder(tmp_path / "m", tmp_path / "a").parameters == Shape.of(adapted).parameters > kept.parameters
    assert Shape.of(adapted).trained == Shape.of(adapted).parameters - kept.parameters
    assert Shape.of_folder(tmp_path / "nothing") is None


def test_answering(model):
    prompts, shape = [[5, 6, 7, 8, 9], [11] * 12], Shape.of(model)
    found = counted(lambda: [generate_ids(model, [p], 6, [1], 1) for p in prompts])
    assert shape.answering([5, 12], [6, 6]) == pytest.approx(found, rel=0.01)
    assert shape.answering([5], [0]) == 0


# What is left: products that the first block need not make, padding between GradSafe's four reference prompts.
@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("larf", {"layer": 1}, 0.001),
        ("representation_matching", {"anchor_count": 5}, 0.001),
        ("gradsafe", {"gap": "top_fraction", "top_fraction": 0.05}, 0.03),
        ("bi_anchoring", {"anchor_count": 3}, 0.03),
        ("bi_anchoring", {"anchor_count": 3, "separate_terms": True, "response_tokens": "all"}, 0.03),
        ("seal", {"epochs": 2, "batch_size": 2, "upper_weight": 1.0, "upper_weight_decay": 0.1}, 0.03),
    ],
)
def test_scoring(model, tokenizer, monkeypatch, name, options, tolerance):
    monkeypatch.setattr("baselines.gradients.prefix.WORTH", 1 << 30)  # no prefix is computed once for all
    method = get_method(name)(**options)
    scores = []
    found = counted(lambda: scores.append(method.score(model, tokenizer, SAMPLES, engine=ONE_BY_ONE)))
    info = scores[0].info
    assert info["flops"] == pytest.approx(found, rel=tolerance)
    assert info["tokens"] > sum(len(tokenizer(s.prompt)["input_ids"]) for s in SAMPLES)


def test_larfs_first_stage(model, tokenizer, monkeypatch):
    from baselines import larf_sensitivity

    monkeypatch.setattr(larf_sensitivity, "refusal_phrase", lambda text: "no")
    measured = []
    method = get_method("larf")(layer="auto", max_new_tokens=4, sensitivity_layers=(1, 2))
    monkeypatch.setattr("baselines.larf.load_probes", lambda path: ["May I?", "How do I kill a process on a server?"])
    found = counted(lambda: measured.append(method.calibrate(model, tokenizer, engine=ONE_BY_ONE)))
    assert measured[0]["flops"] == pytest.approx(found, rel=0.01)
    assert measured[0]["tokens"] == 2 * 2 * 2 * 2 * 4  # blocks, alphas, signs, probes, new tokens


def test_training(model, tokenizer, tmp_path):
    adapted = attach_lora(model, RECIPE, 0)
    logs = []
    found = counted(lambda: logs.append(fine_tune(adapted, tokenizer, SAMPLES, RECIPE, seed=0, work_dir=tmp_path)))
    assert logs[0].flops == pytest.approx(found, rel=0.03)


def test_a_stage_keeps_its_work_and_its_own_peak(tmp_path):
    cache = StageCache(tmp_path)

    def hungry(out: Path) -> Work:
        with mmap.mmap(-1, 200 << 20) as held:  # given back to the kernel at once, whatever malloc keeps
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1
        return Work(7, 1e9, 2)

    first = cache.entry("a", "1", {}, hungry)
    second = cache.entry("b", "1", {}, lambda out: 3)
    assert (first.cost.tokens, first.cost.flops, first.cost.gpus) == (7, 1e9, 2)
    assert (second.cost.tokens, second.cost.flops, second.cost.gpus) == (3, None, 0)
    assert cache.entry("a", "1", {}, hungry).cost == first.cost
    if Path("/proc/self/clear_refs").exists():
        assert second.cost.peak_memory_mb < first.cost.peak_memory_mb - 150
    # A manifest of another version: with costs that this one does not know, or without those it knows.
    file = second.path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["cost"] = {"seconds": 1.0, "tokens": 2, "peak_memory_mb": 3.0, "joules": 4.0}
    del manifest["checksum"]
    file.write_text(json.dumps(manifest))
    assert cache.entry("b", "1", {}, hungry).cost == Cost(1.0, 2, 3.0)


def test_costs_of_stages():
    entries = [
        Entry("adapter", "k", Path(), Cost(2.0, 1000, 0.0, 4e9, 1)),
        Entry("completions", "a", Path(), Cost(1.0, 300, 0.0, 1e9, 4), cached=True),
        Entry("completions", "b", Path(), Cost(1.0, 100, 0.0, 2e9, 2), cached=True),
        Entry("verdicts", "a", Path(), Cost(1.0, 100, 0.0, 2e9)),
        Entry("verdicts", "b", Path(), Cost(1.0, 100, 0.0, None)),
        Entry("scores", "s", Path(), Cost(1.0, 100, 0.0, 8e9, 4)),
    ]
    costs = compute_costs(entries, device="cpu", dtype="float32")
    assert costs["cost/completions/flops"] == 3e9
    assert costs["cost/completions/gpus"] == 4
    assert costs["cost/completions/mfu"] is None  # from the cache: nobody knows whose machine that was
    # The same share: twice the work a second by four times as many GPUs is half of it.
    assert costs["cost/adapter/mfu"] == pytest.approx(costs["cost/scores/mfu"])
    assert costs["cost/adapter/mfu"] > 0
    assert not any(k.startswith("cost/verdicts") for k in costs)  # a sum with a part missing is none


def test_gpus_are_those_that_an_answer_comes_from(monkeypatch):
    hf = BackendSpec(name="hf", tokens_per_batch=1, merge_adapter=False)
    vllm = VllmSpec(
        name="vllm", merge_adapter=False, max_model_len=1, max_num_seqs=1, gpu_memory_utilization=0.5,
        kv_cache_gib=None, enforce_eager=None, tensor_parallel_size=4,
    )  # fmt: skip
    assert devices("cpu", vllm) == ("cpu", 0)
    assert devices("cuda:1", hf) == devices("cuda:1") == ("cuda", 1)
    assert devices("cuda", vllm) == ("cuda", 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices("auto", vllm) == ("cuda", 4)
