"""Judge models in this process, through transformers or vLLM's engine, greedy."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import CapacityError, KeelBenchError, UnknownNameError
from eval.judges.asking import Question, Reply
from eval.memory import fitting_batches

ENGINES = ("transformers", "vllm")
VLLM_SEQUENCES = 256  # questions vLLM answers at once; a short answer each, so many


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A model's folder, loaded for one round of questions and dropped afterwards."""

    folder: Path
    engine: str  # one of ENGINES
    dtype: str
    device: str  # auto, cpu, cuda, cuda:1; vLLM takes what it was built for
    tokens_per_batch: int  # of transformers: questions and answers of a batch, padding included

    def answer(
        self, questions: Sequence[Question], max_new_tokens: int, on_reply: Callable[[int], None] = lambda done: None
    ) -> list[Reply]:
        """One greedy reply a question, in order. A question beyond the model's context gets a reply that says so.

        Raises:
            KeelBenchError: the tokenizer has no chat template although the questions are chats, or its template drops
                what is to be judged.
        """
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        encoded = [_encode(tokenizer, question) for question in questions]
        context = getattr(config, "max_position_embeddings", None)
        room = (context or 1 << 30) - max_new_tokens
        if room < 1:
            raise CapacityError(f"judge.max_new_tokens={max_new_tokens} exceeds the judge's context of {context}")
        replies: dict[int, Reply] = {
            i: Reply("", len(ids), 0, f"a question of {len(ids)} tokens exceeds the judge's context of {context}")
            for i, ids in enumerate(encoded)
            if len(ids) > room
        }
        on_reply(len(replies))
        fitting = [i for i in range(len(encoded)) if i not in replies]
        stop = _stop_ids(self.folder, config, tokenizer)
        ask = self._through_vllm if self.engine == "vllm" else self._through_transformers
        for position, ids in ask([encoded[i] for i in fitting], max_new_tokens, stop, tokenizer) if fitting else ():
            end = next((n + 1 for n, token in enumerate(ids) if token in stop), len(ids))
            text = tokenizer.decode(ids[:end], skip_special_tokens=True)
            replies[fitting[position]] = Reply(text, len(encoded[fitting[position]]), end)
            on_reply(1)
        return [replies[i] for i in range(len(questions))]

    def _through_transformers(
        self, encoded: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[int], tokenizer: Any
    ) -> Iterator[tuple[int, Sequence[int]]]:
        """``(position in encoded, new ids)``, as they come."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from eval.generation import generate_ids

        logging.disable_progress_bar()
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=getattr(torch, self.dtype), use_safetensors=True, trust_remote_code=False
        )
        model.to(device).eval()
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0]

        def ask(batch: list[int]) -> list[list[int]]:
            return generate_ids(model, [encoded[i] for i in batch], max_new_tokens, stop, pad)

        lengths = [len(ids) + max_new_tokens for ids in encoded]
        for batch, new in fitting_batches(lengths, self.tokens_per_batch, ask, what="judging"):
            yield from zip(batch, new, strict=True)

    def _through_vllm(
        self, encoded: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[int], tokenizer: Any
    ) -> Iterator[tuple[int, Sequence[int]]]:
        from eval.vllm_engine import VllmEngine

        with VllmEngine(
            self.folder,
            dtype=self.dtype,
            max_model_len=max(map(len, encoded)) + max_new_tokens,
            max_num_seqs=VLLM_SEQUENCES,
            gpu_memory_utilization=0.85,
            kv_cache_gib=None,
            enforce_eager=None,
            tensor_parallel_size=1,
        ) as engine:
            yield from enumerate(engine.generate_ids(encoded, max_new_tokens, stop))


def check_engine(name: str) -> None:
    """
    Raises:
        KeelBenchError: no such engine, or it is not installed.
    """
    if name not in ENGINES:
        raise UnknownNameError("judge.engine", name, ENGINES)
    if name == "vllm":
        from eval.vllm_engine import check_installed

        check_installed()


def _stop_ids(folder: Path, config: Any, tokenizer: Any) -> list[int]:
    from eval.chat import end_of_sequence_ids, generation_config

    ids = {*end_of_sequence_ids(generation_config(folder, config)), tokenizer.eos_token_id} - {None}
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
