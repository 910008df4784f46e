"""One fine-tuning, in this process or spread over several of this machine, one GPU each.

With several, ``suite.stages.ranks`` runs this module once a rank. accelerate shares the gradient (DDP), or shards
weights, gradients and optimiser state, too (FSDP2, ``compute.training_sharding=full``); rank 0 writes what was trained.
Several processes keep no checkpoints and do not shrink their passes when memory runs out: a stopped one begins again.
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from baselines.regularizer import Regularizer, build_regularizer
from eval.errors import KeelBenchError
from eval.flops import Work
from suite.conditions import devices
from suite.plan import ComputeSpec, LoraRecipe, Recipe, recipe_of
from suite.progress import progress
from suite.stages.models import load
from suite.stages.ranks import RankJob, process_count, rank_main, read_job, run_over_processes
from suite.storage.unfinished import Unfinished


@dataclass(frozen=True, kw_only=True)
class Job(RankJob):
    """With where rank 0 writes."""

    recipe: Recipe
    regularizer: Regularizer
    out: Path  # what was trained, and training.json
    kept: Path  # step-<n>: what it was after each ``every`` steps and at the end
    every: int | None

    def values(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "regularizer": {"name": self.regularizer.name, "options": asdict(self.regularizer)},
            "out": str(self.out),
            "kept": str(self.kept),
            "every": self.every,
        }

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """What ``write_job`` wrote."""
        values = read_job(folder)
        named = values["regularizer"]
        return cls(
            **values
            | {
                "recipe": recipe_of(values["recipe"]),
                "regularizer": build_regularizer(named["name"], named["options"]),
                "out": Path(values["out"]),
                "kept": Path(values["kept"]),
            }
        )


def check_training(recipe: Recipe, compute: ComputeSpec, regularizer: Regularizer) -> None:
    """
    Raises:
        KeelBenchError: settings that cannot go together, or a library that is not installed.
    """
    from suite.training.data import StepShares

    count = process_count(compute.training_processes, "compute.training_processes")
    shares = StepShares.of(recipe.batch_size, recipe.accumulation, count)
    if regularizer.name != "none" and shares.rows_a_pass != recipe.batch_size:
        raise KeelBenchError(
            f"regularizer={regularizer.name} reads whole passes of train.batch_size={recipe.batch_size}: "
            f"train.accumulation={recipe.accumulation} has to be a multiple of compute.training_processes={count}"
        )
    if compute.training_sharding == "full" and count == 1:
        raise KeelBenchError("compute.training_sharding=full needs compute.training_processes above 1")
    if compute.device_map is not None and count > 1:
        raise KeelBenchError("compute.device_map spreads one process's model; compute.training_processes=1")
    if quantised(recipe):
        if importlib.util.find_spec("bitsandbytes") is None:
            raise KeelBenchError("train.quantization=nf4 needs bitsandbytes: pip install 'keelbench[qlora]'")
        if compute.training_sharding == "full":
            raise KeelBenchError("train.quantization=nf4 and compute.training_sharding=full: 4-bit weights stay whole")


def quantised(recipe: Recipe) -> bool:
    return isinstance(recipe, LoraRecipe) and recipe.quantization != "none"


def train_over_processes(job: Job, count: int) -> Work:
    """``job`` by ``count`` processes, and what it came to.

    Raises:
        KeelBenchError: what a rank raised; or that one died, with the end of its output.
    """
    done = run_over_processes(__name__, job, read_work, count, what="fine-tuning: a training")
    return replace(done, gpus=count if done.gpus else 0)


def write_work(folder: Path, done: Work) -> None:
    (folder / "work.json").write_text(json.dumps(asdict(done)))


def read_work(folder: Path) -> Work:
    """What ``write_work`` wrote."""
    return Work(**json.loads((folder / "work.json").read_text()))


def train(
    job: Job,
    base: Any,
    tokenizer: Any,
    *,
    device: Any = None,
    main: bool = True,
    unfinished: Unfinished | None = None,
) -> Work:
    """Train on ``base``, which is changed, and write the result; what it came to.

    Args:
        base: the model without adapters; in float32 where all of its weights are trained.
        device: see ``suite.training.fine_tune.fine_tune``.
        main: whether this process writes.
        unfinished: where checkpoints are kept, beside ``job.kept``, and from where a stopped training goes on.
    """
    import torch

    from suite.training.checkpointing import Checkpoints
    from suite.training.fine_tune import attach_lora, fine_tune

    recipe = job.recipe
    if job.compute.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if isinstance(recipe, LoraRecipe):
        model = attach_lora(base, recipe, job.seed)
        # Which base it belongs to, without the path of somebody's cache.
        model.peft_config["default"].base_model_name_or_path = job.spec.source
    else:
        model = base.requires_grad_(True)
    dtype = getattr(torch, job.spec.dtype)
    checkpoints = None
    if unfinished is not None:
        checkpoints = Checkpoints(
            unfinished,
            seconds=job.compute.checkpoint_seconds,
            beside=job.kept if job.every is not None else None,
            report=job.regularizer.report,
            restore=job.regularizer.go_on_from,
        )

    with progress("fine-tuning", None) as advance, tempfile.TemporaryDirectory() as scratch:

        def on_step(step: int, total: int) -> None:
            advance.to(step, total)
            if job.every is not None and (step % job.every == 0 or step == total):
                _save(model, job, tokenizer, job.kept / f"step-{step}", main)

        log = fine_tune(
            model,
            tokenizer,
            job.samples,
            recipe,
            seed=job.seed,
            work_dir=Path(scratch),
            auxiliary_loss=None if job.regularizer.name == "none" else job.regularizer.auxiliary_loss,
            hidden_states=job.regularizer.hidden_states,
            tokens_per_pass=job.compute.training_tokens_per_pass,
            on_step=on_step,
            compute_dtype=None if dtype == torch.float32 else dtype,
            device=device,
            sharding=job.compute.training_sharding,
            checkpoints=checkpoints,
        )
    _save(model, job, tokenizer, job.out, main)
    report = {"curve": log.curve, "truncated": log.truncated, "regularizer": job.regularizer.report()}
    if main:
        (job.out / "training.json").write_text(json.dumps(report, indent=1))
    return Work(log.tokens, log.flops, devices(job.compute.device)[1])


def load_base(job: Job) -> tuple[Any, Any]:
    """The model that ``train`` takes: in 4 bits for QLoRA; in float32 for training all weights, whose small updates
    bfloat16 would swallow."""
    if quantised(job.recipe):
        return load(job.weights, job.spec, job.compute, quantization="nf4")
    spec = job.spec if isinstance(job.recipe, LoraRecipe) else replace(job.spec, dtype="float32")
    return load(job.weights, spec, job.compute)


def _save(model: Any, job: Job, tokenizer: Any, folder: Path, main: bool) -> None:
    """An adapter, or a whole model in its own dtype with its tokenizer; every process helps to gather shards."""
    import torch

    state: dict[str, Any] | None = None
    if isinstance(job.recipe, LoraRecipe):
        if job.compute.training_sharding == "full":
            state = {name: _whole(p) for name, p in model.named_parameters() if p.requires_grad}
        if main:
            model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=state)
        return
    dtype = getattr(torch, job.spec.dtype)
    state, seen = {}, set[int]()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:  # an embedding that is the head, too, is kept once
            whole = _whole(value).to(dtype)
            if main:  # the others help to gather, and need no copy
                state[name] = whole
        seen.add(id(value))
    if main:
        trained_in, model.config.dtype = model.config.dtype, dtype
        model.save_pretrained(folder, state_dict=state)
        model.config.dtype = trained_in
        tokenizer.save_pretrained(folder)


def _whole(value: Any) -> Any:
    """A tensor on the CPU out of its shards, if it has any."""
    value = value.detach()
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).cpu()


def _rank(folder: Path, state: Any) -> Callable[[Path], None]:
    job = Job.read(folder)
    # FSDP takes its shards from the CPU, so that no GPU ever holds the whole model.
    sharded = job.compute.training_sharding == "full"
    placed = replace(job.compute, device="cpu" if sharded else str(state.device))
    base, tokenizer = load_base(replace(job, compute=placed))
    done = train(job, base, tokenizer, device=state.device, main=state.is_main_process)
    return partial(write_work, done=done)


if __name__ == "__main__":
    rank_main(_rank)
