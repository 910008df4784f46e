"""What scoring takes, method by method: tokens read, and operations by formula (``eval.flops`` has the passes').

Counted is what the algorithm multiplies, references and anchors included; where an engine saves work by computing a
common prefix once, or wastes some on padding, the formula does neither. Elementwise arithmetic is not counted.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from baselines.architecture import base_model
from baselines.gradients.capture import Encoded, trainable_layers
from baselines.gradients.contractions import linear_operations
from baselines.gradients.slices import CriticalSlices
from baselines.losses import IGNORE
from baselines.records import FloatArray
from eval.flops import Shape

Counts = dict[str, Any]  # tokens and flops, for a scorer's info


def states_work(model: Any, lengths: FloatArray, blocks: int) -> Counts:
    """LARF, representation matching: forward through the first ``blocks`` blocks, no head."""
    return _told(Shape.of(model).upto(blocks).forward(lengths), lengths)


def slices_work(
    model: Any,
    lengths: FloatArray,
    positions: FloatArray,
    slices: dict[str, CriticalSlices],
    unsafe: Sequence[Encoded],
    safe: Sequence[Encoded],
) -> Counts:
    """GradSafe. A sample: forward, backward of the activations down to the first block with critical slices, and
    2 n (r in + c out) for a matrix with r critical rows and c columns. The reference prompts: a pass over all of them
    with every gradient written out (2 P n, and as much for the unsafe ones' mean), and one over the unsafe ones."""
    shape = _untrained(model)
    down_to = shape.upto(shape.blocks - min(map(_block, slices)))
    width = sum(s.row_references.numel() + s.column_references.numel() for s in slices.values())
    unsafe_lengths, unsafe_positions = _sizes(unsafe)
    all_lengths, all_positions = _sizes([*unsafe, *safe])

    def scored(given: FloatArray, logits: FloatArray) -> float:
        passes = shape.forward(given, logits.sum()) + down_to.backward(given, logits.sum())
        return passes + 2 * float(given.sum()) * width

    flops = scored(lengths, positions) + scored(unsafe_lengths, unsafe_positions)
    flops += shape.forward(all_lengths, all_positions.sum()) + shape.backward(all_lengths, all_positions.sum())
    flops += 2 * shape.parameters * float(all_lengths.sum() + unsafe_lengths.sum())
    return _told(flops, lengths, unsafe_lengths, all_lengths)


def gradients_work(
    model: Any, lengths: FloatArray, positions: FloatArray, anchors: Sequence[Encoded], references: int
) -> Counts:
    """Bi-Anchoring. A sample: forward, backward of the activations, and for each matrix the norm of its gradient and
    ``references`` dot products, by whichever of the two routes of ``gradients.contractions.linear_terms`` is taken. An
    anchor: the same for its norm alone, then forward and an ordinary backward pass for every trainable parameter."""
    shape, trained = _untrained(model), Shape.of(model)
    head = base_model(model).get_output_embeddings()
    layers = [a for a in trainable_layers(model) if a.kind == "linear" and "weight" in a.parameters]

    def compared(given: FloatArray, logits: FloatArray, count: int) -> float:
        flops = shape.forward(given, logits.sum()) + shape.backward(given, logits.sum())
        seen: set[str] = set()
        for layer in layers:
            size = int(layer.module.in_features), int(layer.module.out_features)  # type: ignore[arg-type]
            known = _SAME_INPUT.match(layer.name)
            # Query, key and value projections read one input, gate and up projections another.
            source = f"{known[1]}" if known else layer.name
            times = logits if layer.module is head else given
            flops += float(linear_operations(times, *size, count, own_input=source not in seen).sum())
            seen.add(source)
        return flops

    anchor_lengths, anchor_positions = _sizes(anchors)
    logits = float(anchor_positions.sum())
    flops = compared(lengths, positions, references) + compared(anchor_lengths, anchor_positions, 0)
    flops += trained.forward(anchor_lengths, logits) + trained.backward(anchor_lengths, logits)
    flops += 2 * shape.head * logits * any(layer.module is head for layer in layers)
    return _told(flops, lengths, anchor_lengths, anchor_lengths)


def bilevel_flops(model: Any, read: Sequence[Encoded], differentiated: Sequence[Encoded]) -> float:
    """SEAL, from its model with adapters: forward for each visit of a sample in every epoch; where the visit has a
    weight in the model's loss, backward too, for activations and adapters.

    Args:
        read, differentiated: (token ids, labels) of each such visit.
    """
    shape = Shape.of(model)
    lengths, positions = _sizes(read)
    back, back_positions = _sizes(differentiated)
    return shape.forward(lengths, positions.sum()) + shape.backward(back, back_positions.sum())


_SAME_INPUT = re.compile(r"^(.*\.(?:self_attn|mlp))\.(?:[qkv]|qkv|gate|up|gate_up)_proj$")


def _block(name: str) -> int:
    """The number of the block that a module of this name is in."""
    found = re.search(r"layers\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _told(flops: float, *lengths: FloatArray) -> Counts:
    """As a scorer's ``info`` has it."""
    return {"tokens": int(sum(n.sum() for n in lengths)), "flops": float(flops)}


def _untrained(model: Any) -> Shape:
    """The gradient engine freezes the parameters for its passes."""
    return replace(Shape.of(model), trained=0)


def _sizes(encoded: Sequence[Encoded]) -> tuple[FloatArray, FloatArray]:
    """Tokens and supervised positions of each, [n]."""
    lengths = np.array([len(ids) for ids, _ in encoded], dtype=float)
    return lengths, np.array([np.sum(np.asarray(labels) != IGNORE) for _, labels in encoded], dtype=float)
