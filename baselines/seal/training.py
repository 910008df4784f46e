"""SEAL's two coupled optimisations: adapters that follow the selected loss, and a selector that follows the adapters.

A step takes a logical batch B of fine-tuning data and as large a batch S of safe data. With L_i the mean cross-entropy
of a sequence's response and p_i the selector's weight of sample i,

    model loss    = w * mean_S(L) + (1 - w) * mean_B(p * L)     p held fixed
    selector loss = mean_B(p * L)                               L held fixed

and both come from the same forward passes, before either is updated. The model loss is a sum over sequences whose
factors, w/|S| and (1-w) p_i/|B|, are known beforehand; so the logical batch is computed in length-sorted micro-batches
under a token budget whose gradients add up to it exactly, and sequences with the factor 0 (all fine-tuning data of a
first epoch with w = 1) are never differentiated: only the selector reads their losses.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from peft.tuners.tuners_utils import BaseTunerLayer

from baselines.architecture import device_of
from baselines.losses import collate, supervised_forward
from baselines.records import FloatArray
from baselines.seal.data import Encoded, epoch_batches
from baselines.seal.state import read_state, write_state
from eval.errors import KeelBenchError
from eval.memory import Gradients, fitting_batches

SELECTORS = ("softmax", "sigmoid")
BETAS = (0.9, 0.95)  # of both Adams; neither has weight decay
CPU_TOKENS = 1024  # of a micro-batch on a CPU, where larger ones leave the caches and pad more (bench_seal)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of the optimisation (``baselines.seal.method.Seal`` explains them)."""

    selector: str
    pairing: str
    upper_weight: float
    upper_weight_decay: float
    epochs: int
    batch_size: int
    learning_rate: float
    selector_learning_rate: float
    max_grad_norm: float
    seed: int


@dataclass
class Progress:
    """How far the optimisation is, and what it has to report."""

    visits: FloatArray  # times each sample was in a batch, [n]
    epoch: int = 0
    step: int = 0  # within the epoch
    tokens: int = 0  # that went through the model, padding left out
    curve: list[dict[str, float]] = field(default_factory=list)  # one point a step


def selector_weights(logits: torch.Tensor, selector: str) -> torch.Tensor:
    """p, [n]: ``n * softmax(logits)``, of mean 1, or ``2 * sigmoid(logits)``, each below 2; all 1 at the start."""
    return len(logits) * torch.softmax(logits, 0) if selector == "softmax" else 2 * torch.sigmoid(logits)


@contextlib.contextmanager
def fresh_adapters(
    model: Any, *, rank: int, alpha: int, target_modules: Sequence[str], seed: int
) -> Iterator[tuple[Any, dict[str, torch.nn.Parameter]]]:
    """``(PEFT model, its trainable parameters by name)``: float32 LoRA adapters on ``model``, gone again afterwards.

    The caller's model, its flags and its random state are as they were, also after an exception. It runs in evaluation
    mode: the published recipe has no dropout.

    Raises:
        KeelBenchError: ``model`` has adapters already, or none of the target modules.
    """
    if hasattr(model, "get_base_model") or any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        raise KeelBenchError("seal: the model already has adapters; merge or unload them first")
    was_training = model.training
    required = [(p, p.requires_grad) for p in model.parameters()]
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(target_modules), task_type="CAUSAL_LM"
    )
    wrapped = None
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                wrapped = get_peft_model(model, config)
            except ValueError as error:
                raise KeelBenchError(f"seal: target_modules={list(target_modules)}: {error}") from error
        wrapped.eval()
        trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
        with disable_input_dtype_casting(wrapped, active=half_precision(model) is not None):
            yield wrapped, trained
    finally:
        if wrapped is not None:
            wrapped.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config  # peft leaves it and takes the model for an adapted one ever after
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        model.train(was_training)


def half_precision(model: Any) -> torch.dtype | None:
    """The weights' dtype where it is a half precision."""
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


class Bilevel:
    """The optimisation of one selector on one model with adapters."""

    def __init__(
        self, model: Any, adapters: dict[str, torch.nn.Parameter], data: Encoded, safe: Encoded, recipe: Recipe
    ):
        self.model, self.adapters, self.data, self.safe, self.recipe = model, adapters, data, safe, recipe
        # In double precision: the first Adam steps give all samples nearly the same logit, which single precision ties.
        self.logits = torch.zeros(len(data), dtype=torch.float64, requires_grad=True)
        self.selector_optimizer = torch.optim.Adam([self.logits], lr=recipe.selector_learning_rate, betas=BETAS)
        self.optimizer = torch.optim.Adam(list(adapters.values()), lr=recipe.learning_rate, betas=BETAS)
        self.progress = Progress(np.zeros(len(data)))
        self._fits = sys.maxsize  # tokens of a micro-batch that the memory is known not to exceed

    def run(
        self,
        tokens_per_batch: int,
        *,
        checkpoint: Path | None = None,
        checkpoint_every: int = 1,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Go on from ``self.progress`` to the end of the last epoch.

        Args:
            checkpoint: file the state is written to, every ``checkpoint_every`` steps and after each epoch.
            on_step: told the samples visited so far, and in all.

        Raises:
            KeelBenchError: a loss or gradient that is not finite; the message names the step.
        """
        recipe, at = self.recipe, self.progress
        while at.epoch < recipe.epochs:
            batches = self.batches(at.epoch)
            total = recipe.epochs * sum(len(data) for data, _ in batches)
            while at.step < len(batches):
                self.step(*batches[at.step], tokens_per_batch)
                at.step += 1
                if checkpoint is not None and at.step % checkpoint_every == 0 and at.step < len(batches):
                    self.save(checkpoint)
                on_step(int(at.visits.sum()), total)
            at.epoch, at.step = at.epoch + 1, 0
            if checkpoint is not None:
                self.save(checkpoint)

    def batches(self, epoch: int) -> list[tuple[list[int], list[int]]]:
        recipe = self.recipe
        return epoch_batches(
            len(self.data),
            len(self.safe),
            batch_size=recipe.batch_size,
            pairing=recipe.pairing,
            seed=recipe.seed,
            epoch=epoch,
        )

    def visits(self) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
        """(token ids, labels) of every visit of all epochs, and of those that the adapters' gradient comes of."""
        read, differentiated = [], []
        for epoch in range(self.recipe.epochs):
            upper = self.recipe.upper_weight - self.recipe.upper_weight_decay * epoch
            for data, safe in self.batches(epoch):
                for encoded, indices, weight in ((self.data, data, 1 - upper), (self.safe, safe, upper)):
                    rows = [(encoded.ids[i], encoded.labels[i]) for i in indices]
                    read += rows
                    differentiated += rows if weight != 0 else []
        return read, differentiated

    def step(self, data: Sequence[int], safe: Sequence[int], tokens_per_batch: int) -> None:
        """One update of the selector and of the adapters."""
        recipe, at = self.recipe, self.progress
        upper = recipe.upper_weight - recipe.upper_weight_decay * at.epoch
        weights = selector_weights(self.logits, recipe.selector)[list(data)]

        rows = [(self.data.ids[i], self.data.labels[i]) for i in data]
        rows += [(self.safe.ids[i], self.safe.labels[i]) for i in safe]
        factors = torch.cat(
            [(1 - upper) * weights.detach() / len(data), torch.full((len(safe),), upper / len(safe)).double()]
        )
        losses = self._differentiated(rows, factors, tokens_per_batch)
        data_losses, safe_losses = losses[: len(data)], losses[len(data) :]

        selected = (weights * data_losses).mean()
        self.selector_optimizer.zero_grad()
        selected.backward()
        self.selector_optimizer.step()

        norm = torch.nn.utils.clip_grad_norm_(self.adapters.values(), recipe.max_grad_norm)
        if not math.isfinite(float(norm)):
            raise KeelBenchError(f"seal: the model's gradient is not finite at {self._where()}")
        self.optimizer.step()
        self.optimizer.zero_grad()

        at.visits[list(data)] += 1
        at.tokens += self.data.tokens(data) + self.safe.tokens(safe)
        at.curve.append(
            {
                "epoch": at.epoch,
                "upper_weight": upper,
                "safe_loss": float(safe_losses.mean()),
                "data_loss": float(data_losses.mean()),
                "selected_loss": float(selected.detach()),
                "grad_norm": float(norm),
            }
        )

    def _differentiated(
        self, rows: Sequence[tuple[Any, Any]], factors: torch.Tensor, tokens_per_batch: int
    ) -> torch.Tensor:
        """Each row's loss, float64 [rows], in nats; adds the gradient of ``sum(factors * losses)`` to the adapters'.

        Raises:
            KeelBenchError: a loss that is not finite.
        """
        losses = torch.empty(len(rows), dtype=torch.float64)
        device = device_of(self.model)
        half = half_precision(self.model)
        if device.type == "cpu":
            tokens_per_batch = min(tokens_per_batch, CPU_TOKENS)
        before = Gradients(self.adapters.values())
        for differentiate in (False, True):
            chosen = [i for i in range(len(rows)) if bool(factors[i] != 0) == differentiate]

            def work(group: list[int], chosen: list[int] = chosen, differentiate: bool = differentiate) -> torch.Tensor:
                before.note()
                picked = [chosen[i] for i in group]
                batch = collate([rows[i] for i in picked]).to(device)
                # One autocast context a pass: it keeps half-precision copies of the adapters until it ends, and those
                # must outlive neither an update nor a pass without gradients.
                autocast = torch.autocast(device.type, half) if half else contextlib.nullcontext()
                with torch.set_grad_enabled(differentiate), autocast:
                    out = supervised_forward(self.model, batch)
                with torch.set_grad_enabled(differentiate):
                    found = out.sequence_losses()
                if not bool(torch.isfinite(found).all()):
                    raise KeelBenchError(
                        f"seal: a loss is not finite at {self._where()}; lower the learning rate "
                        f"({self.recipe.learning_rate}) or use a wider dtype"
                    )
                if differentiate:
                    (found * factors[picked].to(found)).sum().backward()
                return found.detach().double().cpu()

            lengths = [len(rows[i][0]) for i in chosen]
            budget = min(tokens_per_batch, self._fits)
            groups = fitting_batches(lengths, budget, work, what="seal", undo=before.restore, on_shrink=self._shrink)
            for group, found in groups:
                losses[[chosen[i] for i in group]] = found
        return losses

    def _shrink(self, budget: int) -> None:
        self._fits = budget

    def _where(self) -> str:
        return f"step {self.progress.step + 1} of epoch {self.progress.epoch + 1}"

    def save(self, path: Path) -> None:
        """Write everything the next step depends on: logits, adapters, both Adams, place and reports."""
        at = self.progress
        tensors = {"logits": self.logits, "visits": torch.from_numpy(at.visits)}
        tensors |= {f"adapter.{name}": parameter for name, parameter in self.adapters.items()}
        for prefix, optimizer in self._optimizers():
            for index, entries in optimizer.state_dict()["state"].items():
                tensors |= {f"{prefix}.{index}.{key}": value for key, value in entries.items()}
        write_state(
            path,
            tensors,
            {"kind": "checkpoint", "epoch": at.epoch, "step": at.step, "tokens": at.tokens, "curve": at.curve},
        )

    def restore(self, path: Path) -> None:
        """Go back to what ``save`` wrote.

        Raises:
            DataError: not a checkpoint of SEAL.
        """
        tensors, header = read_state(path)
        with torch.no_grad():
            self.logits.copy_(tensors["logits"])
            for name, parameter in self.adapters.items():
                parameter.copy_(tensors[f"adapter.{name}"])
        for prefix, optimizer in self._optimizers():
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"{prefix}."):
                    _, index, key = name.split(".")
                    state.setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.progress = Progress(
            tensors["visits"].numpy().copy(), header["epoch"], header["step"], header["tokens"], header["curve"]
        )

    def _optimizers(self) -> tuple[tuple[str, torch.optim.Optimizer], ...]:
        return ("selector_adam", self.selector_optimizer), ("model_adam", self.optimizer)
