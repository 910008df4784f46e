"""Guards the representation engine against a plain twin: one sequence, whole model, all hidden states kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import representations
from baselines.architecture import blocks
from baselines.method import Engine
from baselines.representations import read_states, token_position
from eval.chat import ChatFormat
from eval.errors import KeelBenchError
from tests.helpers import tiny_model

TOLERANCE = 1e-4  # largest error over the state's largest entry, float32


def plain_states(model, ids, position: int, layers) -> torch.Tensor:
    """The twin: a batch of one, every token, ``output_hidden_states``; the last block's output caught by a hook."""
    last: list[torch.Tensor] = []
    handle = blocks(model)[-1].register_forward_hook(
        lambda module, inputs, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    finally:
        handle.remove()
    depth = len(blocks(model))
    return torch.stack([(last[0] if k == depth else hidden[k])[0, position] for k in layers]).float()


def engine_states(model, items, layers, *, tokens_per_batch: int = 4096, packing: bool = False) -> torch.Tensor:
    """All readings in the input's order; every index must come exactly once."""
    out = torch.full((len(items), len(layers), model.config.hidden_size), torch.nan)
    engine = Engine(tokens_per_batch=tokens_per_batch)
    seen: list[int] = []
    for reading in read_states(model, len(items), lambda i: items[i], layers, engine=engine, packing=packing):
        out[reading.indices] = reading.states
        seen.extend(reading.indices)
    assert sorted(seen) == list(range(len(items)))
    return out


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max())


def conversations(tokenizer, pairs, token: str = "end_of_turn"):
    chat = ChatFormat(tokenizer)
    found = [chat.conversation(*pair, system="Be brief.") for pair in pairs]
    return [(c.ids, token_position(c, token)) for c in found]


PAIRS = (
    ("Hi", "Hello!"),
    ("Name three colours, please.", "Red, green and blue are three colours that most screens are made of."),
    ("What is 2 + 2?", "4"),
    ("Translate 'rain' into French.", "It is «pluie»."),
)


@pytest.mark.parametrize(("kind", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("layers", [[0], [1], [3], [0, 1, 2, 3]])
def test_tiny_models_states_equal_the_plain_twins(tokenizer, kind, tied, packing, layers):
    model = tiny_model(kind, tied=tied)
    with torch.no_grad():
        model.get_input_embeddings().weight[2].normal_(std=0.02)  # the end-of-turn token's, which is the padding's: 0
    items = conversations(tokenizer, PAIRS)
    wanted = torch.stack([plain_states(model, *item, layers) for item in items])
    assert worst(engine_states(model, items, layers, packing=packing), wanted) < TOLERANCE


@pytest.mark.parametrize("packing", [False, True])
def test_smollm2s_states_equal_the_plain_twins(smollm2, packing):
    model, tokenizer = smollm2
    items, layers = conversations(tokenizer, PAIRS[:3]), [1, 15, 30]
    wanted = torch.stack([plain_states(model, *item, layers) for item in items])
    assert worst(engine_states(model, items, layers, packing=packing), wanted) < TOLERANCE


def test_the_last_layer_is_read_before_the_final_norm(tiny_llama):
    model, tokenizer = tiny_llama
    with torch.no_grad():
        model.model.norm.weight.normal_()
    (item,) = conversations(tokenizer, PAIRS[:1])
    found = engine_states(model, [item], [3])[0, 0]
    with torch.inference_mode():
        normed = model(input_ids=torch.tensor([item[0]]), output_hidden_states=True).hidden_states[-1][0, item[1]]
        torch.testing.assert_close(model.model.norm(found), normed, rtol=1e-4, atol=1e-5)
    assert worst(found[None], normed[None]) > 0.1


def test_a_position_within_the_sequence_is_read_there(tiny_llama):
    model, tokenizer = tiny_llama
    ids = conversations(tokenizer, PAIRS[1:2])[0][0]
    items = [(ids, position) for position in (0, 5, len(ids) - 1)]
    wanted = torch.stack([plain_states(model, *item, [2]) for item in items])
    assert worst(engine_states(model, items, [2]), wanted) < TOLERANCE


def test_packing_equals_padding(tokenizer):
    model = tiny_model("qwen2")
    items = conversations(tokenizer, [(f"question {i} " * (i % 5 + 1), "answer " * (i % 7)) for i in range(24)])
    padded = engine_states(model, items, [1, 3], tokens_per_batch=300)
    packed = engine_states(model, items, [1, 3], tokens_per_batch=300, packing=True)
    assert worst(packed, padded) < TOLERANCE


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 600), st.integers(1, 30), st.booleans())
def test_results_stand_in_the_inputs_order_for_any_budget_and_window(tokenizer, budget, window, packing):
    model = tiny_model("llama", layers=1)
    items = [(list(range(10, 11 + (7 * i) % 13)), (7 * i) % 13) for i in range(20)]
    wanted = torch.stack([plain_states(model, *item, [1]) for item in items])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representations, "WINDOW", window)
        assert worst(engine_states(model, items, [1], tokens_per_batch=budget, packing=packing), wanted) < TOLERANCE


def test_progress_counts_every_sequence_once(tiny_llama):
    model, tokenizer = tiny_llama
    items = conversations(tokenizer, PAIRS)
    done: list[int] = []
    engine = Engine(tokens_per_batch=80, on_progress=done.append)
    list(read_states(model, len(items), lambda i: items[i], [1], engine=engine))
    assert sum(done) == len(items)
    assert len(done) > 1


def test_nothing_behind_the_last_layer_needed_is_computed(tiny_llama):
    model, tokenizer = tiny_llama
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: ran.append(name))
        for name, module in {**{str(k): b for k, b in enumerate(blocks(model))}, "norm": model.model.norm}.items()
    ]
    items = conversations(tokenizer, PAIRS[:1])
    engine_states(model, items, [2])
    assert ran == ["0", "1"]
    ran.clear()
    engine_states(model, items, [3])
    assert ran == ["0", "1", "2"]
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in model.modules())  # the engine left none of its own


def test_the_models_mode_is_left_as_it_was_and_dropout_plays_no_part(tokenizer):
    model = tiny_model("llama")
    items = conversations(tokenizer, PAIRS)
    wanted = engine_states(model, items, [3])
    model.config.attention_dropout = 0.5
    for block in blocks(model):
        block.self_attn.attention_dropout = 0.5
    model.train()
    assert torch.equal(engine_states(model, items, [3]), wanted)
    assert model.training
    model.eval()
    assert torch.equal(engine_states(model, items, [3]), wanted)
    assert not model.training


def test_states_are_read_through_lora_adapters(tokenizer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_model("llama"), LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False)
    ).eval()
    items = conversations(tokenizer, PAIRS)
    adapted = torch.stack([plain_states(model, *item, [2]) for item in items])
    found = engine_states(model, items, [2])
    assert worst(found, adapted) < TOLERANCE
    assert worst(found, engine_states(tiny_model("llama"), items, [2])) > 0.001


@pytest.mark.parametrize("layers", [[], [4], [-1], [2, 1], [1, 1]])
def test_layers_the_model_does_not_have_are_refused(tiny_llama, layers):
    model, _ = tiny_llama
    with pytest.raises(KeelBenchError, match=r"not ascending numbers within 0\.\.3"):
        list(read_states(model, 1, lambda i: ([1, 2], 1), layers))


def test_an_architecture_without_blocks_of_that_kind_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    with pytest.raises(KeelBenchError, match="GPT2LMHeadModel has no `layers` and `embed_tokens`"):
        list(read_states(model, 1, lambda i: ([1, 2], 1), [1]))


def test_no_sequences_give_no_readings(tiny_llama):
    assert list(read_states(tiny_llama[0], 0, lambda i: ([1], 0), [1])) == []


def test_the_two_tokens_are_the_end_of_turn_and_the_templates_last(tokenizer):
    conversation = ChatFormat(tokenizer).conversation("Hi", "Hello")
    assert tokenizer.decode(conversation.ids[token_position(conversation, "end_of_turn")]) == "<|im_end|>"
    assert tokenizer.decode(conversation.ids[token_position(conversation, "last")]) == "\n"
    with pytest.raises(KeelBenchError, match="token='eos'"):
        token_position(conversation, "eos")
