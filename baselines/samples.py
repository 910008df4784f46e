"""Fine-tuning sets: every format in, the same samples out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.records import Sample
from eval.errors import DataError, UnknownNameError
from eval.records import content_id
from eval.tables import read_rows, text_field
from eval.utility.local import pubmedqa_labelled


@dataclass(frozen=True)
class SampleSet:
    """Samples in the file's order, and what was left out."""

    samples: list[Sample]
    skipped: dict[str, int]  # reason -> rows


Fields = tuple[str, str, str, str]  # instruction, input, response, category
Rows = Iterable[tuple[int, dict[str, Any]]]  # (line, row)


def _alpaca(path: object, line: int, row: dict[str, Any]) -> Fields:
    get = _getter(path, line, row)
    return get("instruction"), get("input", False), get("output"), get("category", False)


def _dolly(path: object, line: int, row: dict[str, Any]) -> Fields:
    get = _getter(path, line, row)
    return get("instruction"), get("context", False), get("response"), get("category", False)


def _prompt_completion(path: object, line: int, row: dict[str, Any]) -> Fields:
    get = _getter(path, line, row)
    answer = next((name for name in ("completion", "response") if name in row), "completion")
    return get("prompt"), "", get(answer), get("category", False)


def _messages(path: object, line: int, row: dict[str, Any]) -> Fields:
    turns = row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(t, dict) for t in turns):
        raise DataError(path, "expected a list of {role, content} objects", line, "messages")
    roles = [t.get("role") for t in turns]
    if roles != ["user", "assistant"]:
        raise DataError(path, f"expected one user and one assistant turn, found roles {roles}", line, "messages")
    user, assistant = (text_field(path, line, t, "content") for t in turns)
    return user, "", assistant, _getter(path, line, row)("category", False)


class _LeftOut(Exception):
    """A sound row that is no single question with an answer; the message says why, and counts them."""


def _magicoder(path: object, line: int, row: dict[str, Any]) -> Fields:
    """Magicoder's OSS-Instruct (problem, solution, lang); its Evol-Instruct half has instruction and response."""
    get = _getter(path, line, row)
    if "problem" in row:
        return get("problem"), "", get("solution"), get("lang", False)
    return get("instruction"), "", get("response"), ""


def _metamath(path: object, line: int, row: dict[str, Any]) -> Fields:
    get = _getter(path, line, row)
    return get("query"), "", get("response"), get("type", False)


def _pubmedqa(path: object, line: int, row: dict[str, Any]) -> Fields:
    """The hub's layout (context.contexts) or the authors' own (CONTEXTS). The response opens with the decision, the
    task's answer, and goes on with the abstract's conclusion."""
    authors = "QUESTION" in row
    get = _getter(path, line, row)
    context = row.get("CONTEXTS") if authors else row.get("context")
    if isinstance(context, dict):
        context = context.get("contexts")
    if not isinstance(context, list) or not all(isinstance(part, str) for part in context):
        raise DataError(path, "expected a list of texts", line, "CONTEXTS" if authors else "context.contexts")
    decision = get("final_decision").strip().lower()
    if decision not in ("yes", "no", "maybe"):
        raise DataError(path, f"{decision!r} is not yes, no or maybe", line, "final_decision")
    conclusion = get("LONG_ANSWER" if authors else "long_answer")
    return (
        get("QUESTION" if authors else "question"),
        "\n".join(context),
        f"{decision.capitalize()}. {conclusion}",
        decision,
    )


# Sources within the Tulu-3 mixture that teach safety (Lambert et al. 2024, arXiv 2411.15124).
_TULU_SAFETY = ("coconot", "wildjailbreak", "wildguard")
SAFETY = "safety"  # the category of their rows; all others are general


def _tulu(path: object, line: int, row: dict[str, Any]) -> Fields:
    """Tulu-3's mixture: messages and source. Conversations of several turns or with a system turn are left out."""
    turns = row.get("messages")
    if isinstance(turns, list) and [t.get("role") for t in turns if isinstance(t, dict)] != ["user", "assistant"]:
        raise _LeftOut("not one user and one assistant turn")
    user, given, assistant, _ = _messages(path, line, row)
    source = _getter(path, line, row)("source").lower()
    return user, given, assistant, SAFETY if any(name in source for name in _TULU_SAFETY) else "general"


def _getter(path: object, line: int, row: dict[str, Any]) -> Callable[..., str]:
    return lambda field, required=True: text_field(path, line, row, field, required=required)


PARSERS: dict[str, Callable[[object, int, dict[str, Any]], Fields]] = {
    "alpaca": _alpaca,  # instruction, input, output
    "dolly": _dolly,  # instruction, context, response
    "messages": _messages,  # [{role: user, content}, {role: assistant, content}]
    "prompt_completion": _prompt_completion,  # prompt, completion (or response)
    "magicoder": _magicoder,  # problem, solution
    "metamath": _metamath,  # query, response
    "pubmedqa": _pubmedqa,  # question, context.contexts, long_answer, final_decision
    "tulu": _tulu,  # messages, source
}

_PROMPT_FIELD = {
    "alpaca": "instruction", "dolly": "instruction", "messages": "messages", "prompt_completion": "prompt",
    "magicoder": "problem", "metamath": "query", "pubmedqa": "question", "tulu": "messages",
}  # fmt: skip

_MARKERS = {
    "messages": {"messages"},
    "dolly": {"instruction", "response"},
    "alpaca": {"instruction", "output"},
    "prompt_completion": {"prompt"},
}


def detect_format(path: object, line: int, row: dict[str, Any]) -> str:
    """The format a row's fields show.

    Raises:
        DataError: they show none.
    """
    for name, fields in _MARKERS.items():
        if fields <= set(row):
            return name
    known = "; ".join(f"{name}: {', '.join(sorted(fields))}" for name, fields in _MARKERS.items())
    raise DataError(path, f"the fields {sorted(map(str, row))} fit no known format ({known})", line)


def samples_from_rows(rows: Rows, *, path: object, source: str, format: str = "auto") -> SampleSet:
    """Samples out of ``(line, row)`` pairs.

    Rows with an empty response (Alpaca has 28) teach nothing and cannot be scored: they are skipped and counted, as are
    Tulu's conversations of several turns. Every other defect is an error.

    Raises:
        DataError: a row that does not fit the format, an empty instruction, or no usable row.
        UnknownNameError: no such format.
    """
    skipped: Counter[str] = Counter()
    samples = list(iterate_samples(rows, skipped, path=path, source=source, format=format))
    return SampleSet(samples, dict(skipped))


def iterate_samples(
    rows: Rows,
    skipped: Counter[str],
    *,
    path: object,
    source: str,
    format: str = "auto",
) -> Iterator[Sample]:
    """``samples_from_rows`` one sample at a time; ``skipped`` counts as it goes."""
    if format != "auto" and format not in PARSERS:
        raise UnknownNameError("data format", format, ["auto", *PARSERS])
    seen: Counter[str] = Counter()
    for line, row in rows:
        if format == "auto":
            format = detect_format(path, line, row)
        try:
            instruction, given, response, category = PARSERS[format](path, line, row)
        except _LeftOut as reason:
            skipped[str(reason)] += 1
            continue
        if not instruction.strip():
            raise DataError(path, "empty instruction", line, _PROMPT_FIELD[format])
        if not response.strip():
            skipped["empty response"] += 1
            continue
        identity = content_id(instruction, given, response)
        seen[identity] += 1
        if seen[identity] > 1:
            identity = content_id(identity, str(seen[identity]))
        yield Sample(identity, instruction, response, given, source, category)
    if not seen:
        left_out = ", ".join(f"{why}: {n}" for why, n in skipped.items())
        raise DataError(path, "no usable row" + (f" ({left_out})" if left_out else ""))


def _pubmedqa_labelled(path: Path) -> Rows:
    questions, test = pubmedqa_labelled(path)
    return ((number, row) for number, (key, row) in enumerate(questions.items(), start=1) if key not in test)


# Files that are no table of rows: what reads them, and the format of the rows that come out.
FILE_FORMATS: dict[str, tuple[Callable[[Path], Rows], str]] = {
    "pubmedqa_labelled": (_pubmedqa_labelled, "pubmedqa"),  # questions by PubMed id; the test's are left out
}


def file_rows(path: Path, format: str) -> tuple[Rows, str]:
    """A data file's rows, and the format that they are in.

    Raises:
        DataError: it cannot be read.
    """
    read, of_rows = FILE_FORMATS.get(format, (read_rows, format))
    return read(path), of_rows


def load_samples(path: Path, *, source: str, format: str = "auto") -> SampleSet:
    """All samples of a data file (see ``samples_from_rows``)."""
    rows, format = file_rows(path, format)
    return samples_from_rows(rows, path=path, source=source, format=format)
