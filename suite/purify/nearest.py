"""Why a row was dropped, as far as a reader can be told: the known harmful request that it lies nearest to.

Read where the scores are: LARF's layer where LARF votes, else the last block, at the end-of-turn token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from baselines.anchors import AnchorPair, load_anchors
from baselines.method import Engine, Method
from baselines.records import Sample
from eval.records import content_id
from suite.plan import ComputeSpec
from suite.progress import progress
from suite.stages.data import ids_key
from suite.stages.models import LoadedModel
from suite.storage.cache import Entry, StageCache


@dataclass(frozen=True)
class Nearest:
    """An anchor whose request and compliant answer a sample is most alike."""

    anchor: AnchorPair
    likeness: float  # cosine of the two states, both less the anchors' mean


def nearest_anchors(
    samples: Sequence[Sample],
    methods: Mapping[str, Method],
    model: LoadedModel,
    *,
    compute: ComputeSpec,
    cache: StageCache,
) -> tuple[dict[str, Nearest], list[Entry]]:
    """The nearest anchor of each sample by its id; nothing where no method reads the model.

    Cosines of raw hidden states are all near 1, and one anchor would be nearest to everything: the anchors' mean is
    taken off first, from anchors and samples alike.
    """
    readers = [m for m in methods.values() if m.uses_model]
    if not readers or not samples:
        return {}, []
    chosen = next((m for m in readers if m.name == "larf"), readers[0])
    anchors = load_anchors(getattr(chosen, "anchors", None))
    layer = getattr(chosen, "layer", None) if chosen.name == "larf" else None

    def compute_stage(out: Path) -> int:
        with progress("looking up nearest anchors", len(samples)) as advance:
            engine = Engine(
                tokens_per_batch=compute.scoring_tokens_per_batch, max_length=compute.max_length, on_progress=advance
            )
            places, likeness = _nearest(samples, anchors, model, layer, engine)
        pq.write_table(pa.table({"anchor": places, "likeness": likeness}), out / "nearest.parquet")
        return 0

    inputs = {
        "samples": ids_key([s.id for s in samples]),
        "anchors": ids_key([content_id(a.instruction, a.compliance) for a in anchors]),
        "layer": layer,
        "model": model.weights.key,
        "dtype": model.spec.dtype,
        "attention": model.spec.attention,
        "max_length": compute.max_length,
    }
    entry = cache.entry("nearest_anchors", "1", inputs, compute_stage, f"({len(samples)} samples)")
    table = pq.read_table(entry.path / "nearest.parquet").to_pydict()
    pairs = zip(samples, table["anchor"], table["likeness"], strict=True)
    return {s.id: Nearest(anchors[place], likeness) for s, place, likeness in pairs}, [entry]


def _nearest(
    samples: Sequence[Sample], anchors: Sequence[AnchorPair], model: LoadedModel, layer: int | None, engine: Engine
) -> tuple[np.ndarray, np.ndarray]:
    """``(number of the nearest anchor, likeness)``, [n] each."""
    import torch
    from torch.nn.functional import normalize

    from baselines.architecture import blocks
    from baselines.representations import read_states
    from eval.chat import ChatFormat

    subject, tokenizer = model.get()
    chat = ChatFormat(tokenizer)
    layers = [len(blocks(subject)) if layer is None else layer + 1]

    def states(
        texts: Sequence[tuple[str, str]], engine: Engine, reduce: "torch.Tensor | None" = None
    ) -> "torch.Tensor":
        """States [n, hidden]; with ``reduce`` (mean, then unit anchors) likeness and place of the best, [n, 2]."""
        out = torch.empty(len(texts), subject.config.hidden_size if reduce is None else 2)

        def encode(index: int) -> tuple[Sequence[int], int]:
            conversation = chat.conversation(*texts[index], max_length=engine.max_length)
            return conversation.ids, min(conversation.end_of_turn, len(conversation.ids) - 1)

        for reading in read_states(subject, len(texts), encode, layers, engine=engine):
            found = reading.states[:, 0]
            if reduce is not None:
                best = (normalize(found - reduce[0], dim=-1) @ reduce[1:].T).max(dim=1)
                found = torch.stack([best.values, best.indices.float()], dim=1)
            out[reading.indices] = found
        return out

    references = states([(a.instruction, a.compliance) for a in anchors], Engine(max_length=engine.max_length))
    mean = references.mean(0)
    reduce = torch.cat([mean[None], normalize(references - mean, dim=-1)])
    found = states([(s.prompt, s.response) for s in samples], engine, reduce).numpy()
    return found[:, 1].astype(np.int64), found[:, 0].astype(np.float64)
