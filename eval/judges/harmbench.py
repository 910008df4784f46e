"""The HarmBench classifier (Mazeika et al. 2024, arXiv 2402.04249; cais/HarmBench-Llama-2-13b-cls, MIT): is this
generation an instance of this behaviour, yes or no?

The classifier was trained on one fixed prompt, which is published with it: as the Python dictionary
``LLAMA2_CLS_PROMPT`` with the texts ``prompt`` and ``prompt_contextual``, in the model card and, with other rules, in
the repository's ``eval_utils.py``. It is read from there (``prompt_file``, or the model card beside the weights), so it
is the classifier's own to the letter, and which one it was is part of a verdict's identity.

``yes`` is harmful, ``no`` is not_harmful, which a refusal is too.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import DataError, KeelBenchError
from eval.judges.asking import Question
from eval.judges.model_judge import ModelJudge, Opinion
from eval.judges.prompt_files import filled
from eval.records import Completion, Prompt, content_id

MODEL_CARD = "README.md"
CONTEXT_END = "\n\n---\n\n"  # between a contextual behaviour's context and the behaviour (eval/benchmarks.py)
_DICTIONARY = re.compile(r"^[ \t]*LLAMA2_CLS_PROMPT\s*=\s*(\{.*?^[ \t]*\})", re.DOTALL | re.MULTILINE)
_PLACES = {"prompt": ("behavior", "generation"), "prompt_contextual": ("context", "behavior", "generation")}


@dataclass(frozen=True, kw_only=True)
class HarmBench(ModelJudge):
    """Labels harmful and not_harmful."""

    prompt_file: str | None  # the file with LLAMA2_CLS_PROMPT; None = the model card beside the weights
    contextual: tuple[str, ...]  # benchmarks whose prompts are a context, CONTEXT_END and the behaviour

    name = "harmbench"
    version = "1"

    def prompts(self) -> Mapping[str, str]:
        """The two published texts.

        Raises:
            KeelBenchError: there is no file to read them from, or they are not in it.
        """
        if self.prompt_file is not None:
            return published_prompts(Path(self.prompt_file).expanduser())
        if self.weights is None:
            raise KeelBenchError(
                f"judge=harmbench: the classifier's prompt is in its model card; name a copy of "
                f"https://huggingface.co/{self.model}/raw/main/{MODEL_CARD} as judge.prompt_file"
            )
        return published_prompts(self.weights / MODEL_CARD)

    def prompt_identity(self) -> str:
        if self.prompt_file is None and self.weights is None and self.server is None:
            return ""  # the weights, and the card beside them, are still to be found
        return content_id(*(self.prompts()[which] for which in _PLACES))

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "contextual": sorted(self.contextual)}

    def question(self, prompt: Prompt, completion: Completion) -> Question:
        which, parts = "prompt", {"behavior": prompt.text, "generation": completion.text}
        if prompt.benchmark in self.contextual:
            context, end, behaviour = prompt.text.rpartition(CONTEXT_END)
            if not end:
                raise KeelBenchError(f"prompt {prompt.id} of {prompt.benchmark} has no context before its behaviour")
            which, parts = "prompt_contextual", {**parts, "context": context, "behavior": behaviour}
        return Question(text=filled(self.prompts()[which], parts))

    def read(self, reply: str) -> Opinion | None:
        word = re.match(r"\W*(yes|no)\b", reply, re.IGNORECASE)
        if word is None:
            return None
        yes = word.group(1).lower() == "yes"
        return Opinion("harmful" if yes else "not_harmful", float(yes))


def published_prompts(path: Path) -> dict[str, str]:
    """The texts of ``LLAMA2_CLS_PROMPT`` in a model card or a Python file, which is read and never run.

    Raises:
        DataError: no such file, no such dictionary, or one without the places to be filled in.
    """
    if not path.is_file():
        raise DataError(path, "no such file; it should hold the HarmBench classifier's LLAMA2_CLS_PROMPT")
    try:
        found = _DICTIONARY.search(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read: {error}") from error
    try:
        texts = ast.literal_eval(found.group(1).strip()) if found else {}
        texts = texts if isinstance(texts, dict) else {}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(path, f"LLAMA2_CLS_PROMPT is no dictionary of texts: {error}") from error
    for which, places in _PLACES.items():
        text = texts.get(which)
        if not isinstance(text, str) or not all(f"{{{place}}}" in text for place in places):
            needed = ", ".join(f"{{{place}}}" for place in places)
            raise DataError(path, f"no LLAMA2_CLS_PROMPT[{which!r}] with the places {needed}")
    return {which: texts[which] for which in _PLACES}
