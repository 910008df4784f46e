"""A LoRA adapter (or a whole tuned model) from a selection, and what it was on the way."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from baselines.records import Sample
from baselines.regularizer import Regularizer
from eval.flops import Work
from suite.cache import Entry, StageCache
from suite.plan import LoraRecipe, Recipe
from suite.stages.data import ids_key
from suite.stages.models import LoadedModel
from suite.stages.ranks import process_count
from suite.stages.training_ranks import Job, check_training, load_base, quantised, train, train_over_processes


@dataclass(frozen=True)
class Adapter:
    folder: Path
    key: str
    entry: Entry
    curve: list[dict[str, float]]
    truncated: int
    checkpoints: tuple["Checkpoint", ...] = ()
    checkpoints_entry: Entry | None = None
    whole: bool = False  # the folder holds all weights, not an adapter (train=full)


@dataclass(frozen=True)
class Checkpoint:
    """The adapter as it was after ``step`` optimiser steps."""

    step: int
    folder: Path
    key: str


def fine_tune_selection(
    model: LoadedModel,
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    regularizer: Regularizer,
    seed: int,
    cache: StageCache,
    every: int | None = None,
) -> Adapter:
    """Train on ``samples``, whose order does not matter: they are sorted by id, then shuffled by the seed.

    With ``every``, the adapter after each ``every`` steps is kept too, as a stage of its own: keeping them changes
    nothing of the training, so the adapter's key does not know of it. Where the adapter is in the cache and they are
    not, they take a second training. Nor does it know of the number of processes, which changes rounding only.

    Raises:
        KeelBenchError: settings that cannot go together (``check_training``), or what training finds wrong.
    """
    check_training(recipe, model.compute, regularizer)
    samples = sorted(samples, key=lambda s: s.id)
    inputs = json.loads(
        json.dumps(
            {
                "model": model.weights.key,
                "dtype": model.spec.dtype,
                "attention": model.spec.attention,
                "samples": ids_key([s.id for s in samples]),
                "recipe": recipe.identity(),
                "regularizer": {"name": regularizer.name, "version": regularizer.version, **asdict(regularizer)},
                "seed": seed,
            }
        )
    )
    cache.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.root, prefix=".checkpoints-") as aside:  # on the cache's file system
        kept = Path(aside)

        def tune(out: Path) -> Work:
            job = Job(
                samples, recipe, regularizer, seed, model.weights.folder, model.spec, model.compute, out, kept, every
            )
            return _tune(model, job)

        def collect(out: Path) -> Work:
            done = Work(flops=0.0)  # kept on the way, unless it takes a second training
            if not any(kept.iterdir()):
                with tempfile.TemporaryDirectory() as again:
                    done = tune(Path(again))
            for folder in list(kept.iterdir()):
                os.rename(folder, out / folder.name)
            return done

        stage = "adapter" if isinstance(recipe, LoraRecipe) else "tuned_model"
        entry = cache.entry(stage, "1", inputs, tune, f"({len(samples)} samples)")
        kept_entry = None
        if every is not None:
            kept_entry = cache.entry("checkpoints", "1", inputs | {"every": every}, collect, f"(every {every} steps)")
    log = json.loads((entry.path / "training.json").read_text())
    return Adapter(
        entry.path,
        entry.key,
        entry,
        log["curve"],
        log["truncated"],
        _checkpoints(kept_entry),
        kept_entry,
        whole=stage == "tuned_model",
    )


def _checkpoints(entry: Entry | None) -> tuple[Checkpoint, ...]:
    if entry is None:
        return ()
    steps = sorted(int(folder.name.removeprefix("step-")) for folder in entry.path.glob("step-*"))
    return tuple(Checkpoint(n, entry.path / f"step-{n}", f"{entry.key}/step-{n}") for n in steps)


def _tune(model: LoadedModel, job: Job) -> Work:
    count = process_count(model.compute.training_processes, "compute.training_processes")
    if count > 1:
        model.drop()  # its memory is the ranks' now
        return train_over_processes(job, count)
    if isinstance(job.recipe, LoraRecipe) and not quantised(job.recipe):
        base, tokenizer = model.get()
    else:
        base, tokenizer = load_base(job)
    model.drop()  # the adapters live in the base model's modules; whoever needs it next loads it clean
    return train(job, base, tokenizer)
