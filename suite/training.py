"""LoRA fine-tuning: transformers' Trainer and peft, with a loss over the responses only.

What is added to them is speed at equal mathematics: the head runs on supervised positions alone, each optimiser step's
conversations are sorted by length before they are split into forward passes (the loss is a mean over the step's tokens,
so the split does not change it), and the passes run under bfloat16 autocast with float32 adapters, which peft would
otherwise feed with float32 copies of every activation.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from baselines.architecture import device_of
from baselines.losses import IGNORE, Batch, Supervised, collate, supervised_forward, supervised_labels
from baselines.records import Sample
from eval.chat import ChatFormat
from eval.errors import CapacityError, KeelBenchError
from eval.flops import Shape
from eval.memory import Gradients, fitting_batches, out_of_memory
from suite.checkpointing import Checkpoints, ResumableTrainer, WriteCheckpoints
from suite.machine import kept_memory
from suite.plan import LoraRecipe

log = logging.getLogger(__name__)

AuxiliaryLoss = Callable[[Any, Batch, Supervised], torch.Tensor]


@dataclass(frozen=True)
class TrainingLog:
    """What fine-tuning reports."""

    curve: list[dict[str, float]]  # step, epoch, loss (nats a token), learning_rate, grad_norm
    tokens: int  # tokens that went through the model, padding left out
    truncated: int  # conversations above the recipe's max_length
    flops: float  # by formula (eval.flops), a regulariser's own arithmetic left out


def attach_lora(model: Any, recipe: LoraRecipe, seed: int) -> Any:
    """``model`` with fresh LoRA adapters, initialised by ``seed``, kept in float32.

    Raises:
        KeelBenchError: the model has none of the recipe's target modules.
    """
    set_seed(seed)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise KeelBenchError(f"LoRA: {error}") from error


def fine_tune(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    recipe: LoraRecipe,
    *,
    seed: int,
    work_dir: Path,
    auxiliary_loss: AuxiliaryLoss | None = None,
    hidden_states: bool = False,
    tokens_per_pass: int | None = None,
    on_step: Callable[[int, int], None] = lambda step, total: None,
    checkpoints: Checkpoints | None = None,
) -> TrainingLog:
    """Train ``model``'s adapters in place.

    Args:
        model: a PEFT model (``attach_lora``).
        work_dir: scratch folder for the Trainer.
        auxiliary_loss: added to the loss, computed on each forward pass (a regulariser's).
        hidden_states: whether the auxiliary loss needs them.
        tokens_per_pass: a forward pass with more tokens, padding included, is split (a longer conversation stands
            alone), which bounds memory and leaves the gradient as it is; None = never. A pass with an auxiliary loss
            stays whole, since that loss is a function of all its conversations.
        on_step: told the optimiser steps done and in all.
        checkpoints: where the state is kept as the training goes on, and from where it goes on if it was stopped: on a
            CPU to the same adapter, bit for bit.

    Raises:
        CapacityError: a single conversation does not fit the memory, or a pass that must stay whole.
        KeelBenchError: no sample, a loss that is not finite, or several processes (the loss calls the decoder
            directly, which distributed wrappers would not see).
    """
    if not samples:
        raise KeelBenchError("nothing to fine-tune on: the selection is empty")
    chat = ChatFormat(tokenizer)
    conversations = [chat.conversation(s.prompt, s.response, max_length=recipe.max_length) for s in samples]
    rows = [
        dict(zip(("input_ids", "labels"), supervised_labels(c, keep_end=False), strict=True)) for c in conversations
    ]
    steps = math.ceil(len(rows) / (recipe.batch_size * recipe.accumulation)) * recipe.epochs
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=math.ceil(steps * recipe.warmup_ratio),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        seed=seed,
        data_seed=seed,
        use_cpu=device_of(model).type == "cpu",
    )
    if arguments.world_size > 1 or arguments.n_gpu > 1:
        raise KeelBenchError("fine-tuning runs on one device; hide the others (CUDA_VISIBLE_DEVICES)")
    trainer = _ResponseTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=_collate_rows,
        callbacks=[_Progress(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.auxiliary_loss, trainer.hidden_states = auxiliary_loss, hidden_states
    trainer.tokens_per_pass = tokens_per_pass if auxiliary_loss is None else None
    resumed = None
    if checkpoints is not None:
        callback = WriteCheckpoints(checkpoints)
        callback.trainer = trainer
        trainer.add_callback(callback)
        trainer.goes_on_from = checkpoints.latest()
        if trainer.goes_on_from is not None:
            log.info("fine-tuning goes on after step %d of %d", trainer.goes_on_from.step, steps)
            checkpoints.restore(trainer.goes_on_from.header["report"])
            resumed = trainer.goes_on_from.place(work_dir / "resumed")
    on_cpu = device_of(model).type == "cpu"
    with (
        kept_memory() if on_cpu else contextlib.nullcontext(),
        disable_input_dtype_casting(model, active=_half(model) is not None),
    ):
        trainer.train(resume_from_checkpoint=resumed)
    curve = [
        {k: float(v) for k, v in entry.items() if k in ("step", "epoch", "loss", "learning_rate", "grad_norm")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    if any(not math.isfinite(point["loss"]) for point in curve):
        raise KeelBenchError(f"fine-tuning diverged: the loss is not finite (learning rate {recipe.learning_rate})")
    tokens = int(sum(len(r["input_ids"]) for r in rows) * recipe.epochs)
    flops = recipe.epochs * _epoch_flops(model, rows)
    return TrainingLog(curve, tokens, sum(c.truncated for c in conversations), flops)


def _epoch_flops(model: Any, rows: Sequence[dict[str, list[int]]]) -> float:
    """Of one pass forward and backward over all rows, for what is trained in the blocks."""
    shape, lengths = Shape.of(model), [len(row["input_ids"]) for row in rows]
    positions = sum(label != IGNORE for row in rows for label in row["labels"])
    return shape.forward(lengths, positions) + shape.backward(lengths, positions)


def _half(model: Any) -> torch.dtype | None:
    """The base weights' dtype where it is a half precision."""
    dtype = next(p.dtype for p in model.parameters() if not p.requires_grad)
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


class _ResponseTrainer(ResumableTrainer):
    auxiliary_loss: AuxiliaryLoss | None = None
    hidden_states = False
    tokens_per_pass: int | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # compute_loss divides by the tokens of the whole accumulated step; the Trainer must count and not divide again.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward pass and its gradient, in as many parts as the token budget and the memory ask for; the losses
        add up."""
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
            width = int(inputs["lengths"][part].max())
            rows = {k: v[part] if k == "lengths" else v[part, :width] for k, v in inputs.items()}
            return step(model, rows, num_items_in_batch)

        budget = self.tokens_per_pass or len(lengths) * max(lengths)
        parts = fitting_batches(
            lengths, budget, part_of_pass, what="fine-tuning", undo=before.restore, on_shrink=self._shrink
        )
        return torch.stack([loss for _, loss in parts]).sum()

    def _shrink(self, budget: int) -> None:
        self.tokens_per_pass = budget

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        batch = Batch(inputs["input_ids"], inputs["labels"], inputs["lengths"])
        dtype = _half(model)
        # Under autocast base layers and float32 adapters both compute in the base's dtype. One context a pass: autocast
        # keeps its copies of the adapters until it ends, and must not outlive an optimiser step.
        with torch.autocast(device_of(model).type, dtype) if dtype else contextlib.nullcontext():
            out = supervised_forward(model, batch, hidden_states=self.hidden_states)
        loss = out.token_losses().sum() / num_items_in_batch
        if self.auxiliary_loss is not None:
            # A regulariser has one value a forward pass; the step's is their mean.
            loss = loss + self.auxiliary_loss(model, batch, out) / self.current_gradient_accumulation_steps
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        lengths = [len(row["input_ids"]) for row in self.train_dataset]
        step_size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        return StepSortedSampler(lengths, step_size, self.args.seed)


class StepSortedSampler(torch.utils.data.Sampler[int]):
    """A random order each epoch, sorted by length within each optimiser step's samples."""

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int):
        self.lengths, self.step_size, self.seed, self.epoch = lengths, step_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.step_size):
            yield from sorted(order[start : start + self.step_size], key=lambda i: (-self.lengths[i], i))


class _Progress(TrainerCallback):
    def __init__(self, on_step: Callable[[int, int], None]):
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step, state.max_steps)


def _collate_rows(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    batch = collate([(row["input_ids"], row["labels"]) for row in rows])
    # `shift_labels` is what the Trainer counts a step's tokens by when labels are shifted already.
    return {"input_ids": batch.ids, "labels": batch.labels, "shift_labels": batch.labels, "lengths": batch.lengths}
