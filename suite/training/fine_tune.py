"""Fine-tuning (LoRA, or all weights): transformers' Trainer and peft, with a loss over the responses only.

What is added to them is speed at equal mathematics: the head runs on supervised positions alone, each optimiser step's
conversations are sorted by length before they are split into forward passes (the loss is a mean over the step's tokens,
so the split does not change it), and the passes run under bfloat16 autocast with float32 adapters, which peft would
otherwise feed with float32 copies of every activation.

Several processes (a torch.distributed group: ``suite.stages.training_ranks``) share each optimiser step's
conversations, by accelerate: DDP, or FSDP where the weights are to be sharded, too. Beyond rounding the result is one
process's.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from baselines.architecture import blocks, device_of
from baselines.losses import IGNORE, Batch, Supervised, supervised_forward
from baselines.records import Sample
from eval.batching import token_budget_batches
from eval.chat import ChatFormat
from eval.errors import CapacityError, KeelBenchError
from eval.flops import Shape
from eval.memory import Gradients, fitting_batches, out_of_memory
from suite.machine import kept_memory
from suite.plan import LoraRecipe, Recipe
from suite.training.checkpointing import Checkpoints, ResumableTrainer, WriteCheckpoints
from suite.training.data import (
    PADDING_ROW,
    StepShares,
    StepSortedSampler,
    collate_rows,
    padding_pass,
    supervised_rows,
    without_padding,
)

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
    recipe: Recipe,
    *,
    seed: int,
    work_dir: Path,
    auxiliary_loss: AuxiliaryLoss | None = None,
    hidden_states: bool = False,
    tokens_per_pass: int | None = None,
    on_step: Callable[[int, int], None] = lambda step, total: None,
    compute_dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    sharding: Literal["none", "full"] = "none",
    checkpoints: Checkpoints | None = None,
) -> TrainingLog:
    """Train ``model``'s trainable parameters in place.

    Args:
        model: a PEFT model (``attach_lora``), or one whose weights are all trained.
        work_dir: scratch folder for the Trainer.
        auxiliary_loss: added to the loss, computed on each forward pass (a regulariser's).
        hidden_states: whether the auxiliary loss needs them.
        tokens_per_pass: a forward pass with more tokens, padding included, is split (a longer conversation stands
            alone), which bounds memory and leaves the gradient as it is; None = never. A pass with an auxiliary loss
            stays whole, since that loss is a function of all its conversations.
        on_step: told the optimiser steps done and in all.
        compute_dtype: half precision of the passes' autocast; None = the frozen weights' own, where it is one.
        device: where this process computes; None = where the model is. Differs from it only where FSDP brings the
            model's shards there.
        sharding: "full" shards the weights, gradients and optimiser state over the processes (FSDP2).
        checkpoints: where the state is kept as the training goes on, and from where it goes on if it was stopped: on a
            CPU to the same adapter, bit for bit. Of one process only.

    Raises:
        CapacityError: a single conversation does not fit the memory, or a pass that must stay whole. (Of several
            processes, one that runs out of memory dies: the others could not follow it in splitting its passes.)
        KeelBenchError: no sample, a loss that is not finite, a step that the processes cannot share evenly (with an
            auxiliary loss: by whole passes), or checkpoints with several of them.
    """
    if not samples:
        raise KeelBenchError("nothing to fine-tune on: the selection is empty")
    chat = ChatFormat(tokenizer)
    conversations = [chat.conversation(s.prompt, s.response, max_length=recipe.max_length) for s in samples]
    rows = supervised_rows(conversations)
    on_cpu = (device or device_of(model)).type == "cpu"
    shares = StepShares.of(recipe.batch_size, recipe.accumulation, _processes())
    if shares.processes > 1 and checkpoints is not None:
        raise KeelBenchError("a training that can go on needs compute.training_processes=1")
    if auxiliary_loss is not None and shares.rows_a_pass != recipe.batch_size:
        raise KeelBenchError(
            "a regulariser reads whole passes: train.accumulation has to be a multiple of the processes"
        )
    steps = math.ceil(len(rows) / shares.step_size) * recipe.epochs
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        per_device_train_batch_size=shares.rows_a_pass,
        gradient_accumulation_steps=shares.passes,
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
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        fsdp=True if sharding == "full" else None,  # type: ignore[arg-type]
        fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": [type(blocks(model)[0]).__name__]}
        if sharding == "full"
        else None,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # a process trains on one GPU (or on the model's device map), never by DataParallel
    if sharding == "full" and on_cpu:
        from accelerate.utils import DistributedType

        # accelerate shards where this says so, and for several CPUs it does not; the rest works on gloo as it is.
        arguments.distributed_state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = _ResponseTrainer(
        model=model if shares.processes == 1 else _Supervision(model, hidden_states),
        args=arguments,
        train_dataset=rows if shares.processes == 1 else [*rows, PADDING_ROW],
        data_collator=collate_rows,
        callbacks=[_Progress(on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.auxiliary_loss, trainer.hidden_states = auxiliary_loss, hidden_states
    trainer.shares, trainer.n_rows = shares, len(rows)
    trainer.tokens_per_pass = tokens_per_pass if auxiliary_loss is None else None
    trainer.compute_dtype = compute_dtype or _half(model)
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
    with (
        kept_memory() if on_cpu else contextlib.nullcontext(),
        disable_input_dtype_casting(model, active=trainer.compute_dtype is not None),
    ):
        trainer.train(resume_from_checkpoint=resumed)
    if sharding == "full" and not any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise KeelBenchError("compute.training_sharding=full: accelerate left the weights whole on this machine")
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


def _processes() -> int:
    """Processes of the group that this one is in; 1 without a group."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _half(model: Any) -> torch.dtype | None:
    """The frozen weights' dtype where it is a half precision."""
    dtype = next((p.dtype for p in model.parameters() if not p.requires_grad), None)
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


class _Supervision(torch.nn.Module):
    """The model and its loss's forward pass as one module: what DDP and FSDP wrap, so that their hooks see the pass.
    Tensors in and out, which is where the hooks are put."""

    def __init__(self, model: Any, hidden_states: bool):
        super().__init__()
        self.model, self.hidden_states = model, hidden_states

    def forward(self, ids: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> tuple[Any, ...]:
        out = supervised_forward(self.model, Batch(ids, labels, lengths), hidden_states=self.hidden_states)
        return out.logits, out.targets, out.rows, out.hidden_states


class _ResponseTrainer(ResumableTrainer):
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


class _Progress(TrainerCallback):
    def __init__(self, on_step: Callable[[int, int], None]):
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step, state.max_steps)
