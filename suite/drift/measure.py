"""Hidden states of prompts before and after fine-tuning, and how far and whereto they moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.anchors import load_anchors
from baselines.architecture import base_model, blocks
from baselines.method import Engine
from baselines.representations import read_states
from eval.chat import ChatFormat
from eval.errors import CapacityError
from eval.geometry.covariance import StreamingCovariance
from eval.geometry.principal import Principal, principal_directions

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """One fine-tuned model's prompts against the un-tuned model's.

    The unit of the lengths is the un-tuned states' spread: the root mean square of their distance from their mean.
    """

    shift: float  # length of the mean move
    distance: float  # mean length of a prompt's own move
    towards_compliance: float  # cos of the mean move with (compliance - refusal), in [-1, 1]


def prompt_states(model: Any, tokenizer: Any, texts: Sequence[str], layer: int, engine: Engine = Engine()) -> Floats:
    """States [n, width] behind block ``layer`` at the last token of each templated prompt, where the answer begins.

    Raises:
        CapacityError: the model has no block of that number.
    """
    return _states(model, tokenizer, [ChatFormat(tokenizer).prompt_ids(text) for text in texts], layer, engine)


def compliance_direction(model: Any, tokenizer: Any, layer: int, engine: Engine = Engine()) -> Floats:
    """From refusal to compliance, [width]: the difference of LARF's two anchors (Li et al. 2025, section 3.2), the mean
    states at the end of harmful requests' compliant and refusing answers."""
    chat, anchors = ChatFormat(tokenizer), load_anchors()
    complied, refused = (
        [chat.conversation(a.instruction, text, max_length=engine.max_length) for a, text in pairs]
        for pairs in ([(a, a.compliance) for a in anchors], [(a, a.refusal) for a in anchors])
    )
    ends = [[c.ids[: c.end_of_turn + 1] for c in each] for each in (complied, refused)]
    means = [_states(model, tokenizer, each, layer, engine).mean(axis=0) for each in ends]
    direction: Floats = means[0] - means[1]
    return direction


def _states(model: Any, tokenizer: Any, sequences: Sequence[Sequence[int]], layer: int, engine: Engine) -> Floats:
    if not 0 <= layer < (depth := len(blocks(model))):
        raise CapacityError(f"layer {layer} of a model with {depth} blocks (0..{depth - 1})")
    out = np.empty((len(sequences), base_model(model).config.hidden_size))
    readings = read_states(
        model, len(sequences), lambda i: (sequences[i], len(sequences[i]) - 1), [layer + 1], engine=engine
    )
    for reading in readings:
        out[reading.indices] = reading.states[:, 0].numpy()
    return out


def drift(before: Floats, after: Floats, compliance: Floats) -> Drift:
    """What fine-tuning moved; ``before`` and ``after`` are [n, width], the same prompts in the same order."""
    spread = float(np.sqrt(((before - before.mean(axis=0)) ** 2).sum(axis=1).mean()))
    moves = after - before
    mean = moves.mean(axis=0)
    length = float(np.linalg.norm(mean))
    cosine = 0.0 if length == 0 else float(mean @ compliance / (length * np.linalg.norm(compliance)))
    return Drift(length / spread, float(np.linalg.norm(moves, axis=1).mean()) / spread, cosine)


def common_directions(states: Mapping[str, Floats]) -> Principal:
    """The first two principal directions of all models' states together."""
    moments = StreamingCovariance(next(iter(states.values())).shape[1])
    for each in states.values():
        moments.update(each)
    return principal_directions(moments.mean, moments.covariance(), 2)
