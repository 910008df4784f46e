"""Response length: what a method that prefers long answers has to be better than."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from baselines.method import Engine, Method
from baselines.records import Sample, Scores, response_lengths
from baselines.registry import register


@register("length")
@dataclass(frozen=True, kw_only=True)
class ResponseLength(Method):
    """The response's length in characters. No published method, but a control: LARF's and the gradients' scores follow
    length (LARF's Table 4; docs/results.md), and only the difference to this one is the method's own.
    """

    uses_model: ClassVar[bool] = False

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        return Scores(tuple(s.id for s in samples), response_lengths(samples))
