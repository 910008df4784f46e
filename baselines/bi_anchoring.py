"""Bi-Anchoring: gradient matching with harmful and safe anchors (He, Xia, Henderson, COLM 2024, arXiv 2404.01099)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from baselines.anchors import AnchorPair, load_anchors
from baselines.architecture import device_of
from baselines.counting import gradients_work
from baselines.distributed import over_ranks
from baselines.gradients.capture import Encoded
from baselines.gradients.whole import References, gradient_terms, reference_gradients
from baselines.losses import IGNORE, supervised_labels
from baselines.method import Engine, Method
from baselines.records import Sample, Scores
from baselines.registry import register
from eval.chat import ChatFormat
from eval.errors import CapacityError, KeelBenchError

SETS = ("harmful", "safe1", "safe2")


@register("bi_anchoring")
@dataclass(frozen=True, kw_only=True)
class BiAnchoring(Method):
    """How well a sample's gradient points towards harmful compliance and away from refusals.

    With g the gradient of a sample's mean cross-entropy with respect to all trainable parameters and g/|g| its
    direction, ``score = <g/|g|, A_harmful> - <g/|g|, A_safe1> - <g/|g|, A_safe2>`` (section 3.2; "bidirectional
    anchoring"). An anchor vector is the mean of its anchors' directions and is not normalised again.

    Anchors, from the anchor file in a fixed order that takes one pair of each category in turn: harmful = the first
    ``anchor_count`` requests with their compliant answers; safe1 = the same requests refused; safe2 = the next
    ``anchor_count`` requests refused.

    Options, where paper and published code disagree:
        response_tokens: how many first tokens of a sample's response its loss covers, or "all" (what the published
            script does, which limits the anchors' losses only). 10 follows the method's description, makes samples
            comparable with the anchors, and lets everything behind them be left uncomputed.
        anchor_response_tokens: the same for the anchors (published: 10), a number or "all".
        weights: of the three dot products in the score; (1, 0, 0) is unidirectional anchoring.
        accumulate_anchors: reproduce a defect of the published script, which never zeroes the anchors' gradients, so
            that the j-th one is the sum of the first j. For showing its effect only.
        anchors: a file instead of the embedded pairs (fields instruction, refusal, compliance, category).
        anchor_count: pairs a set.
        separate_terms: compute the three dot products apart, for looking into a score. By default the score, which is
            linear in the anchor vectors, is one product with their weighted sum: a third of the products and of the
            memory (for an 8B model in bfloat16 16 GB instead of 48).

    Other defects of the published script are not offered: anchors dropped by its loader, scores of exactly 0 counted
    as invalid, the last incomplete batch left out, samples whose labels were truncated away scored as NaN.

    Scores' components: ``gradient_norm`` and ``loss`` (nats a token), with ``separate_terms`` also ``harmful``,
    ``safe1`` and ``safe2`` (the dot products). Info: truncated samples, and samples with fewer response tokens than
    asked for, whose loss uses what is there.

    Memory: one gradient of the model's size in its own precision besides the model, three with ``separate_terms``.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "2"
    response_tokens: int | Literal["all"] = 10
    anchor_response_tokens: int | Literal["all"] = 10
    weights: tuple[float, float, float] = (1.0, -1.0, -1.0)
    accumulate_anchors: bool = False
    anchors: str | None = None
    anchor_count: int = 10
    separate_terms: bool = False

    def __post_init__(self) -> None:
        for option in ("response_tokens", "anchor_response_tokens"):
            value = getattr(self, option)
            if value != "all" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise KeelBenchError(f"bi_anchoring: {option}={value!r}; a number of tokens from 1, or all")
        if len(self.weights) != len(SETS) or not any(self.weights):
            raise KeelBenchError(f"bi_anchoring: weights={self.weights!r}; one number each for {', '.join(SETS)}")
        if self.anchor_count < 1:
            raise KeelBenchError(f"bi_anchoring: anchor_count={self.anchor_count!r}; a number from 1")
        object.__setattr__(self, "weights", tuple(float(w) for w in self.weights))

    def score(
        self, model: Any, tokenizer: Any, samples: Sequence[Sample], *, seed: int = 0, engine: Engine = Engine()
    ) -> Scores:
        """
        Raises:
            CapacityError: fewer anchor pairs than two sets need.
            KeelBenchError: the gradient engine's (``gradients.whole.gradient_terms``): unknown kinds of layers, or a
                sample whose loss or gradient is not finite.
        """
        chat = ChatFormat(tokenizer)
        anchors = self._anchors(chat, engine)
        references = self._references(model, anchors, engine)
        tokens = None if self.response_tokens == "all" else self.response_tokens

        def compute(indices: Sequence[int]) -> torch.Tensor:
            flags = torch.zeros(len(indices), 4, dtype=torch.float64)

            def encode(place: int) -> Encoded:
                sample = samples[indices[place]]
                conversation = chat.conversation(sample.prompt, sample.response, max_length=engine.max_length)
                short = tokens is not None and conversation.response_length < tokens
                ids, labels = supervised_labels(conversation, tokens=tokens)
                supervised = sum(label != IGNORE for label in labels)
                flags[place] = torch.tensor([conversation.truncated, short, len(ids), supervised])
                return ids, labels

            terms = gradient_terms(
                model, len(indices), encode, lambda place: samples[indices[place]].id, references, engine=engine
            )
            return torch.cat([terms.directions(), terms.norms[:, None], terms.losses[:, None], flags], dim=1)

        columns = over_ranks(len(samples), compute, device_of(model), engine=engine).numpy().T
        names = SETS if self.separate_terms else ("score",)
        components = dict(zip((*names, "gradient_norm", "loss"), columns, strict=False))
        if self.separate_terms:
            score = sum(w * components[name] for w, name in zip(self.weights, SETS, strict=True))
        else:
            score = components.pop("score")
        lengths, positions = columns[-2:]
        truncated, short = columns[-4:-2].sum(axis=1)
        info: dict[str, Any] = {"truncated": int(truncated), "short_responses": int(short)}
        info |= gradients_work(model, lengths, positions, anchors, references.count)
        return Scores(tuple(s.id for s in samples), score, components, info)

    def _anchors(self, chat: ChatFormat, engine: Engine) -> list[Encoded]:
        """Encoded: harmful, safe1 and safe2, ``anchor_count`` each."""
        tokens = None if self.anchor_response_tokens == "all" else self.anchor_response_tokens
        pairs = spread_over_categories(load_anchors(self.anchors))
        count = self.anchor_count
        if len(pairs) < 2 * count:
            raise CapacityError(f"bi_anchoring: {len(pairs)} anchor pairs, and anchor_count={count} needs {2 * count}")
        first, second = pairs[:count], pairs[count : 2 * count]
        texts = [(a.instruction, a.compliance) for a in first]
        texts += [(a.instruction, a.refusal) for a in first + second]
        return [supervised_labels(chat.conversation(*t, max_length=engine.max_length), tokens=tokens) for t in texts]

    def _references(self, model: Any, items: list[Encoded], engine: Engine) -> References:
        count = self.anchor_count
        quiet = Engine(tokens_per_batch=engine.tokens_per_batch)  # anchors are no progress through the samples
        sets = [range(r * count, (r + 1) * count) for r in range(len(SETS))]
        norms = gradient_terms(model, len(items), items.__getitem__, lambda i: f"anchor {i + 1}", engine=quiet).norms
        weights = torch.zeros(len(SETS), len(items), dtype=torch.float64)
        for r, members in enumerate(sets):
            weights[r, members] = 1 / (count * norms[members])
            if self.accumulate_anchors:
                sums = [items[members.start : j + 1] for j in members]
                lengths = [reference_gradients(model, s, torch.ones(1, len(s)), engine=quiet).norms()[0] for s in sums]
                # anchor i is part of the sums i, i + 1, ...
                weights[r, members] = (1 / (count * torch.stack(lengths))).flip(0).cumsum(0).flip(0)
        if not self.separate_terms:
            weights = torch.tensor([self.weights], dtype=torch.float64) @ weights
        return reference_gradients(model, items, weights, engine=quiet)


def spread_over_categories(pairs: Sequence[AnchorPair]) -> list[AnchorPair]:
    """The pairs, one of each category in turn, categories and their pairs in the file's order."""
    place: dict[str, int] = {}
    turns = []
    for pair in pairs:
        place[pair.category] = place.get(pair.category, -1) + 1
        turns.append(place[pair.category])
    return [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: (turns[i], i))]
