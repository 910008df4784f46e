"""Guards the response-only loss: the supervised tokens, and the same numbers as full logits through transformers."""

import copy

import pytest
import torch

from baselines.losses import IGNORE, collate, supervised_forward, supervised_labels
from eval.chat import ChatFormat
from eval.errors import KeelBenchError
from tests.helpers import tiny_model

PAIRS = (
    ("Hi", "Hello there!"),
    ("Name a colour.", "Blue is a colour, and so is green, if you like a longer answer."),
    ("Say one word, please, and nothing else.", "Word"),
)


@pytest.fixture(scope="module")
def conversations(tokenizer):
    chat = ChatFormat(tokenizer)
    return [chat.conversation(*pair, system="Be brief.") for pair in PAIRS]


def transformers_loss(model, conversation, tokens=None) -> float:
    """The twin: the whole conversation, labels -100 outside the response, transformers' own loss over all logits."""
    ids = torch.tensor([conversation.ids])
    labels = torch.full_like(ids, -100)
    stop = conversation.end_of_turn + 1
    if tokens is not None:
        stop = min(stop, conversation.prompt_length + tokens)
    labels[0, conversation.prompt_length : stop] = ids[0, conversation.prompt_length : stop]
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=labels).loss)


@pytest.mark.parametrize("tokens", [None, 1, 4])
def test_sequence_losses_equal_the_full_logits_loss_on_smollm2(smollm2, conversations, tokens):
    model, _ = smollm2
    batch = collate([supervised_labels(c, tokens=tokens) for c in conversations])
    with torch.inference_mode():
        losses = supervised_forward(model, batch).sequence_losses()
    wanted = [transformers_loss(model, c, tokens) for c in conversations]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_gradients_of_a_padded_batch_are_those_of_its_sequences(conversations, kind):
    model = tiny_model(kind, tied=kind == "llama")
    supervised_forward(
        model, collate([supervised_labels(c) for c in conversations])
    ).sequence_losses().mean().backward()
    batched = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    for c in conversations:
        ids = torch.tensor([c.ids])
        labels = torch.full_like(ids, -100)
        labels[0, c.prompt_length : c.end_of_turn + 1] = ids[0, c.prompt_length : c.end_of_turn + 1]
        (model(input_ids=ids, labels=labels).loss / len(conversations)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(batched[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_labels_are_the_next_tokens_of_the_response_and_its_end_of_turn(conversations, tokenizer):
    for (_, response), c in zip(PAIRS, conversations, strict=True):
        ids, labels = supervised_labels(c)
        assert len(ids) == len(labels) == c.end_of_turn
        assert ids == list(c.ids[: c.end_of_turn])
        kept = [(position, label) for position, label in enumerate(labels) if label != IGNORE]
        assert all(c.ids[position + 1] == label for position, label in kept)
        assert tokenizer.decode([label for _, label in kept]) == response + "<|im_end|>"
        assert len(kept) == c.response_length


def test_only_the_first_tokens_are_supervised_where_asked_and_a_short_response_uses_what_there_is(conversations):
    for tokens in (1, 3, 10, 100):
        for c in conversations:
            ids, labels = supervised_labels(c, tokens=tokens)
            kept = [label for label in labels if label != IGNORE]
            assert kept == list(c.ids[c.prompt_length : c.end_of_turn + 1])[:tokens]
            assert len(ids) == c.prompt_length + len(kept) - 1  # nothing behind the last supervised position


def test_the_cut_changes_no_logit(smollm2, conversations):
    model, _ = smollm2
    c = conversations[1]
    ids, labels = supervised_labels(c, tokens=2)
    with torch.inference_mode():
        full = model(input_ids=torch.tensor([c.ids])).logits[0, c.prompt_length - 1 : c.prompt_length + 1]
        cut = supervised_forward(model, collate([(ids, labels)])).logits
    torch.testing.assert_close(cut, full, rtol=1e-4, atol=1e-4)


def test_a_truncated_responses_end_of_turn_is_supervised_only_where_asked(tokenizer):
    chat = ChatFormat(tokenizer)
    c = chat.conversation("Hi", "word " * 100, max_length=60)
    assert c.truncated
    with_end = [label for label in supervised_labels(c)[1] if label != IGNORE]
    without = [label for label in supervised_labels(c, keep_end=False)[1] if label != IGNORE]
    assert with_end == [*without, chat.end_of_turn_id]
    whole = chat.conversation("Hi", "word " * 3, max_length=60)
    assert supervised_labels(whole) == supervised_labels(whole, keep_end=False)


def test_a_conversation_with_nothing_to_supervise_is_an_error(conversations):
    with pytest.raises(KeelBenchError, match="no supervised token"):
        supervised_labels(conversations[0], tokens=0)


def test_a_batch_pads_on_the_right_and_knows_its_lengths():
    batch = collate([([5, 6, 7], [IGNORE, 6, 7]), ([8], [9])])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, 6, 7], [9, IGNORE, IGNORE]]
    assert batch.lengths.tolist() == [3, 1]


def test_hidden_states_are_transformers_own(tiny_llama, conversations):
    model, _ = tiny_llama
    ids, labels = supervised_labels(conversations[0])
    with torch.inference_mode():
        mine = supervised_forward(model, collate([(ids, labels)]), hidden_states=True).hidden_states
        theirs = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert len(mine) == len(theirs) == 4
    for a, b in zip(mine, theirs, strict=True):
        assert torch.equal(a, b)
    assert supervised_forward(model, collate([(ids, labels)])).hidden_states is None


def test_lora_adapters_take_part(conversations):
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    plain = copy.deepcopy(base)
    model = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.mul_(10)
    batch = collate([supervised_labels(c) for c in conversations])
    with torch.inference_mode():
        adapted = supervised_forward(model, batch).sequence_losses()
        unadapted = supervised_forward(plain, batch).sequence_losses()
    wanted = [transformers_loss(model, c) for c in conversations]
    assert adapted.tolist() == pytest.approx(wanted, rel=1e-5)
    assert adapted.tolist() != pytest.approx(unadapted.tolist(), rel=1e-3)


def test_a_model_that_caps_its_logits_is_scored_with_the_cap(conversations):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.05,
        attn_implementation="eager",
    )
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
        losses = supervised_forward(model, collate([supervised_labels(c) for c in conversations])).sequence_losses()
    assert losses.tolist() == pytest.approx([transformers_loss(model, c) for c in conversations], rel=1e-5)
