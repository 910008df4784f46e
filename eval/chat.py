"""Conversations as token ids, rendered by the model's own chat template.

Prompt and response are tokenised apart and joined, so that a fine-tuned conversation, a scored one and a generated one
see the same prompt ids (tokenising the joined text may merge a token across the border).
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from eval.errors import KeelBenchError

_PROBE_USER = "Hello there"
_PROBE_RESPONSE = "Probe"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt and its response as token ids: ``ids = prompt + response + end-of-turn + trailer``."""

    ids: tuple[int, ...]
    prompt_length: int  # tokens before the response's first content token
    end_of_turn: int  # index of the end-of-turn token; len(ids) where truncation dropped it
    truncated: bool

    @property
    def response_length(self) -> int:
        """Supervised tokens: the response's content and its end-of-turn token, never what follows it."""
        return min(self.end_of_turn + 1, len(self.ids)) - self.prompt_length


class ChatFormat:
    """Renders one tokenizer's conversations.

    ``Mistral``-, ``Llama-3``-, ``ChatML``- and ``Phi-3``-style templates end an assistant's turn differently; what
    follows the content is read off the template once, by rendering a probe.

    Raises:
        KeelBenchError: the tokenizer has no chat template, or its template does not keep the prompt as a prefix, puts
            no end-of-turn token behind an answer, or refuses a conversation.
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "chat_template", None):
            raise KeelBenchError(
                f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no chat template; "
                "KeelBench compares chat models and needs one"
            )
        self.tokenizer = tokenizer

    def _messages(self, user: str, system: str | None) -> list[dict[str, str]]:
        turns = [{"role": "user", "content": user}]
        return turns if system is None else [{"role": "system", "content": system}, *turns]

    def _render(self, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
            )
        except TemplateError as error:  # such as a system turn where the template knows none
            raise KeelBenchError(f"the model's chat template refuses this conversation: {error}") from error

    def _tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def suffix_text(self) -> str:
        """What the template puts after an assistant's content: the end-of-turn token and, perhaps, a trailer."""
        prompt = self.prompt_text(_PROBE_USER)
        full = self._render([*self._messages(_PROBE_USER, None), _assistant(_PROBE_RESPONSE)], False)
        if not full.startswith(prompt) or _PROBE_RESPONSE not in full[len(prompt) :]:
            raise KeelBenchError("the chat template's generation prompt is not a prefix of the finished conversation")
        return full[len(prompt) :].split(_PROBE_RESPONSE, 1)[1]

    @cached_property
    def suffix_ids(self) -> tuple[int, ...]:
        """Token ids of ``suffix_text``."""
        return tuple(self._tokenize(self.suffix_text))

    @cached_property
    def _end_offset(self) -> int:
        """Where in ``suffix_ids`` the end-of-turn token stands: the first special one.

        Llama-2's template puts a space before it; a template that only puts white space or a heading for the next turn
        has none, and generation would stop at the first paragraph.
        """
        added = {i for i, t in self.tokenizer.added_tokens_decoder.items() if str(t).strip()}
        special = added.union(self.tokenizer.all_special_ids)
        offset = next((n for n, token in enumerate(self.suffix_ids) if token in special), None)
        if offset is None:
            raise KeelBenchError("the chat template puts no end-of-turn token after an assistant's content")
        return offset

    @property
    def end_of_turn_id(self) -> int:
        return self.suffix_ids[self._end_offset]

    def stop_ids(self, model: Any) -> list[int]:
        """Tokens that end generation: the template's end of turn and the model's own end-of-sequence tokens."""
        return sorted({self.end_of_turn_id, *end_of_sequence_ids(model.generation_config)})

    def prompt_text(self, user: str, system: str | None = None) -> str:
        return self._render(self._messages(user, system), True)

    def prompt_ids(self, user: str, system: str | None = None) -> list[int]:
        """The templated prompt with its generation prompt."""
        return self._tokenize(self.prompt_text(user, system))

    def conversation(
        self, user: str, response: str, *, system: str | None = None, max_length: int | None = None
    ) -> Conversation:
        """A finished conversation.

        Truncation rule, for conversations above ``max_length`` tokens: the response's content is cut on the right and
        the end-of-turn token kept (scores are read there); where the prompt alone leaves no room for 16 response
        tokens, its middle is cut so that the template's head and the generation prompt survive.
        """
        prompt_text = self.prompt_text(user, system)
        prompt = self._tokenize(prompt_text)
        full = self._render([*self._messages(user, system), _assistant(response)], False)
        if not full.startswith(prompt_text):
            raise KeelBenchError("the chat template rewrites the prompt once an answer follows it")
        rendered = full[len(prompt_text) :]
        if self.suffix_text:
            rendered = rendered.removesuffix(self.suffix_text)
        content = self._tokenize(rendered)
        suffix, end_offset = self.suffix_ids, self._end_offset
        truncated = False
        if max_length is not None and len(prompt) + len(content) + len(suffix) > max_length:
            truncated = True
            keep_content = min(len(content), max(16, max_length - len(prompt) - len(suffix)))
            room = max_length - keep_content - len(suffix)
            if room < 2:
                raise KeelBenchError(f"max_length {max_length} leaves no room for a conversation")
            if len(prompt) > room:
                prompt = prompt[: room // 2] + prompt[len(prompt) - (room - room // 2) :]
            content = content[:keep_content]
        ids = (*prompt, *content, *suffix)
        return Conversation(ids, len(prompt), len(prompt) + len(content) + end_offset, truncated)


def end_of_sequence_ids(generation_config: Any) -> list[int]:
    """A model's own end-of-sequence tokens."""
    own = getattr(generation_config, "eos_token_id", None)
    return [i for i in (own if isinstance(own, list) else [own]) if i is not None]


def generation_config(folder: Path, config: Any) -> Any:
    """The generation settings that transformers would give a model of configuration ``config`` loaded from
    ``folder``, for whoever does not load it by transformers."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(config)


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
