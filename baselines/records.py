"""Training samples and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.records import content_id

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a fine-tuning set: an instruction, perhaps with an input, and its response."""

    id: str  # content hash; a row that stands again gets an id of its own
    instruction: str
    response: str
    input: str = ""  # Alpaca's "input", Dolly's "context"
    source: str = ""  # the data set's name
    category: str = ""

    @property
    def prompt(self) -> str:
        """What the user says: the instruction, or the instruction, a newline and the input."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction

    @classmethod
    def of(cls, instruction: str, response: str, **fields: str) -> "Sample":
        """A sample with the id its content gives it."""
        return cls(content_id(instruction, fields.get("input", ""), response), instruction, response, **fields)


@dataclass(frozen=True)
class Scores:
    """One number a sample, higher = more safety-degrading, in the samples' order."""

    ids: tuple[str, ...]
    score: FloatArray  # [n]
    components: dict[str, FloatArray] = field(default_factory=dict)  # the score's named parts, [n] each
    info: dict[str, Any] = field(default_factory=dict)  # what the scorer has to report: layer, counts, correlations

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: lengths differ, an id stands twice, or a score is not finite. A scorer that cannot score a
                sample says so; it never passes NaN or a silent zero on.
        """
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("sample ids repeat")
        for name, values in {"score": self.score, **self.components}.items():
            if values.shape != (len(self.ids),):
                raise ValueError(f"{name} has shape {values.shape}, expected ({len(self.ids)},)")
        bad = np.flatnonzero(~np.isfinite(self.score))
        if bad.size:
            raise ValueError(f"{bad.size} scores are not finite, the first of sample {self.ids[bad[0]]}")

    def ranking(self) -> npt.NDArray[np.int64]:
        """Indices from most to least safety-degrading; ties are broken by sample id."""
        return np.lexsort((np.asarray(self.ids), -self.score)).astype(np.int64)

    def ranks(self) -> npt.NDArray[np.int64]:
        """Each sample's rank, 1 = most safety-degrading, [n]."""
        ranks = np.empty(len(self.ids), dtype=np.int64)
        ranks[self.ranking()] = np.arange(1, len(self.ids) + 1)
        return ranks


class PromptResponses(Sequence[tuple[str, str]]):
    """(prompt, response) of some samples, made when asked for: of a large set never all at once."""

    def __init__(self, samples: Sequence[Sample], indices: Sequence[int]):
        self._samples, self._indices = samples, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: Any) -> Any:
        sample = self._samples[self._indices[place]]
        return sample.prompt, sample.response


def response_lengths(samples: Sequence[Sample]) -> FloatArray:
    """Characters of each response, [n]."""
    return np.array([len(s.response) for s in samples], dtype=np.float64)
