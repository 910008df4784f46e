"""Why a row was dropped, as far as a reader can be told: the known harmful request that its own lies nearest to.

Requests are compared, behind the last block at the last token before the answer. At the end of the answer, where some
methods read their scores, the rows' nearest anchors are of the right category no more often than by chance
(docs/purify.md), and reading answers takes several times as long.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Nearest:
    """The anchor whose request is most like a sample's."""

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
    own = (getattr(method, "anchors", None) for method in readers)
    anchors = load_anchors(next((path for path in own if path is not None), None))

    def compute_stage(out: Path) -> int:
        with progress("looking up nearest anchors", len(samples)) as advance:
            engine = Engine(
                tokens_per_batch=compute.scoring_tokens_per_batch, max_length=compute.max_length, on_progress=advance
            )
            places, likeness = _nearest(samples, anchors, model, engine)
        pq.write_table(pa.table({"anchor": places, "likeness": likeness}), out / "nearest.parquet")
        return 0

    inputs = {
        "samples": ids_key([s.id for s in samples]),
        "anchors": ids_key([content_id(a.instruction, a.compliance) for a in anchors]),
        "model": model.weights.key,
        "dtype": model.spec.dtype,
        "attention": model.spec.attention,
        "max_length": compute.max_length,
    }
    entry = cache.entry("nearest_anchors", "2", inputs, compute_stage, f"({len(samples)} samples)")
    table = pq.read_table(entry.path / "nearest.parquet").to_pydict()
    pairs = zip(samples, table["anchor"], table["likeness"], strict=True)
    return {s.id: Nearest(anchors[place], likeness) for s, place, likeness in pairs}, [entry]


def _nearest(
    samples: Sequence[Sample], anchors: Sequence[AnchorPair], model: LoadedModel, engine: Engine
) -> tuple[np.ndarray, np.ndarray]:
    """``(number of the nearest anchor, likeness)``, [n] each."""
    import torch
    from torch.nn.functional import normalize

    from baselines.architecture import blocks
    from baselines.representations import read_states
    from eval.chat import ChatFormat

    subject, tokenizer = model.get()
    chat = ChatFormat(tokenizer)

    def states(texts: Sequence[tuple[str, str]], engine: Engine) -> Iterator[tuple[list[int], "torch.Tensor"]]:
        """Places among the texts, and states [batch, hidden]."""

        def encode(index: int) -> tuple[Sequence[int], int]:
            conversation = chat.conversation(*texts[index], max_length=engine.max_length)
            return conversation.ids, conversation.prompt_length - 1

        for reading in read_states(subject, len(texts), encode, [len(blocks(subject))], engine=engine):
            yield reading.indices, reading.states[:, 0]

    quiet = Engine(tokens_per_batch=engine.tokens_per_batch, max_length=engine.max_length)  # the bar counts samples
    references = torch.empty(len(anchors), subject.config.hidden_size)
    for indices, found in states([(a.instruction, a.compliance) for a in anchors], quiet):
        references[indices] = found
    mean = references.mean(0)
    directions = normalize(references - mean, dim=-1).T
    places, likeness = np.empty(len(samples), np.int64), np.empty(len(samples))
    for indices, found in states([(s.prompt, s.response) for s in samples], engine):
        best = (normalize(found - mean, dim=-1) @ directions).max(dim=1)
        places[indices], likeness[indices] = best.indices.numpy(), best.values.numpy()
    return places, likeness
