"""Hidden states of prompts, measured as they stream by (FlowLens, arXiv 2603.13318).

For each prompt, without a chat template, the last token's residual after each of the L blocks; all N·L of them are one
cloud of points, centred by their mean. Two passes over the prompts: the first gathers moments, the second projects on
the directions that the first found. Neither keeps the states; what grows with the number of prompts is their
coordinates, (components + 1) numbers a prompt and layer.
"""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.architecture import base_model, blocks
from baselines.method import Engine
from baselines.representations import Readings, read_states
from eval.errors import KeelBenchError
from eval.geometry.covariance import StreamingCovariance
from eval.geometry.dimension import IntrinsicDimension, two_nn
from eval.geometry.principal import Principal, principal_directions

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trajectories:
    """What each prompt did in each layer; layer 1 is the first block's output."""

    coordinates: Floats  # [prompts, layers, components]
    mean_cosine: Floats  # [prompts, layers], with all other prompts in the same layer; NaN for a single prompt


@dataclass(frozen=True)
class Geometry:
    """What was measured of one model on one set of prompts."""

    principal: Principal
    dimension: IntrinsicDimension
    trajectories: Trajectories
    with_mark: Trajectories | None  # the same prompts with a question mark, on the same directions
    tokens: int  # read in all passes
    truncated: int  # prompts above the longest length


def without_punctuation(text: str) -> str:
    """``text`` without white space and punctuation (Unicode categories P) at its end."""
    end = len(text)
    while end and (text[end - 1].isspace() or unicodedata.category(text[end - 1]).startswith("P")):
        end -= 1
    return text[:end]


def measure(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    components: int,
    dimension_rows: int,
    seed: int,
    with_mark: bool = False,
    engine: Engine = Engine(),
) -> Geometry:
    """The geometry of ``texts``, as given: whoever wants their punctuation stripped does it before.

    Args:
        dimension_rows: states that TwoNN looks at, chosen by ``seed`` among all prompts and layers.
        with_mark: measure all prompts once more with a question mark behind them.

    Raises:
        KeelBenchError: an empty text, fewer than two, or states without a principal direction or a dimension.
    """
    reader = _Reader(model, tokenizer, engine)
    width, depth, n = base_model(model).config.hidden_size, len(blocks(model)), len(texts)
    if n < 2:
        raise KeelBenchError(f"{n} prompts have no geometry: at least 2")
    chosen = np.random.default_rng(seed).choice(n * depth, size=min(dimension_rows, n * depth), replace=False)
    sampled = np.empty((len(chosen), width), dtype=np.float32)
    place = {int(row): i for i, row in enumerate(chosen)}
    moments, units = StreamingCovariance(width), np.zeros((depth, width))
    for reading in reader(texts):
        states = reading.states.numpy()
        moments.update(states.reshape(-1, width))
        units += _unit(states).sum(axis=0)
        for prompt, of_prompt in zip(reading.indices, states, strict=True):
            for layer in range(depth):
                if (i := place.get(prompt * depth + layer)) is not None:
                    sampled[i] = of_prompt[layer]
    principal = principal_directions(moments.mean, moments.covariance(), components)
    trajectories = _trajectories(reader(texts), n, depth, principal, units)
    marked = None
    if with_mark:
        asked = [f"{text}?" for text in texts]
        units = np.zeros((depth, width))
        for reading in reader(asked):
            units += _unit(reading.states.numpy()).sum(axis=0)
        marked = _trajectories(reader(asked), n, depth, principal, units)
    return Geometry(principal, two_nn(sampled), trajectories, marked, reader.tokens, len(reader.truncated))


class _Reader:
    """Passes over texts, counting."""

    def __init__(self, model: Any, tokenizer: Any, engine: Engine):
        self.model, self.tokenizer, self.engine = model, tokenizer, engine
        self.tokens = 0
        self.truncated: set[str] = set()

    def __call__(self, texts: Sequence[str]) -> Iterator[Readings]:
        layers = range(1, len(blocks(self.model)) + 1)
        return read_states(self.model, len(texts), self._encode(texts), layers, engine=self.engine)

    def _encode(self, texts: Sequence[str]) -> Callable[[int], tuple[Sequence[int], int]]:
        def encode(index: int) -> tuple[Sequence[int], int]:
            ids = list(self.tokenizer(texts[index])["input_ids"])
            if not texts[index].strip() or not ids:
                raise KeelBenchError(f"prompt {index + 1} is empty (without the punctuation at its end)")
            if len(ids) > self.engine.max_length:
                self.truncated.add(texts[index])
                ids = ids[-self.engine.max_length :]  # the end stays: it is where the state is read
            self.tokens += len(ids)
            return ids, len(ids) - 1

        return encode


def _trajectories(
    readings: Iterator[Readings], n: int, depth: int, principal: Principal, units: Floats
) -> Trajectories:
    """The mean cosine of prompt i with all others is u_i · (Σ_j u_j - u_i) / (n - 1): no pair is ever formed."""
    coordinates = np.empty((n, depth, len(principal.directions)))
    mean_cosine = np.empty((n, depth))
    for reading in readings:
        states = reading.states.numpy().astype(np.float64)
        coordinates[reading.indices] = principal.project(states)
        unit = _unit(states)
        own = np.einsum("bld,bld->bl", unit, unit)
        mean_cosine[reading.indices] = (np.einsum("bld,ld->bl", unit, units) - own) / (n - 1)
    return Trajectories(coordinates, mean_cosine)


def _unit(states: npt.NDArray[Any]) -> Floats:
    wide = states.astype(np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return wide / np.where(length > 0, length, 1.0)


def stability(geometry: Geometry) -> list[dict[str, float]]:
    """Pearson's correlation, over the prompts, of each layer's values with and without a question mark: of the
    projection on the first direction, and of the mean pairwise cosine, which the paper contrasts it with."""
    assert geometry.with_mark is not None
    plain, marked = geometry.trajectories, geometry.with_mark
    return [
        {
            "layer": layer + 1,
            "projection": _pearson(plain.coordinates[:, layer, 0], marked.coordinates[:, layer, 0]),
            "mean_cosine": _pearson(plain.mean_cosine[:, layer], marked.mean_cosine[:, layer]),
        }
        for layer in range(plain.mean_cosine.shape[1])
    ]


def trajectory_stability(geometry: Geometry) -> float:
    """Pearson's correlation, over the layers, of the prompts' mean projection on the first direction with and without a
    question mark: whether the trajectory keeps its shape, whatever single prompts do."""
    assert geometry.with_mark is not None
    plain, marked = (t.coordinates[:, :, 0].mean(axis=0) for t in (geometry.trajectories, geometry.with_mark))
    return _pearson(plain, marked)


def _pearson(a: Floats, b: Floats) -> float:
    """NaN where either side does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")
