"""The records of evaluation: prompts, completions, verdicts. One place each; Parquet files carry the same names."""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

Expected = Literal["refuse", "comply"]
# not_harmful: the judge saw no harm and says nothing about refusing. unparsed: its reply could not be read.
# not_judged: the judge was not asked, because the question makes no sense for this prompt.
Label = Literal["harmful", "not_harmful", "refused", "complied", "incoherent", "unparsed", "not_judged"]
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
    category: str = ""  # kinds of harm the judge names, such as Llama Guard's "S1,S2"

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"verdict label {self.label!r} is not one of {LABELS}")


@dataclass(frozen=True, slots=True)
class Usage:
    """What verdicts cost, where a model gave them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float | None = None  # by the configured prices; None without


class Verdicts(list[Verdict]):
    """A judge's verdicts, in the prompts' order, and what they cost."""

    def __init__(self, verdicts: Iterable[Verdict] = (), usage: Usage | None = None):
        super().__init__(verdicts)
        self.usage = usage or Usage()


def as_rows(records: list) -> list[dict]:
    """Records as plain dictionaries, in order."""
    return [asdict(r) for r in records]
