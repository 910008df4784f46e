"""Greedy completions with transformers: length-sorted, left-padded batches under a token budget."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from eval.chat import ChatFormat
from eval.errors import CapacityError
from eval.memory import fitting_batches
from eval.records import Completion, Prompt


class Steering(Protocol):
    """What bends a model's logits away from those under a second system turn, token by token."""

    system: str  # the second system turn

    def __call__(self, prompts: Sequence[str], max_new_tokens: int) -> Any:
        """A transformers LogitsProcessor for a batch of these prompts (texts) alone."""
        ...

    def encoded(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Any:
        """The same, of prompts that are token ids already, the second system turn included."""
        ...

    def bent(self, plain: Any, second: Any) -> Any:
        """The logits that decide, of the plain ones and those under the second system turn, [..., vocabulary]."""
        ...


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    tokens_per_batch: int,
    system: str | None = None,
    steering: Steering | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
    kept: Mapping[str, Completion] | None = None,
    keep: Callable[[Sequence[Completion]], None] = lambda done: None,
) -> list[Completion]:
    """One greedy completion a prompt, in the prompts' order.

    The batches are the same whatever was ``kept`` of an earlier attempt; of each only what is missing is generated, so
    that an attempt stopped between two batches ends with the completions of one that was not.

    Args:
        model: a causal language model in evaluation mode; moved nowhere, cast to nothing.
        max_new_tokens: generated tokens at most, the end-of-turn token included.
        tokens_per_batch: prompt plus new tokens a batch may hold, padding included.
        system: a system turn; None leaves the template's own default.
        steering: what changes the logits that each batch's tokens are chosen by; None = nothing.
        on_batch: told after each batch how many prompts it finished.
        kept: completions there are already, by prompt id.
        keep: given each batch's completions.

    Raises:
        CapacityError: a prompt and its answer do not fit the model's context, or the memory.
    """
    chat = ChatFormat(tokenizer)
    encoded = encode(chat, prompts, system, max_new_tokens, getattr(model.config, "max_position_embeddings", None))
    stop = chat.stop_ids(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0]
    known = kept or {}
    completions = {i: known[p.id] for i, p in enumerate(prompts) if p.id in known}
    lengths = [len(ids) + max_new_tokens for ids in encoded]

    def answer(batch: list[int]) -> list[Completion]:
        missing = [i for i in batch if i not in completions]
        if not missing:
            return []
        steered = None if steering is None else steering([prompts[i].text for i in missing], max_new_tokens)
        new_ids = generate_ids(model, [encoded[i] for i in missing], max_new_tokens, stop, pad, steered)
        return [completion(tokenizer, prompts[i], ids, stop) for i, ids in zip(missing, new_ids, strict=True)]

    for batch, fresh in fitting_batches(lengths, tokens_per_batch, answer, what="generation"):
        completions |= dict(zip([i for i in batch if i not in completions], fresh, strict=True))
        if fresh:
            keep(fresh)
        on_batch(len(batch))
    return [completions[i] for i in range(len(prompts))]


def encode(
    chat: ChatFormat, prompts: Sequence[Prompt], system: str | None, max_new_tokens: int, context: int | None
) -> list[list[int]]:
    """The prompts as token ids, the same for every back end.

    Raises:
        CapacityError: a prompt and its answer do not fit a context of ``context`` tokens.
    """
    encoded = [chat.prompt_ids(p.text, system) for p in prompts]
    longest = max((len(ids) for ids in encoded), default=0)
    if context is not None and longest + max_new_tokens > context:
        raise CapacityError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of {context}"
        )
    return encoded


def completion(tokenizer: Any, prompt: Prompt, ids: Sequence[int], stop: Sequence[int]) -> Completion:
    """Generated ids as an answer: up to and with the first stop token, the same for every back end."""
    end = next((n for n, token in enumerate(ids) if token in stop), None)
    kept = list(ids) if end is None else list(ids[: end + 1])
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Completion(prompt.id, text.strip(), len(kept), "length" if end is None else "stop")


def generate_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[int],
    pad: int,
    steered: Any = None,
) -> list[list[int]]:
    """Greedy continuations of one batch of token ids, padded behind their end with ``pad``.

    The arg max at every step, whatever the model's own ``generation_config`` says: transformers fills what a request
    leaves open from there, and Qwen2.5's repetition penalty would bend the answers.

    Args:
        steered: a transformers LogitsProcessor made for this batch; None = the logits as they are.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=list(stop), pad_token_id=pad
    )
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, owner.generation_config = owner.generation_config, config
    try:
        with torch.inference_mode(), dense_output_layer(owner):
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                logits_processor=LogitsProcessorList([] if steered is None else [steered]),
            )
    finally:
        owner.generation_config = own
    return [[int(t) for t in row] for row in out[:, width:].tolist()]


@contextlib.contextmanager
def dense_output_layer(model: Any) -> Iterator[None]:
    """Inside, the output layer's input is laid out densely.

    After the prompts transformers asks it for the last position alone, a strided view, and on a CPU PyTorch then copies
    the whole output matrix once a row of the batch: over half the time of 64 answers of 16 tokens. In bfloat16 the
    logits were the same to the bit.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(_contiguous) if head is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _contiguous(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].contiguous(), *inputs[1:])
