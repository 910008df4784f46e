"""VCL: the variance concentration loss (Residual Stream Analysis of Overfitting, NeurIPS 2025, arXiv 2603.13318)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from baselines.distributed import sum_over_ranks
from baselines.losses import IGNORE, Batch, Supervised
from baselines.regularizer import Regularizer, register_regularizer
from eval.errors import KeelBenchError

log = logging.getLogger(__name__)

CHOICES = {
    "objective": ("penalize", "concentrate"),
    "tokens": ("last", "response", "all"),
    "center": ("batch", "layer"),
}


def variance_concentration(residuals: torch.Tensor, k: int) -> torch.Tensor:
    """The share of the squared singular values of ``residuals`` that the ``k`` largest hold: a scalar in [0, 1].

    With U the top-k left singular vectors held fixed, ``|U'R|^2 / |R|^2`` has the value and the gradient of
    ``sum_{j<=k} s_j^2 / sum_j s_j^2``: the numerator's gradient is ``2 sum_{j<=k} s_j u_j v_j' = 2 U U'R`` either way,
    as the singular vectors' own movement is of second order. So nothing is differentiated through a decomposition,
    whose backward pass divides by differences of singular values; and U comes from the smaller Gram matrix (or V, for
    more rows than dimensions, by the same argument).

    Args:
        residuals: centred rows, float [rows, dimensions], not all zero.
        k: directions; with ``k >= min(rows, dimensions)`` the share is 1.
    """
    rows, dimensions = residuals.shape
    wide = rows <= dimensions
    with torch.no_grad():
        fixed = residuals.detach().double()
        gram = fixed @ fixed.T if wide else fixed.T @ fixed
        top = torch.linalg.eigh(gram).eigenvectors[:, -k:].to(residuals)  # eigenvalues ascend
    kept = top.T @ residuals if wide else residuals @ top
    return kept.square().sum() / residuals.square().sum()


@register_regularizer("vcl")
@dataclass(frozen=True, kw_only=True)
class Vcl(Regularizer):
    """Moves the share of the residual stream's variance that lies in its first ``k`` directions.

    R has one row for each chosen token of each conversation of a forward pass in each layer of the window, [tokens x
    layers, hidden], in float32: layer by layer, and conversation by conversation within a layer. Layer l of L is the
    residual stream behind block l (transformers' ``hidden_states[l]``) and has depth l/L, the embeddings have depth 0;
    the window takes every l with ``window[0] <= l/L <= window[1]``. Depth 1 is refused, since ``hidden_states[L]`` lies
    behind the final norm. R is centred, and with its singular values s_j

        ratio = sum_{j<=k} s_j^2 / sum_j s_j^2,    loss = + weight * ratio or - weight * ratio

    Options:
        objective: "penalize" (default, +: the paper's abstract, and its finding that overfitting to repetitive safety
            data shows in concentrated residuals) or "concentrate" (-: its section 5). The paper contradicts itself;
            both are to be compared.
        k, weight, window: 3, 50 and (0.3, 0.5), the best of the published sweeps. The ratio is at most 1, so a weight
            of 50 dwarfs the cross-entropy; it is what was published.
        tokens: "last" (default: one row a conversation and layer, the paper's R in R^{B x d}; the position that
            predicts the last supervised token, which is the last one the loss can see), "response" (every position that
            predicts a supervised token) or "all" (every token but padding; long sequences then weigh more, and the
            decomposition is of a [hidden, hidden] matrix).
        center: "batch" (default: the mean over all rows, so that the growth of the stream from layer to layer counts as
            variance) or "layer" (each layer's own mean).

    A pass whose rows, less the means subtracted, are no more than k has a ratio of 1 whatever the model does (with
    ``center="batch"``: fewer than k+2 rows), and identical rows have none: neither carries a signal, and their loss is
    0. The first is logged, all are counted in ``report()``, beside the first and last ratio (of several processes:
    those of the first one's passes).
    """

    name: ClassVar[str]

    objective: str = "penalize"
    k: int = 3
    weight: float = 50.0
    window: tuple[float, float] = (0.3, 0.5)
    tokens: str = "last"
    center: str = "batch"

    def __post_init__(self) -> None:
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                raise KeelBenchError(f"vcl: {option}={getattr(self, option)!r}; known are {', '.join(choices)}")
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise KeelBenchError(f"vcl: k={self.k!r}; a whole number from 1")
        if not isinstance(self.weight, int | float) or not self.weight >= 0:
            raise KeelBenchError(f"vcl: weight={self.weight!r}; a number from 0 (objective has the sign)")
        if len(self.window) != 2 or not 0 <= self.window[0] <= self.window[1] < 1:
            raise KeelBenchError(f"vcl: window={self.window!r}; two depths, 0 <= first <= second < 1")
        object.__setattr__(self, "window", tuple(self.window))
        object.__setattr__(self, "_seen", _Seen())

    def auxiliary_loss(self, model: Any, batch: Batch, out: Supervised) -> torch.Tensor:
        """
        Raises:
            KeelBenchError: no hidden states, or no layer of the model within the window.
        """
        if out.hidden_states is None:
            raise KeelBenchError("vcl reads hidden states; run supervised_forward with hidden_states=True")
        seen: _Seen = self._seen  # type: ignore[attr-defined]
        seen.batches += 1
        chosen = [out.hidden_states[layer] for layer in self.layers(len(out.hidden_states) - 1)]
        mask = self.positions(batch)
        # Mixed-precision contexts would put the products below back into half precision.
        with torch.autocast(chosen[0].device.type, enabled=False):
            picked = [states[mask.to(states.device)].float().to(out.logits.device) for states in chosen]
            residuals = torch.stack(picked)
            residuals = residuals - residuals.mean((0, 1) if self.center == "batch" else 1, keepdim=True)
            means = 1 if self.center == "batch" else len(chosen)
            rows = residuals.flatten(0, 1)
            if len(rows) - means <= self.k or not bool(rows.detach().any()):
                seen.without_signal += 1
                if seen.without_signal == 1:
                    log.warning(
                        "vcl: a batch of %d conversations gives %d rows, too few for k=%d (or all alike); "
                        "such batches add nothing to the loss",
                        len(batch.ids), len(rows), self.k,
                    )  # fmt: skip
                return out.logits.new_zeros(())
            ratio = variance_concentration(rows, self.k)
        seen.ratio(ratio.detach())
        return self.weight * ratio if self.objective == "penalize" else -self.weight * ratio

    def layers(self, depth: int) -> list[int]:
        """The window's layers of a model of ``depth`` blocks, as indices of its hidden states.

        Raises:
            KeelBenchError: there is none.
        """
        found = [layer for layer in range(depth) if self.window[0] <= layer / depth <= self.window[1]]
        if not found:
            raise KeelBenchError(f"vcl: window={self.window!r} holds no layer of a model of {depth} blocks")
        return found

    def positions(self, batch: Batch) -> torch.Tensor:
        """Which tokens give rows, bool [batch, time]."""
        time = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        if self.tokens == "all":
            return time < batch.lengths.to(time.device)[:, None]
        supervised = batch.labels != IGNORE
        if self.tokens == "response":
            return supervised
        last = torch.where(supervised, time, -1).amax(1, keepdim=True)
        return time == last

    def report(self) -> dict[str, Any]:
        seen: _Seen = self._seen  # type: ignore[attr-defined]
        batches, without_signal = sum_over_ranks([seen.batches, seen.without_signal])
        return {
            "batches": batches,
            "batches_without_signal": without_signal,
            "first_ratio": None if seen.first is None else float(seen.first),
            "last_ratio": None if seen.last is None else float(seen.last),
        }

    def go_on_from(self, report: Mapping[str, Any]) -> None:
        seen: _Seen = self._seen  # type: ignore[attr-defined]
        seen.batches, seen.without_signal = report["batches"], report["batches_without_signal"]
        first, last = report["first_ratio"], report["last_ratio"]
        seen.first = None if first is None else torch.tensor(first)
        seen.last = None if last is None else torch.tensor(last)


class _Seen:
    """What went by; tensors stay where they are, so that counting does not wait for an accelerator."""

    def __init__(self) -> None:
        self.batches = 0
        self.without_signal = 0
        self.first: torch.Tensor | None = None
        self.last: torch.Tensor | None = None

    def ratio(self, value: torch.Tensor) -> None:
        self.first = value if self.first is None else self.first
        self.last = value
