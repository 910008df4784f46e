"""What a judge that is a language model is asked, and what it answers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """One request to a judge model: chat turns, which its own chat template renders, or a text given as it stands."""

    turns: tuple[tuple[str, str], ...] = ()  # (role, content)
    text: str = ""  # instead of turns, for classifiers whose prompt is a fixed text

    def messages(self) -> list[dict[str, Any]]:
        return [{"role": role, "content": content} for role, content in self.turns]


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge model's answer. ``error`` says why there is none, where this one request was refused for good."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    error: str = ""
