"""Judges: ``judge(prompts, completions) -> verdicts``. One module each; ``get_judge`` finds them by name."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from eval.errors import UnknownNameError
from eval.records import Completion, Expected, Prompt, Verdicts

_MODULES = {
    "refusal_keywords": "eval.judges.refusal_keywords:RefusalKeywords",
    "llama_guard": "eval.judges.llama_guard:LlamaGuard",
    "harmbench": "eval.judges.harmbench:HarmBench",
    "rubric": "eval.judges.rubric:Rubric",
    "strongreject": "eval.judges.strongreject:StrongReject",
}


class Judge(Protocol):
    """What every judge offers. ``version`` changes whenever a verdict could."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def described(self) -> str:
        """Version and, where there is one, model: what a record says of the judge beside its name."""
        ...

    @property
    def judged(self) -> frozenset[Expected]:
        """Of which prompts it is asked; the others' label is not_judged."""
        ...

    @property
    def score_name(self) -> str | None:
        """Under which a record keeps the mean of its scores; None where they are 0 and 1."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a verdict depends on beside name and version, as JSON."""
        ...

    def check(self) -> None:
        """Raises ``KeelBenchError`` for what can be found wrong before a model is loaded, such as a server that is
        out of reach."""
        ...

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], on_reply: Callable[[int], None] = ...
    ) -> Verdicts: ...


def judge_names() -> list[str]:
    return sorted(_MODULES)


def judge_class(name: str) -> type:
    """The class of the judge registered as ``name``; its settings are its fields.

    Raises:
        UnknownNameError: no such judge.
    """
    if name not in _MODULES:
        raise UnknownNameError("judge", name, _MODULES)
    module, attribute = _MODULES[name].split(":")
    found: type = getattr(importlib.import_module(module), attribute)
    return found


def get_judge(name: str, **options: Any) -> Judge:
    """The judge registered as ``name``.

    Raises:
        UnknownNameError: no such judge.
    """
    judge: Judge = judge_class(name)(**options)
    return judge
