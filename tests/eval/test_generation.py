"""Guards generation: batched, left-padded, cached greedy decoding says what a plain loop of forward passes says."""

import pytest
import torch

from eval.chat import ChatFormat
from eval.errors import CapacityError
from eval.generation import generate, generate_ids
from eval.records import Prompt
from tests.helpers import tiny_model


def prompts_of(*texts: str) -> list[Prompt]:
    return [Prompt(f"id{i}", "test", text, "", "comply") for i, text in enumerate(texts)]


def plain_greedy(model, ids: list[int], max_new_tokens: int, stop: list[int]) -> list[int]:
    """The twin: one sequence, whole forward passes, no cache, no padding, argmax."""
    new: list[int] = []
    with torch.inference_mode():
        while len(new) < max_new_tokens and not (new and new[-1] in stop):
            new.append(int(model(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
    return new


TEXTS = (
    "Hi",
    "Name the three primary colours, separated by commas and without any further words or explanation.",
    "What is the capital of France?",
)


def test_batched_generation_equals_the_plain_loop_on_smollm2(smollm2):
    model, tokenizer = smollm2
    chat = ChatFormat(tokenizer)
    stop = chat.stop_ids(model)
    completions = generate(
        model, tokenizer, prompts_of(*TEXTS), max_new_tokens=5, tokens_per_batch=4096, system="Be brief."
    )
    for text, completion in zip(TEXTS, completions, strict=True):
        new = plain_greedy(model, chat.prompt_ids(text, "Be brief."), 5, stop)
        assert completion.text == tokenizer.decode(new, skip_special_tokens=True).strip()
        assert completion.n_tokens == len(new)
        assert completion.finish_reason == ("stop" if new[-1] in stop else "length")
    # All three in one batch: the longest sets the width, so two were padded.
    assert len({len(chat.prompt_ids(t)) for t in TEXTS}) == 3
    assert completions[2].text


@pytest.fixture(params=["llama", "qwen2"])
def tiny(request, tokenizer):
    return tiny_model(request.param, tied=False), tokenizer


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 100_000])
def test_the_budget_changes_neither_answers_nor_their_order(tiny, tokens_per_batch):
    model, tokenizer = tiny
    chat = ChatFormat(tokenizer)
    prompts = prompts_of(*(f"{'word ' * n}{n}" for n in (7, 1, 30, 3, 7)))
    finished: list[int] = []
    completions = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=8,
        tokens_per_batch=tokens_per_batch,
        system="Be brief.",
        on_batch=finished.append,
    )
    assert [c.prompt_id for c in completions] == [p.id for p in prompts]
    assert sum(finished) == 5
    assert len(finished) == {1: 5, 100: 3, 100_000: 1}[tokens_per_batch]
    for prompt, completion in zip(prompts, completions, strict=True):
        new = plain_greedy(model, chat.prompt_ids(prompt.text, "Be brief."), 8, chat.stop_ids(model))
        assert completion.text == tokenizer.decode(new, skip_special_tokens=True).strip()
        assert completion.n_tokens == len(new)


def test_an_answer_ends_at_the_first_stop_token_and_counts_it(tiny):
    model, tokenizer = tiny
    chat = ChatFormat(tokenizer)
    prompts = prompts_of("first", "a second and longer prompt", "third")
    free = [plain_greedy(model, chat.prompt_ids(p.text), 8, []) for p in prompts]
    stopper = next(t for t in free[0][2:] if t not in free[0][:2])
    model.generation_config.eos_token_id = [2, stopper]
    completions = generate(model, tokenizer, prompts, max_new_tokens=8, tokens_per_batch=100_000)
    for answer, completion in zip(free, completions, strict=True):
        end = next((i for i, t in enumerate(answer) if t in (2, stopper)), None)
        kept = answer if end is None else answer[: end + 1]
        assert completion.n_tokens == len(kept)
        assert completion.finish_reason == ("length" if end is None else "stop")
        assert completion.text == tokenizer.decode(kept, skip_special_tokens=True).strip()
    assert completions[0].finish_reason == "stop"
    assert 3 <= completions[0].n_tokens < 8


def test_decoding_is_greedy_whatever_the_models_own_generation_settings(tiny):
    model, tokenizer = tiny
    chat = ChatFormat(tokenizer)
    prompt = "word word word"
    wanted = plain_greedy(model, chat.prompt_ids(prompt), 12, [])
    model.generation_config.update(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        max_length=20,
        min_new_tokens=12,
    )
    assert generate_ids(model, [chat.prompt_ids(prompt)], 12, [2], 2)[0] == wanted
    assert model.generation_config.repetition_penalty == 5.0  # and they are left as they were


def test_a_tokenizer_without_a_padding_token_is_no_obstacle(tiny):
    model, tokenizer = tiny
    prompts = prompts_of("short", "a somewhat longer prompt than that")
    wanted = generate(model, tokenizer, prompts, max_new_tokens=5, tokens_per_batch=10_000)
    pad, tokenizer.pad_token = tokenizer.pad_token, None
    try:
        assert generate(model, tokenizer, prompts, max_new_tokens=5, tokens_per_batch=10_000) == wanted
    finally:
        tokenizer.pad_token = pad


def test_a_prompt_beyond_the_context_is_an_error_before_anything_is_generated(tiny):
    model, tokenizer = tiny
    length = len(ChatFormat(tokenizer).prompt_ids("word " * 100))
    finished: list[int] = []
    room = model.config.max_position_embeddings - length
    with pytest.raises(CapacityError, match=f"a prompt of {length} tokens and {room + 1} new ones exceed"):
        generate(
            model,
            tokenizer,
            prompts_of("short", "word " * 100),
            max_new_tokens=room + 1,
            tokens_per_batch=10_000,
            on_batch=finished.append,
        )
    assert finished == []


def test_no_prompts_give_no_completions(tiny):
    model, tokenizer = tiny
    assert generate(model, tokenizer, [], max_new_tokens=5, tokens_per_batch=100) == []


def test_the_output_layer_never_gets_a_strided_input_and_is_left_as_it_was(tiny):
    model, _ = tiny
    head, seen = model.get_output_embeddings(), []
    forward = head.forward

    def watched(hidden):
        seen.append((hidden.shape[1], hidden.is_contiguous()))
        return forward(hidden)

    head.forward = watched
    try:
        new = generate_ids(model, [[5, 6, 7, 8], [9, 10]], 3, stop=[2], pad=2)
    finally:
        del head.forward
    assert len(seen) == max(map(len, new))
    assert set(seen) == {(1, True)}  # the last position alone, laid out densely
    assert not head._forward_pre_hooks
