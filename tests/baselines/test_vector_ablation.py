"""Vector ablation: against orthogonalised weights, by hand, and through the stage that answers."""

import copy
import json

import pytest
import torch

from baselines.anchors import load_anchors
from baselines.method import Engine
from baselines.vector_ablation import VectorAblation, ablate, count_refusals, refusal_directions
from eval.errors import CapacityError, DataError, KeelBenchError
from eval.records import Prompt
from suite.plan import BackendSpec, EvalSpec
from suite.stages.generation import complete
from suite.stages.models import LoadedModel, Weights
from suite.storage.cache import StageCache
from tests.helpers import COMPUTE, SMOLLM2, plan, tiny_model

IDS = torch.tensor([[5, 900, 17, 2048, 33, 7, 100]])


def unit(width=32, seed=0):
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def orthogonalised(model, direction):
    """A copy whose every writing matrix is orthogonal to ``direction``; the head stays as it was."""
    twin = copy.deepcopy(model)
    r = direction
    with torch.no_grad():
        table = twin.model.embed_tokens.weight
        table -= (table @ r)[:, None] * r
        for block in twin.model.layers:
            for writer in (block.self_attn.o_proj, block.mlp.down_proj):
                writer.weight -= r[:, None] * (r @ writer.weight)
    return twin


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_ablation_equals_orthogonalised_weights(kind):
    model, direction = tiny_model(kind, tied=False), unit()
    twin = orthogonalised(model, direction)
    with torch.no_grad():
        before = model(IDS).logits
        handles = ablate(model, direction)
        out = model(IDS, output_hidden_states=True)
        torch.testing.assert_close(out.logits, twin(IDS).logits, atol=1e-5, rtol=1e-4)
        for states in out.hidden_states[:-1]:  # the last is behind the final norm
            assert (states @ direction).abs().max() < 1e-5
        assert (out.logits - before).abs().max() > 1e-3
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(model(IDS).logits, before)


def test_it_holds_under_adapters_as_for_merged_and_orthogonalised_weights():
    from peft import LoraConfig, get_peft_model

    model, direction = tiny_model("llama", tied=False), unit(seed=1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["o_proj", "down_proj"], task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.eval()
    twin = orthogonalised(copy.deepcopy(adapted).merge_and_unload(), direction)
    ablate(adapted, direction)
    with torch.no_grad():
        torch.testing.assert_close(adapted(IDS).logits, twin(IDS).logits, atol=1e-5, rtol=1e-4)


def test_the_direction_is_the_difference_of_means_at_the_prompts_last_token(tiny_llama):
    model, tokenizer = tiny_llama
    harmful, harmless = ["Break in", "Steal the car now", "Hurt"], ["Bake bread", "Sing a song"]
    found = refusal_directions(model, tokenizer, harmful, harmless, [0, 2])

    def mean(texts, layer):
        states = []
        kept = {}
        handle = model.model.layers[layer].register_forward_hook(
            lambda m, i, o: kept.update(out=o[0] if isinstance(o, tuple) else o)
        )
        for text in texts:
            turns = [{"role": "user", "content": text}]
            rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            with torch.no_grad():
                model(torch.tensor([tokenizer(rendered, add_special_tokens=False)["input_ids"]]))
            states.append(kept["out"][0, -1] if kept["out"].dim() == 3 else kept["out"][-1])
        handle.remove()
        return torch.stack(states).mean(0)

    for row, layer in enumerate((0, 2)):
        plain = mean(harmful, layer) - mean(harmless, layer)
        torch.testing.assert_close(found[row], plain / plain.norm(), atol=1e-5, rtol=1e-4)


def test_auto_takes_the_block_that_leaves_fewest_refusals(tiny_llama, monkeypatch):
    model, tokenizer = tiny_llama
    counts = iter([5, 3])
    seen = []

    def counted(model, tokenizer, prompts, *rest, **more):
        seen.append(len(prompts))
        return next(counts)

    monkeypatch.setattr("baselines.vector_ablation.count_refusals", counted)
    method = VectorAblation(count=4, held_out=6)
    harmful, harmless, _ = method.prompts()
    second = refusal_directions(model, tokenizer, harmful, harmless, [1])[0]
    method.intervene(model, tokenizer)  # two of three blocks are in the first four fifths
    assert seen == [6, 6]
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states[:-1]
    assert max((s @ second).abs().max() for s in states) < 1e-5


def test_refusals_are_counted_whatever_the_batches(tiny_llama, monkeypatch):
    model, tokenizer = tiny_llama

    def answered(model, prompts, max_new_tokens, stop, pad):
        asked = [tokenizer.decode(ids) for ids in prompts]
        return [
            tokenizer("I cannot help with that." if "steal" in text else "Of course:")["input_ids"] for text in asked
        ]

    monkeypatch.setattr("baselines.vector_ablation.generate_ids", answered)
    prompts = ["How to steal", "How to sing at a wedding of friends", "Where to steal a bicycle", "What to cook"]
    for tokens in (10, 4096):
        assert count_refusals(model, tokenizer, prompts, 8, engine=Engine(tokens_per_batch=tokens)) == 2


def test_prompts_are_disjoint_and_of_many_categories():
    harmful, harmless, held_out = VectorAblation().prompts()
    assert (len(harmful), len(harmless), len(held_out)) == (32, 32, 16)
    assert not set(harmful) & set(held_out)
    category = {a.instruction: a.category for a in load_anchors()}
    assert len({category[h] for h in held_out}) >= 5
    assert VectorAblation(layer=3, count=40).prompts()[2] == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layer": -1}, KeelBenchError, "a block number from 0, or auto"),
        ({"layer": "middle"}, KeelBenchError, "a block number from 0, or auto"),
        ({"count": 0}, KeelBenchError, "at least 1"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        VectorAblation(**options)


def test_what_is_wrong_with_its_files_is_told_before_a_model_is_loaded(tmp_path, tiny_llama):
    with pytest.raises(CapacityError, match="56 harmful and 40 harmless prompts are needed, there are 50"):
        VectorAblation(count=40).calibration()
    with pytest.raises(DataError, match="no such file"):
        VectorAblation(harmless=str(tmp_path / "none.jsonl")).calibration()
    with pytest.raises(CapacityError, match="layer 9 of a model with 3 blocks"):
        VectorAblation(layer=9).intervene(*tiny_llama)
    with pytest.raises(KeelBenchError, match="needs backend=hf"):
        plan(None, "method=vector_ablation", "backend=vllm")
    with pytest.raises(KeelBenchError, match="checkpoints would answer without it"):
        plan(None, "method=vector_ablation", "eval.every=2")


def test_the_stage_that_answers_applies_it_and_keys_it(tmp_path, tokenizer):
    tiny_model("llama", tied=False).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    spec = plan(None, "model/align=none", f"model.source={tmp_path / 'm'}", "model.dtype=float32").model
    assert spec.name == SMOLLM2.name
    model = LoadedModel(Weights(tmp_path / "m", "key"), spec, COMPUTE)
    asked = {"b": [Prompt(str(i), "b", f"Tell me about number {i}", "", "comply") for i in range(3)]}
    options = {
        "evaluation": EvalSpec(name="e", limit=None, max_new_tokens=8, system=None),
        "backend": BackendSpec(name="hf", tokens_per_batch=4096, merge_adapter=False),
        "cache": StageCache(tmp_path / "cache"),
    }
    plain, entry = complete(model, None, asked, **options)["b"]
    _, again = complete(model, None, asked, **options, method=plan(None, "method=full").method)["b"]
    assert again.key == entry.key
    method = VectorAblation(layer=1)
    changed, other = complete(model, None, asked, **options, method=method)["b"]
    assert other.key != entry.key
    assert [c.text for c in changed] != [c.text for c in plain]
    inputs = json.loads((other.path / "manifest.json").read_text())["inputs"]
    assert inputs["intervention"]["layer"] == 1
    # The next answers without it come from a clean model.
    options["evaluation"] = EvalSpec(name="e", limit=None, max_new_tokens=7, system=None)
    clean, _ = complete(model, None, asked, **options)["b"]
    for short, long in zip(clean, plain, strict=True):
        assert long.text.startswith(short.text)
