"""The two reference points: the un-tuned model, and fine-tuning on everything."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.method import Method
from baselines.registry import register


@register("none")
@dataclass(frozen=True, kw_only=True)
class Untuned(Method):
    """The model as it is, no fine-tuning (the papers' "instruct" column)."""

    fine_tunes: ClassVar[bool] = False
    scores: ClassVar[bool] = False
    uses_model: ClassVar[bool] = False


@register("full")
@dataclass(frozen=True, kw_only=True)
class FullData(Method):
    """Fine-tuning on all samples, nothing filtered."""

    scores: ClassVar[bool] = False
    uses_model: ClassVar[bool] = False
