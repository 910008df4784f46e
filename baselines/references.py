"""Methods that filter nothing: the un-tuned model, fine-tuning on everything, and that with a regulariser."""

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


@register("vcl")
@dataclass(frozen=True, kw_only=True)
class RegularizedFullData(Method):
    """Fine-tuning on all samples with the VCL regulariser (``baselines.vcl``), which its YAML switches on."""

    scores: ClassVar[bool] = False
    uses_model: ClassVar[bool] = False
