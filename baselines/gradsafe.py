"""GradSafe-Zero (Xie et al., ACL 2024, arXiv 2402.13494), used as a scorer of fine-tuning samples."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from baselines.anchors import EMBEDDED
from baselines.architecture import device_of
from baselines.counting import slices_work
from baselines.distributed import over_ranks
from baselines.gradients.capture import Encoded
from baselines.gradients.slices import CriticalSlices, Gaps, critical_slices, matrices, slice_cosines, slice_gaps
from baselines.losses import IGNORE, supervised_labels
from baselines.method import Engine, Method
from baselines.records import Sample, Scores
from baselines.registry import register
from eval.chat import ChatFormat
from eval.errors import DataError, KeelBenchError

SYSTEM = "You are a helpful assistant. Help me with the following query: "
COMPLIANCE = "Sure"


@register("gradsafe")
@dataclass(frozen=True, kw_only=True)
class GradSafe(Method):
    """How alike the gradients of agreeing to a sample's prompt and of agreeing to unsafe prompts are.

    Every prompt is paired with the response "Sure". Stage 1 (paper, section 3.2): the reference is the mean gradient of
    the unsafe prompts over every matrix under ``self_attn`` and ``mlp``; each of its rows and columns is a slice, whose
    gap is the mean cosine with the reference of the unsafe prompts less that of the safe prompts. Slices with a gap
    above the threshold are safety-critical. Stage 2 (section 3.3): a sample's score is the unweighted mean of its
    cosines with the reference over all critical slices. The sample's own response is not used.

    The unsafe prompts are part of their own reference, so gaps are biased upward; that is the method.

    Options, where paper and published code disagree or neither says:
        supervise_end: whether the loss covers the end-of-turn token behind "Sure" (default: the code does; the paper's
            prose names "Sure" alone). They rank differently.
        use_input: whether a sample's input belongs to its prompt (default: without it, many instructions ask nothing).
        gap: "threshold" (default, the method's): slices whose gap exceeds ``gap_threshold`` strictly; or
            "top_fraction": the ``top_fraction`` of all slices with the largest gaps, for a model where none exceeds it.
        gap_threshold: cosines, so at most 2; published: 1.
        top_fraction: default 0.02, near the share that the threshold leaves in small chat models.
        prompts: a JSON file {"unsafe": [...], "safe": [...]} instead of the embedded two of each.
        system: the system turn, the published text by default; where a model's template knows no system role it stands
            before the prompt. "" leaves the template's own default.

    The reference prompts are computed in float32 whatever the model's precision: float16 underflows here (bfloat16
    does not), and a slice is critical by a comparison with a fixed number, which rounding of an activation would
    decide. It costs no second copy of the model: see ``gradients.slices.float32_arithmetic``. Samples are scored in
    the model's precision.

    Scores' components: ``zero_slices``, how many of a sample's critical slices had no gradient and counted as cosine 0.
    Info: critical rows and columns, zero slices, truncated samples. The published detection threshold, 0.25, is not
    needed for a ranking.
    """

    name: ClassVar[str]
    supervise_end: bool = True
    use_input: bool = True
    gap: str = "threshold"
    gap_threshold: float = 1.0
    top_fraction: float = 0.02
    prompts: str | None = None
    system: str = SYSTEM

    def __post_init__(self) -> None:
        if self.gap not in ("threshold", "top_fraction"):
            raise KeelBenchError(f"gradsafe: gap={self.gap!r}; known are threshold, top_fraction")
        if not 0 < self.top_fraction <= 1:
            raise KeelBenchError(f"gradsafe: top_fraction={self.top_fraction!r}; a share above 0, at most 1")

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        """
        Raises:
            KeelBenchError: no slice is critical; no matrix under ``self_attn`` or ``mlp`` is trainable; a sample whose
                loss or gradient is not finite.
            DataError: the prompts' file.
        """
        prompts = _Prompts(ChatFormat(tokenizer), self.system, self.supervise_end)
        slices = self._slices(model, prompts)

        def compute(indices: Sequence[int]) -> torch.Tensor:
            sizes = torch.zeros(len(indices), 3, dtype=torch.float64)

            def encode(place: int) -> Encoded:
                sample = samples[indices[place]]
                prompt = sample.prompt if self.use_input else sample.instruction
                encoded, truncated = prompts.encode(prompt, engine.max_length)
                supervised = sum(label != IGNORE for label in encoded[1])
                sizes[place] = torch.tensor([truncated, len(encoded[0]), supervised])
                return encoded

            found = slice_cosines(
                model, slices, len(indices), encode, lambda place: samples[indices[place]].id, engine=engine
            )
            return torch.cat([found, sizes], dim=1)

        found = over_ranks(len(samples), compute, device_of(model), engine=engine).numpy().T
        score, zero, truncated, lengths, positions = found
        info = {
            "critical_rows": sum(len(s.rows) for s in slices.values()),
            "critical_columns": sum(len(s.columns) for s in slices.values()),
            "zero_slices": int(zero.sum()),
            "truncated": int(truncated.sum()),
            **slices_work(model, lengths, positions, slices, *self._references(prompts)),
        }
        return Scores(tuple(s.id for s in samples), score.copy(), {"zero_slices": zero.copy()}, info)

    def _references(self, prompts: "_Prompts") -> tuple[list[Encoded], list[Encoded]]:
        """The unsafe and the safe reference prompts, encoded."""
        unsafe, safe = load_prompts(self.prompts)
        return [prompts.encode(text)[0] for text in unsafe], [prompts.encode(text)[0] for text in safe]

    def _slices(self, model: Any, prompts: "_Prompts") -> dict[str, CriticalSlices]:
        unsafe, safe = self._references(prompts)
        layers = matrices(model)
        gaps = slice_gaps(model, layers, unsafe, safe)
        return critical_slices(model, layers, unsafe, self._critical(gaps))

    def _critical(self, gaps: dict[str, Gaps]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        flat = torch.cat([values for g in gaps.values() for values in (g.rows, g.columns)])
        if self.gap == "threshold":
            chosen = flat > self.gap_threshold
            if not chosen.any():
                raise KeelBenchError(
                    f"gradsafe: no row or column has a gap above {self.gap_threshold} (the largest is "
                    f"{float(flat.max()):.3f}), so none is safety-critical in this model. Take the largest gaps "
                    "instead with method.gap=top_fraction, or align the model first (model.align)."
                )
        else:
            order = torch.argsort(flat, descending=True, stable=True)
            chosen = torch.zeros_like(flat, dtype=torch.bool)
            chosen[order[: math.ceil(self.top_fraction * len(flat))]] = True
        parts = chosen.split([len(values) for g in gaps.values() for values in (g.rows, g.columns)])
        indices = [part.nonzero().flatten() for part in parts]
        return dict(zip(gaps, zip(indices[::2], indices[1::2], strict=True), strict=True))


class _Prompts:
    """Encodes prompts as conversations that start to comply."""

    def __init__(self, chat: ChatFormat, system: str, supervise_end: bool):
        as_turn = bool(system) and takes_system_turn(chat, system)
        self.chat, self.supervise_end = chat, supervise_end
        self.turn: str | None = system if as_turn else None
        self.prefix = "" if as_turn else system

    def encode(self, prompt: str, max_length: int | None = None) -> tuple[Encoded, bool]:
        """Token ids and labels, and whether the prompt was truncated."""
        found = self.chat.conversation(self.prefix + prompt, COMPLIANCE, system=self.turn, max_length=max_length)
        return supervised_labels(found, tokens=found.response_length - (not self.supervise_end)), found.truncated


def takes_system_turn(chat: ChatFormat, system: str) -> bool:
    """Whether the chat template renders a system turn; some refuse it, some leave it out."""
    try:
        return system.strip() in chat.prompt_text(COMPLIANCE, system)
    except KeelBenchError:
        return False


def load_prompts(path: str | None = None) -> tuple[list[str], list[str]]:
    """The unsafe and the safe reference prompts of a JSON file; None = the embedded two of each.

    Raises:
        DataError: no such file, or not an object with two lists of texts, ``unsafe`` and ``safe``.
    """
    source = EMBEDDED / "gradsafe_prompts.json" if path is None else Path(path)
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(source, f"cannot be read: {error}") from error
    lists = []
    for field in ("unsafe", "safe"):
        texts = found.get(field) if isinstance(found, dict) else None
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise DataError(source, "expected a list of prompts", field=field)
        lists.append(texts)
    return lists[0], lists[1]
