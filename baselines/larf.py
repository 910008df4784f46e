"""LARF: Layer-Aware Representation Filtering (Li et al., EMNLP 2025, arXiv 2507.18631)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn.functional import normalize

from baselines.anchors import load_anchors, load_probes
from baselines.architecture import blocks, device_of
from baselines.counting import states_work
from baselines.distributed import over_ranks
from baselines.method import Engine, Method
from baselines.records import PromptResponses, Sample, Scores, response_lengths
from baselines.registry import register
from baselines.representations import read_states, token_position
from eval.chat import ChatFormat
from eval.errors import CapacityError, KeelBenchError
from eval.judges.refusal_keywords import RefusalKeywords

CHOICES = {
    "direction": ("bidirectional", "unidirectional"),
    "anchor_similarity": ("centroid", "mean_cosine"),
    "token": ("end_of_turn", "last"),
}


@register("larf")
@dataclass(frozen=True, kw_only=True)
class Larf(Method):
    """How much closer a sample lies to harmful compliance than to refusal, at the safety-sensitive layer.

    Stage 1 (paper section 3.1; ``baselines.larf_sensitivity``) finds the layer l_s whose scaling moves refusals most;
    ``layer="auto"`` runs it, a number skips it. Stage 2 (section 3.2) reads h = the output of block l_s at one token of
    the templated conversation and scores, with unsafe anchors u (request and compliance) and safe anchors s (the same
    requests and refusals), ``cos(h, mean u) - cos(h, mean s)``.

    Options, where paper and published code disagree:
        layer: block number from 0, or "auto". Published: 13 (Llama-3, Llama-3.1), 18 (Qwen2.5).
        direction: "unidirectional" leaves the safe term out (paper, figure 3).
        anchor_similarity: "centroid" (the paper's formula, default: cosine with the mean anchor) or "mean_cosine" (the
            code's: mean of the cosines). They rank nearly alike; thresholds do not transfer.
        token: "end_of_turn" (default: the paper's end-of-sequence token, the same token in every template) or "last"
            (the code's literal last token, which in ChatML templates is the newline behind it).
        alphas, max_new_tokens, sensitivity_layers: stage 1's scalings, answer length, and blocks tried (None: all).
        anchors, probes: files to use instead of the embedded data.

    Scores' components: ``unsafe`` and ``safe``, the two cosines. Info: the layer, truncated samples, and the Spearman
    correlation of the score with the response's length, which leaks in through the anchors' lengths.
    """

    name: ClassVar[str]
    layer: int | Literal["auto"] = "auto"
    direction: str = "bidirectional"
    anchor_similarity: str = "centroid"
    token: str = "end_of_turn"
    alphas: tuple[float, ...] = (0.1, 0.2)
    max_new_tokens: int = 32
    sensitivity_layers: tuple[int, ...] | None = None
    anchors: str | None = None
    probes: str | None = None

    def __post_init__(self) -> None:
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                raise KeelBenchError(f"larf: {option}={getattr(self, option)!r}; known are {', '.join(choices)}")
        auto_or_number = self.layer == "auto" or (isinstance(self.layer, int) and self.layer >= 0)
        if not auto_or_number or isinstance(self.layer, bool):
            raise KeelBenchError(f"larf: layer={self.layer!r}; a block number from 0, or auto")
        if not self.alphas or not all(0 < a < 1 for a in self.alphas):
            raise KeelBenchError(f"larf: alphas={self.alphas!r}; numbers between 0 and 1")
        object.__setattr__(self, "alphas", tuple(self.alphas))
        if self.sensitivity_layers is not None:
            object.__setattr__(self, "sensitivity_layers", tuple(self.sensitivity_layers))

    def calibration(self) -> dict[str, Any] | None:
        if self.layer != "auto":
            return None
        return {
            "alphas": self.alphas,
            "max_new_tokens": self.max_new_tokens,
            "sensitivity_layers": self.sensitivity_layers,
            "probes": load_probes(self.probes),
            "judge": RefusalKeywords.version,
        }

    def calibrate(self, model: Any, tokenizer: Any, *, engine: Engine = Engine()) -> dict[str, Any]:
        from baselines.larf_sensitivity import layer_sensitivity

        return layer_sensitivity(
            model,
            tokenizer,
            load_probes(self.probes),
            alphas=self.alphas,
            max_new_tokens=self.max_new_tokens,
            layers=self.sensitivity_layers,
            engine=engine,
        ).as_dict()

    def calibrated(self, measured: dict[str, Any]) -> "Larf":
        return replace(self, layer=int(measured["best_layer"]))

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        """
        Raises:
            KeelBenchError: ``layer`` is still "auto" (calibrate first).
            CapacityError: the model has no block of that number.
        """
        if self.layer == "auto":
            raise KeelBenchError("larf: layer=auto is measured by calibrate(); call calibrated() with its result first")
        depth = len(blocks(model))
        if self.layer >= depth:
            raise CapacityError(f"larf: layer {self.layer} of a model with {depth} blocks (0..{depth - 1})")
        anchors = load_anchors(self.anchors)
        unsafe, of_unsafe = self._read(model, tokenizer, [(a.instruction, a.compliance) for a in anchors], engine)
        safe, of_safe = self._read(model, tokenizer, [(a.instruction, a.refusal) for a in anchors], engine)
        references = torch.stack([self._reference(unsafe), self._reference(safe)])

        def compute(indices: Sequence[int]) -> torch.Tensor:
            pairs = PromptResponses(samples, indices)
            cosines, flags = self._read(model, tokenizer, pairs, engine, references=references)
            return torch.cat([cosines, flags], dim=1).double()

        columns = over_ranks(len(samples), compute, device_of(model), engine=engine).numpy().T.copy()
        to_unsafe, to_safe, truncated, lengths = columns
        read = np.concatenate([lengths, of_unsafe[:, 1].numpy(), of_safe[:, 1].numpy()])
        score = to_unsafe - to_safe if self.direction == "bidirectional" else to_unsafe.copy()
        return Scores(
            tuple(s.id for s in samples),
            score,
            {"unsafe": to_unsafe, "safe": to_safe},
            {
                "layer": self.layer,
                "truncated": int(truncated.sum()),
                "spearman_with_response_length": _spearman(score, response_lengths(samples)),
                **states_work(model, read, self.layer + 1),
            },
        )

    def _reference(self, states: torch.Tensor) -> torch.Tensor:
        """The vector whose dot product with a unit h is the similarity: mean_j cos(h, a_j) = h . mean(a_j/|a_j|)."""
        if self.anchor_similarity == "centroid":
            return normalize(states.mean(0), dim=0)
        return normalize(states, dim=-1).mean(0)

    def _read(
        self,
        model: Any,
        tokenizer: Any,
        pairs: Sequence[tuple[str, str]],
        engine: Engine,
        references: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States [n, hidden], or with ``references`` [r, hidden] their similarities [n, r], reduced batch by batch; and
        for each whether it was truncated and how many tokens were read, [n, 2]."""
        chat = ChatFormat(tokenizer)
        flags = torch.zeros(len(pairs), 2)

        def encode(index: int) -> tuple[Sequence[int], int]:
            conversation = chat.conversation(*pairs[index], max_length=engine.max_length)
            position = token_position(conversation, self.token)
            flags[index] = torch.tensor([conversation.truncated, position + 1])
            return conversation.ids, position

        width = model.config.hidden_size if references is None else len(references)
        out = torch.empty(len(pairs), width)
        assert self.layer != "auto"
        for reading in read_states(model, len(pairs), encode, [self.layer + 1], engine=engine):
            states = reading.states[:, 0]
            out[reading.indices] = states if references is None else normalize(states, dim=-1) @ references.T
        return out, flags


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where either side is constant."""
    from scipy.stats import spearmanr

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)
