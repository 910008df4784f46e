"""Fine-tuning sets: every format in, the same samples out."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baselines.records import Sample
from eval.errors import DataError, UnknownNameError
from eval.records import content_id
from eval.tables import read_rows, text_field


@dataclass(frozen=True)
class SampleSet:
    """Samples in the file's order, and what was left out."""

    samples: list[Sample]
    skipped: dict[str, int]  # reason -> rows


Fields = tuple[str, str, str, str]  # instruction, input, response, category


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


def _getter(path: object, line: int, row: dict[str, Any]) -> Callable[..., str]:
    return lambda field, required=True: text_field(path, line, row, field, required=required)


PARSERS: dict[str, Callable[[object, int, dict[str, Any]], Fields]] = {
    "alpaca": _alpaca,  # instruction, input, output
    "dolly": _dolly,  # instruction, context, response
    "messages": _messages,  # [{role: user, content}, {role: assistant, content}]
    "prompt_completion": _prompt_completion,  # prompt, completion (or response)
}

_PROMPT_FIELD = {"alpaca": "instruction", "dolly": "instruction", "messages": "messages", "prompt_completion": "prompt"}

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


def samples_from_rows(
    rows: Iterable[tuple[int, dict[str, Any]]], *, path: object, source: str, format: str = "auto"
) -> SampleSet:
    """Samples out of ``(line, row)`` pairs.

    Rows with an empty response (Alpaca has 28) teach nothing and cannot be scored: they are skipped and counted. Every
    other defect is an error.

    Raises:
        DataError: a row that does not fit the format, an empty instruction, or no usable row.
        UnknownNameError: no such format.
    """
    if format != "auto" and format not in PARSERS:
        raise UnknownNameError("data format", format, ["auto", *PARSERS])
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for line, row in rows:
        if format == "auto":
            format = detect_format(path, line, row)
        instruction, given, response, category = PARSERS[format](path, line, row)
        if not instruction.strip():
            raise DataError(path, "empty instruction", line, _PROMPT_FIELD[format])
        if not response.strip():
            skipped["empty response"] += 1
            continue
        identity = content_id(instruction, given, response)
        seen[identity] += 1
        if seen[identity] > 1:
            identity = content_id(identity, str(seen[identity]))
        samples.append(Sample(identity, instruction, response, given, source, category))
    if not samples:
        raise DataError(path, "no usable row" + (f" ({skipped.total()} with an empty response)" if skipped else ""))
    return SampleSet(samples, dict(skipped))


def load_samples(path: Path, *, source: str, format: str = "auto") -> SampleSet:
    """All samples of a data file (see ``samples_from_rows``)."""
    return samples_from_rows(read_rows(path), path=path, source=source, format=format)
