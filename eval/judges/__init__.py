"""Judges: ``judge(prompts, completions) -> verdicts``. One module each; ``get_judge`` finds them by name."""

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from eval.errors import UnknownNameError
from eval.records import Completion, Prompt, Verdict

_MODULES = {"refusal_keywords": "eval.judges.refusal_keywords:RefusalKeywords"}


class Judge(Protocol):
    """What every judge offers. ``version`` changes whenever a verdict could."""

    name: str
    version: str

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]: ...


def judge_names() -> list[str]:
    return sorted(_MODULES)


def get_judge(name: str, **options: Any) -> Judge:
    """The judge registered as ``name``.

    Raises:
        UnknownNameError: no such judge.
    """
    if name not in _MODULES:
        raise UnknownNameError("judge", name, _MODULES)
    module, attribute = _MODULES[name].split(":")
    judge: Judge = getattr(importlib.import_module(module), attribute)(**options)
    return judge
