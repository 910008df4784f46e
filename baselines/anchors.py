"""The embedded reference data that scorers compare samples with: anchor pairs and over-rejection probes."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from eval.errors import DataError
from eval.tables import read_rows, text_field

EMBEDDED = Path(str(files("baselines") / "data"))


@dataclass(frozen=True, slots=True)
class AnchorPair:
    """A harmful request with a refusal and with a compliant answer (in the embedded data: one without substance)."""

    instruction: str
    refusal: str
    compliance: str
    category: str


def load_anchors(path: str | None = None) -> list[AnchorPair]:
    """Anchor pairs from a file with the fields instruction, refusal, compliance, category; None = the embedded 50.

    Raises:
        DataError: a malformed row, an empty field, or no row.
    """
    source = EMBEDDED / "anchors.jsonl" if path is None else Path(path)
    anchors = []
    for line, row in read_rows(source):
        values = [text_field(source, line, row, f) for f in ("instruction", "refusal", "compliance")]
        for name, value in zip(("instruction", "refusal", "compliance"), values, strict=True):
            if not value.strip():
                raise DataError(source, "empty", line, name)
        category = text_field(source, line, row, "category", required=False)
        anchors.append(AnchorPair(values[0], values[1], values[2], category))
    if not anchors:
        raise DataError(source, "no anchor pair")
    return anchors


def load_probes(path: str | None = None) -> list[str]:
    """Harmless prompts that look dangerous; a JSON array of strings or rows with a ``prompt``; None = embedded 60.

    Raises:
        DataError: a malformed row, or no row.
    """
    source = EMBEDDED / "overrefusal_probes.jsonl" if path is None else Path(path)
    probes = [text_field(source, line, row, "prompt") for line, row in read_rows(source)]
    if not probes:
        raise DataError(source, "no probe")
    return probes
