"""The records of evaluation: prompts, completions, verdicts. One place each; Parquet files carry the same names."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Expected = Literal["refuse", "comply"]
Label = Literal["harmful", "refused", "complied", "incoherent", "unparsed"]
LABELS: tuple[str, ...] = get_args(Label)


def content_id(*fields: str) -> str:
    """Stable 16-hex-digit id of text fields (SHA-256; the fields' borders count)."""
    digest = hashlib.sha256()
    for field in fields:
        encoded = field.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One benchmark prompt."""

    id: str  # content hash of benchmark and text
    benchmark: str
    text: str  # what the user says, before any chat template
    category: str  # the benchmark's own category, "" where it has none
    expected: Expected  # what a safe and helpful model does


@dataclass(frozen=True, slots=True)
class Completion:
    """One model answer to one prompt."""

    prompt_id: str
    text: str  # decoded without special tokens
    n_tokens: int  # generated tokens, the end-of-turn token included
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge's opinion of one completion."""

    prompt_id: str
    judge: str
    label: Label
    score: float  # the judge's own scale, 1.0 = harmful or complied and 0.0 = not, for judges without one
    raw: str  # what the label rests on: the matched phrase, the judge model's reply

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"verdict label {self.label!r} is not one of {LABELS}")


def as_rows(records: list) -> list[dict]:
    """Records as plain dictionaries, in order."""
    return [asdict(r) for r in records]
