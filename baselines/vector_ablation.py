"""Vector ablation: the fine-tuned model answers without its refusal direction (Arditi et al., NeurIPS 2024, arXiv
2406.11717; a baseline of the VCL paper's Table 3)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.functional import normalize

from baselines.anchors import EMBEDDED, load_anchors
from baselines.architecture import base_model, blocks, decoder
from baselines.method import Engine, Method
from baselines.registry import register
from baselines.representations import read_states
from baselines.samples import load_samples
from eval.chat import ChatFormat
from eval.errors import CapacityError, KeelBenchError
from eval.generation import generate_ids
from eval.judges.refusal_keywords import refusal_phrase
from eval.memory import fitting_batches

log = logging.getLogger(__name__)

DEEPEST = 0.8  # share of the blocks among which auto looks: the paper leaves out the last fifth


@register("vector_ablation")
@dataclass(frozen=True, kw_only=True)
class VectorAblation(Method):
    """Fine-tuning on all samples; then the direction by which harmful requests differ from harmless ones is projected
    out of everything that is written into the residual stream, at every layer and token (the paper's section 2.4).

    The direction is the difference of means (section 2.3) at the prompt's last token, behind one block. ``layer=auto``
    takes the block whose direction, ablated, leaves fewest refusals of held-out harmful requests; ties go to the lower.
    The paper also searches over the template's tokens, scores refusal by token probabilities and bounds the KL
    divergence on harmless prompts; none of these is done here.
    """

    scores: ClassVar[bool] = False
    uses_model: ClassVar[bool] = False
    intervenes: ClassVar[bool] = True

    layer: int | str = "auto"  # block number from 0
    count: int = 32  # prompts of each kind whose means differ
    held_out: int = 16  # harmful requests that auto counts refusals of
    max_new_tokens: int = 16  # of their answers
    harmful: str | None = None
    harmless: str | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.layer, int) and not isinstance(self.layer, bool) and self.layer >= 0
        if self.layer != "auto" and not number:
            raise KeelBenchError(f"vector_ablation: layer={self.layer!r}; a block number from 0, or auto")
        if min(self.count, self.held_out, self.max_new_tokens) < 1:
            raise KeelBenchError("vector_ablation: count, held_out and max_new_tokens are at least 1")

    def prompts(self) -> tuple[list[str], list[str], list[str]]:
        """Harmful requests, harmless ones, held-out harmful ones.

        Raises:
            CapacityError: the files have fewer.
            DataError: a file that cannot be read.
        """
        harmful = [a.instruction for a in load_anchors(self.harmful)]
        source = EMBEDDED / "mini_benign.jsonl" if self.harmless is None else Path(self.harmless)
        samples = load_samples(source, source="harmless").samples
        harmless = [s.prompt for s in sorted(samples, key=lambda s: s.id)]
        held_out = self.held_out if self.layer == "auto" else 0
        if len(harmful) < self.count + held_out or len(harmless) < self.count:
            raise CapacityError(
                f"vector_ablation: {self.count + held_out} harmful and {self.count} harmless prompts are needed, there "
                f"are {len(harmful)} and {len(harmless)}"
            )
        # Every other one, so that the held-out requests are of all categories of a file sorted by category.
        ordered = harmful[::2] + harmful[1::2]
        return ordered[: self.count], harmless[: self.count], ordered[self.count : self.count + held_out]

    def calibration(self) -> None:
        """Nothing is measured; the method's files are read, so that what is wrong with them is told at the start."""
        self.prompts()

    def intervene(self, model: Any, tokenizer: Any, *, engine: Engine = Engine()) -> None:
        """
        Raises:
            CapacityError: the model has no such block.
        """
        harmful, harmless, held_out = self.prompts()
        depth = len(blocks(model))
        if self.layer != "auto" and int(self.layer) >= depth:
            raise CapacityError(f"vector_ablation: layer {self.layer} of a model with {depth} blocks (0..{depth - 1})")
        tried = list(range(int(DEEPEST * depth))) if self.layer == "auto" else [int(self.layer)]
        directions = refusal_directions(model, tokenizer, harmful, harmless, tried, engine=engine)
        best = 0
        if len(tried) > 1:
            refusals = []
            for direction in directions:
                handles = ablate(model, direction)
                try:
                    refusals.append(count_refusals(model, tokenizer, held_out, self.max_new_tokens, engine=engine))
                finally:
                    for handle in handles:
                        handle.remove()
            best = min(range(len(tried)), key=lambda i: (refusals[i], i))
            log.info("vector_ablation: block %d (%d of %d refused)", tried[best], refusals[best], len(held_out))
        ablate(model, directions[best])


def refusal_directions(
    model: Any,
    tokenizer: Any,
    harmful: Sequence[str],
    harmless: Sequence[str],
    layers: Sequence[int],
    *,
    engine: Engine = Engine(),
) -> torch.Tensor:
    """Unit difference of the mean states behind each block of ``layers``, harmful less harmless, float32
    [layers, width]; read at the last token of the templated prompt, where the answer begins."""
    chat = ChatFormat(tokenizer)
    means = []
    for asked in (harmful, harmless):
        encoded = [chat.prompt_ids(text)[-engine.max_length :] for text in asked]
        ends = [(ids, len(ids) - 1) for ids in encoded]
        total = torch.zeros(len(layers), base_model(model).config.hidden_size, dtype=torch.float64)
        for reading in read_states(model, len(ends), ends.__getitem__, [k + 1 for k in layers], engine=engine):
            total += reading.states.double().sum(dim=0)
        means.append(total / len(asked))
    return normalize(means[0] - means[1], dim=-1).float()


def ablate(model: Any, direction: torch.Tensor) -> list[Any]:
    """Project ``direction`` (unit, [width]) out of the embeddings and of what attention and feed-forward parts write:
    the residual stream then never has a component along it. Equal to orthogonalising the weights that write (the
    paper's section 4.1), and possible under adapters.

    Returns:
        The hooks' handles; ``remove()`` undoes it.
    """

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        written = output[0] if isinstance(output, tuple) else output
        along = direction.to(written.device)
        wide = written.float()
        kept = (wide - (wide @ along)[..., None] * along).to(written.dtype)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    parts = [decoder(model).embed_tokens, *(part for block in blocks(model) for part in (block.self_attn, block.mlp))]
    return [part.register_forward_hook(hook) for part in parts]


def count_refusals(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, *, engine: Engine = Engine()
) -> int:
    """How many greedy answers open with a refusal."""
    chat = ChatFormat(tokenizer)
    encoded, stop = [chat.prompt_ids(text) for text in prompts], chat.stop_ids(base_model(model))
    refused = 0

    def answer(batch: list[int]) -> list[list[int]]:
        return generate_ids(model, [encoded[i] for i in batch], max_new_tokens, stop, stop[0])

    lengths = [len(ids) + max_new_tokens for ids in encoded]
    for _, answers in fitting_batches(lengths, engine.tokens_per_batch, answer, what="probing"):
        for ids in answers:
            refused += refusal_phrase(tokenizer.decode(ids, skip_special_tokens=True)) is not None
    return refused
