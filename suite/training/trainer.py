"""transformers' Trainer as fine-tuning needs it: the loss, how a pass is cut and shared, progress."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from baselines.losses import Batch, Supervised, supervised_forward
from eval.batching import token_budget_batches
from eval.errors import CapacityError
from eval.memory import Gradients, fitting_batches, out_of_memory
from suite.training.checkpointing import ResumableTrainer
from suite.training.data import StepShares, StepSortedSampler, padding_pass, without_padding

AuxiliaryLoss = Callable[[Any, Batch, Supervised], torch.Tensor]


class WholePass(torch.nn.Module):
    """The model and its loss's forward pass as one module: what DDP and FSDP wrap, so that their hooks see the pass.
    Tensors in and out, which is where the hooks are put."""

    def __init__(self, model: Any, hidden_states: bool):
        super().__init__()
        self.model, self.hidden_states = model, hidden_states

    def forward(self, ids: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> tuple[Any, ...]:
        out = supervised_forward(self.model, Batch(ids, labels, lengths), hidden_states=self.hidden_states)
        return out.logits, out.targets, out.rows, out.hidden_states


class ResponseTrainer(ResumableTrainer):
    """The Trainer with the loss over the responses, passes cut to fit, and each step's rows shared by the processes."""

    auxiliary_loss: AuxiliaryLoss | None = None
    hidden_states = False
    tokens_per_pass: int | None = None
    compute_dtype: torch.dtype | None = None
    shares: StepShares
    n_rows: int

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # compute_loss divides by the tokens of the whole accumulated step; the Trainer must count and not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward pass and its gradient, in as many parts as the token budget and the memory ask for; the losses
        add up."""
        if self.shares.processes > 1:
            return self._shared_step(model, inputs, num_items_in_batch)
        step = super().training_step
        lengths = inputs["lengths"].tolist()
        if self.auxiliary_loss is not None:
            try:
                return step(model, inputs, num_items_in_batch)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            raise CapacityError(
                f"fine-tuning: out of memory with {len(lengths)} conversations of {max(lengths)} tokens at most. "
                "The regulariser reads a forward pass as a whole, so it cannot be split: lower train.batch_size and "
                "raise train.accumulation, or lower train.max_length"
            )
        before = Gradients(p for p in model.parameters() if p.requires_grad)

        def part_of_pass(part: list[int]) -> torch.Tensor:
            before.note()
            return step(model, _rows(inputs, part), num_items_in_batch)

        budget = self.tokens_per_pass or len(lengths) * max(lengths)
        parts = fitting_batches(
            lengths, budget, part_of_pass, what="fine-tuning", undo=before.restore, on_shrink=self._shrink
        )
        return torch.stack([loss for _, loss in parts]).sum()

    def _shrink(self, budget: int) -> None:
        self.tokens_per_pass = budget

    def _shared_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        """This process's share of a pass: as many parts as the process that needs most of them has."""
        step = super().training_step
        if self.tokens_per_pass is None:
            return step(model, inputs, num_items_in_batch)
        parts = token_budget_batches(inputs["lengths"].tolist(), self.tokens_per_pass)
        padding = self._most(len(parts)) - len(parts)  # before the passes, whose collectives must meet each other's
        losses = [step(model, _rows(inputs, part), num_items_in_batch) for part in parts]
        losses += [step(model, padding_pass(), num_items_in_batch) for _ in range(padding)]
        return torch.stack(losses).sum()

    def _most(self, parts: int) -> int:
        """The most parts any process splits this pass into: each pass meets the others' in a collective."""
        if self.shares.processes == 1:
            return parts
        return int(self.accelerator.gather(torch.tensor([parts], device=self.args.device)).max())

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        batch = Batch(inputs["input_ids"], inputs["labels"], inputs["lengths"])
        dtype = self.compute_dtype
        # Under autocast base layers and float32 adapters both compute in the base's dtype. One context a pass: autocast
        # keeps its copies of the adapters until it ends, and must not outlive an optimiser step.
        with torch.autocast(batch.ids.device.type, dtype) if dtype else contextlib.nullcontext():
            if self.shares.processes > 1:
                logits, targets, supervised, states = model(batch.ids, batch.labels, batch.lengths)
                out = Supervised(logits, targets, supervised, len(batch.ids), states)
            else:
                out = supervised_forward(model, batch, hidden_states=self.hidden_states)
        loss = out.token_losses().sum().to(batch.ids.device) / num_items_in_batch
        if self.auxiliary_loss is not None and len(out.targets):
            # A regulariser has one value a forward pass; the step's is their mean.
            plain = model if self.shares.processes == 1 else self.model.model
            auxiliary = self.auxiliary_loss(plain, *without_padding(batch, out))
            loss = loss + auxiliary.to(loss.device) / self._passes_of_step()
        return loss * self.shares.processes  # gradients and logged losses are averaged over the processes

    def _passes_of_step(self) -> int:
        """Passes of the current optimiser step that have rows, of all processes."""
        if self.shares.processes == 1:
            return int(self.current_gradient_accumulation_steps)
        steps = math.ceil(self.n_rows / self.shares.step_size)
        left = self.n_rows - self.state.global_step % steps * self.shares.step_size
        return math.ceil(min(left, self.shares.step_size) / self.shares.rows_a_pass)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        lengths = [len(row["input_ids"]) for row in self.train_dataset][: self.n_rows]
        # Filled up where there are several: each process takes every n-th pass of an epoch.
        multiple = 1 if self.shares.processes == 1 else self.shares.rows_a_pass * self.shares.processes
        return StepSortedSampler(lengths, self.shares.step_size, self.args.seed, multiple)


def _rows(inputs: Any, part: list[int]) -> dict[str, torch.Tensor]:
    """Some rows of a pass, as wide as the longest of them."""
    width = max(1, int(inputs["lengths"][part].max()))
    return {k: v[part] if k == "lengths" else v[part, :width] for k, v in inputs.items()}


class Progress(TrainerCallback):
    """Tells the optimiser steps done and in all."""

    def __init__(self, on_step: Callable[[int, int], None]):
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step, state.max_steps)
