"""Judge models in this process, through transformers: greedy, in the batches of ``eval.generation``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.batching import token_budget_batches
from eval.errors import CapacityError, KeelBenchError
from eval.judges.asking import Question, Reply


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model's folder, loaded for one round of questions and dropped afterwards."""

    folder: Path
    dtype: str
    device: str  # auto, cpu, cuda, cuda:1
    tokens_per_batch: int  # questions and answers of a batch, padding included

    def answer(
        self, questions: Sequence[Question], max_new_tokens: int, on_reply: Callable[[int], None] = lambda done: None
    ) -> list[Reply]:
        """One greedy reply a question, in order. A question beyond the model's context gets a reply that says so.

        Raises:
            KeelBenchError: the tokenizer has no chat template although the questions are chats, or its template drops
                what is to be judged.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        from eval.generation import generate_ids

        if not questions:
            return []
        logging.disable_progress_bar()
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        encoded = [_encode(tokenizer, question) for question in questions]
        model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), use_safetensors=True, trust_remote_code=False
        )
        model.to(device).eval()
        stop = _stop_ids(model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0]
        context = getattr(model.config, "max_position_embeddings", None)
        room = (context or 1 << 30) - max_new_tokens
        if room < 1:
            raise CapacityError(f"judge.max_new_tokens={max_new_tokens} exceeds the judge's context of {context}")
        replies: dict[int, Reply] = {
            i: Reply("", len(ids), 0, f"a question of {len(ids)} tokens exceeds the judge's context of {context}")
            for i, ids in enumerate(encoded)
            if len(ids) > room
        }
        fitting = [i for i in range(len(encoded)) if i not in replies]
        on_reply(len(replies))
        for batch in token_budget_batches([len(encoded[i]) + max_new_tokens for i in fitting], self.tokens_per_batch):
            asked = [fitting[i] for i in batch]
            for i, ids in zip(
                asked, generate_ids(model, [encoded[i] for i in asked], max_new_tokens, stop, pad), strict=True
            ):
                end = next((n + 1 for n, token in enumerate(ids) if token in stop), len(ids))
                text = tokenizer.decode(ids[:end], skip_special_tokens=True)
                replies[i] = Reply(text, len(encoded[i]), end)
            on_reply(len(asked))
        return [replies[i] for i in range(len(questions))]


def _stop_ids(model: Any, tokenizer: Any) -> list[int]:
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    ids = {i for i in (*own, tokenizer.eos_token_id) if i is not None}
    if not ids:
        raise KeelBenchError("the judge's model names no end-of-sequence token")
    return sorted(ids)


def _encode(tokenizer: Any, question: Question) -> list[int]:
    if not question.turns:
        return list(tokenizer(question.text)["input_ids"])
    if not getattr(tokenizer, "chat_template", None):
        raise KeelBenchError("the judge's tokenizer has no chat template, and this judge asks through one")
    return list(tokenizer(render(tokenizer, question), add_special_tokens=False)["input_ids"])


def render(tokenizer: Any, question: Question) -> str:
    """The question through the judge's own chat template. Some templates (Llama Guard 3 1B's) want a turn's content as
    a list of parts: where the plain text does not come through, it is given so.

    Raises:
        KeelBenchError: the template lets the text through neither way.
    """
    from jinja2 import TemplateError

    plain = question.messages()
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in plain]
    problem = "it leaves out a turn's text"
    for messages in (plain, parts):
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError) as error:
            problem = str(error)
            continue
        # As parts, a template that knows no parts would print the list itself.
        if all(turn["content"].strip() in text for turn in plain) and "'type': 'text'" not in text:
            return text
    raise KeelBenchError(f"the judge's chat template cannot show it this conversation: {problem}")
