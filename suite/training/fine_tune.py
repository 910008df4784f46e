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
from transformers import PrinterCallback, TrainingArguments, set_seed

from baselines.architecture import blocks, device_of
from baselines.losses import IGNORE
from baselines.records import Sample
from eval.chat import ChatFormat
from eval.errors import KeelBenchError
from eval.flops import Shape
from suite.machine import kept_memory
from suite.plan import LoraRecipe, Recipe
from suite.training.checkpointing import Checkpoints, WriteCheckpoints
from suite.training.data import (
    PADDING_ROW,
    StepShares,
    collate_rows,
    supervised_rows,
)
from suite.training.trainer import AuxiliaryLoss, Progress, ResponseTrainer, WholePass

log = logging.getLogger(__name__)


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
    arguments = _arguments(recipe, shares, steps, model, work_dir, seed=seed, on_cpu=on_cpu, sharding=sharding)
    trainer = ResponseTrainer(
        model=model if shares.processes == 1 else WholePass(model, hidden_states),
        args=arguments,
        train_dataset=rows if shares.processes == 1 else [*rows, PADDING_ROW],
        data_collator=collate_rows,
        callbacks=[Progress(on_step)],
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


def _arguments(
    recipe: Recipe,
    shares: StepShares,
    steps: float,
    model: Any,
    work_dir: Path,
    *,
    seed: int,
    on_cpu: bool,
    sharding: str,
) -> TrainingArguments:
    """The recipe in the Trainer's terms, for one process of those that share the steps."""
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
    return arguments


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
