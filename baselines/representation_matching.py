"""Representation matching (He, Xia and Henderson, COLM 2024, arXiv 2404.01099): the second of their two filters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import normalize

from baselines.anchors import load_anchors
from baselines.architecture import blocks, device_of
from baselines.bi_anchoring import spread_over_categories
from baselines.counting import states_work
from baselines.distributed import over_ranks
from baselines.method import Engine, Method
from baselines.records import PromptResponses, Sample, Scores
from baselines.registry import register
from baselines.representations import read_states, token_position
from eval.chat import ChatFormat
from eval.errors import KeelBenchError


@register("representation_matching")
@dataclass(frozen=True, kw_only=True)
class RepresentationMatching(Method):
    """How close a sample's representation comes to that of any one harmful reference.

    With h the output of the last block at one token of the templated conversation (before the final norm, whose
    weights would reweight the cosine), ``score = max_j cos(h, h_j)`` over the harmful references j: requests with
    their compliant answers (section 3.1).

    Options:
        token: "end_of_turn" (default, the same token in every template) or "last", the template's literal last token.
        anchors: a file instead of the embedded pairs.
        anchor_count: references, taken from each category in turn; None = all pairs.

    Scores' components: ``mean``, the mean cosine over the references. Info: truncated samples.
    """

    name: ClassVar[str]
    token: str = "end_of_turn"
    anchors: str | None = None
    anchor_count: int | None = None

    def __post_init__(self) -> None:
        if self.token not in ("end_of_turn", "last"):
            raise KeelBenchError(f"representation_matching: token={self.token!r}; known are end_of_turn, last")
        if self.anchor_count is not None and self.anchor_count < 1:
            raise KeelBenchError(f"representation_matching: anchor_count={self.anchor_count!r}; a number from 1")

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        chat = ChatFormat(tokenizer)
        pairs = spread_over_categories(load_anchors(self.anchors))[: self.anchor_count]
        texts = [(a.instruction, a.compliance) for a in pairs]
        references, of_references = self._states(model, chat, texts, Engine(tokens_per_batch=engine.tokens_per_batch))

        def compute(indices: Sequence[int]) -> torch.Tensor:
            texts = PromptResponses(samples, indices)
            cosines, flags = self._states(model, chat, texts, engine, references)
            return torch.cat([cosines.amax(1, True), cosines.mean(1, True), flags], dim=1).double()

        found = over_ranks(len(samples), compute, device_of(model), engine=engine).numpy().T
        score, mean, truncated, lengths = found
        read = np.concatenate([lengths, of_references[:, 1].numpy()])
        info = {"references": len(references), "truncated": int(truncated.sum())}
        info |= states_work(model, read, len(blocks(model)))
        return Scores(tuple(s.id for s in samples), score.copy(), {"mean": mean.copy()}, info)

    def _states(
        self,
        model: Any,
        chat: ChatFormat,
        texts: Sequence[tuple[str, str]],
        engine: Engine,
        references: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit states [n, hidden], or their cosines with ``references`` [n, r]; and for each whether it was truncated
        and how many tokens were read, [n, 2]."""
        out = torch.empty(len(texts), model.config.hidden_size if references is None else len(references))
        flags = torch.zeros(len(texts), 2)

        def encode(index: int) -> tuple[Sequence[int], int]:
            conversation = chat.conversation(*texts[index], max_length=engine.max_length)
            position = token_position(conversation, self.token)
            flags[index] = torch.tensor([conversation.truncated, position + 1])
            return conversation.ids, position

        for reading in read_states(model, len(texts), encode, [len(blocks(model))], engine=engine):
            states = normalize(reading.states[:, 0], dim=-1)
            out[reading.indices] = states if references is None else states @ references.T
        return out, flags
