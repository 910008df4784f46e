"""A LoRA adapter (or a whole tuned model) from a selection, and what it was on the way."""

import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from baselines.records import Sample
from baselines.regularizer import Regularizer
from eval.flops import Work
from eval.memory import free_memory
from suite.plan import LoraRecipe, Recipe
from suite.stages.data import ids_key
from suite.stages.models import LoadedModel
from suite.stages.ranks import process_count
from suite.stages.training_ranks import Job, check_training, load_base, quantised, train, train_over_processes
from suite.storage.cache import Entry, StageCache
from suite.storage.unfinished import Unfinished, without_checksum

CURVE = "curve"


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

    An adapter's training in this process goes on where it was if it was stopped; one over several processes, and one of
    all weights, whose state is six times the model, begins again.

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
    curve_inputs = inputs | {"every": every}

    def tune(out: Path, unfinished: Unfinished) -> Work:
        kept = unfinished.folder / CURVE
        job = Job(
            samples=samples,
            recipe=recipe,
            regularizer=regularizer,
            seed=seed,
            weights=model.weights.folder,
            spec=model.spec,
            compute=model.compute,
            out=out,
            kept=kept,
            every=every,
        )
        return _tune(model, job, unfinished)

    def train_stage(out: Path, unfinished: Unfinished) -> Work:
        done = tune(out, unfinished)
        if every is not None:  # left where the next stage looks for it: a kill between the two loses nothing
            next_stage = cache.unfinished("checkpoints", cache.key("checkpoints", "1", curve_inputs))
            _hand_over(unfinished.folder / CURVE, Unfinished(next_stage))
        return done

    def collect(out: Path, unfinished: Unfinished) -> Work:
        if _handed_over(unfinished, out):
            return Work(flops=0.0)  # kept on the way, unless it takes a second training
        with tempfile.TemporaryDirectory() as again:
            done = tune(Path(again), unfinished)
        shutil.copytree(unfinished.folder / CURVE, out, dirs_exist_ok=True)
        return done

    stage = "adapter" if isinstance(recipe, LoraRecipe) else "tuned_model"
    entry = cache.resumable_entry(stage, "1", inputs, train_stage, f"({len(samples)} samples)")
    kept_entry = None
    if every is not None:
        kept_entry = cache.resumable_entry("checkpoints", "1", curve_inputs, collect, f"(every {every} steps)")
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


def _hand_over(curve: Path, to: Unfinished) -> None:
    """The adapters in ``curve``, each a folder, as files that are sound or not there, and a list of them."""
    files = [f for f in sorted(curve.rglob("*")) if f.is_file()]
    names = {f"{f.parent.name}--{f.name}": [f.parent.name, f.name] for f in files}
    for name, (folder, file) in names.items():
        to.keep(name, functools.partial(_copy, curve / folder / file))
    to.keep("list.json", lambda path: _write_json(path, names))


def _handed_over(unfinished: Unfinished, out: Path) -> bool:
    """Whether all of it was there; it is now in ``out``."""
    lists = unfinished.sound("list")
    if not lists:
        return False
    names: dict[str, list[str]] = json.loads(lists[-1].read_text())
    found = {without_checksum(f): f for f in unfinished.sound("step-")}
    if not names.keys() <= found.keys():
        return False
    for name, (folder, file) in names.items():
        (out / folder).mkdir(exist_ok=True)
        shutil.copyfile(found[name], out / folder / file)
    return True


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _checkpoints(entry: Entry | None) -> tuple[Checkpoint, ...]:
    if entry is None:
        return ()
    steps = sorted(int(folder.name.removeprefix("step-")) for folder in entry.path.glob("step-*"))
    return tuple(Checkpoint(n, entry.path / f"step-{n}", f"{entry.key}/step-{n}") for n in steps)


def _tune(model: LoadedModel, job: Job, unfinished: Unfinished) -> Work:
    """Train; ``job.kept`` is in the unfinished folder."""
    count = process_count(model.compute.training_processes, "compute.training_processes")
    resumable = count == 1 and isinstance(job.recipe, LoraRecipe)
    if not resumable:
        shutil.rmtree(job.kept, ignore_errors=True)  # of a training that was stopped
    if count > 1:
        model.drop()  # its memory is the ranks' now
        return train_over_processes(job, count)
    if resumable and not quantised(job.recipe):
        base, tokenizer = model.get()
    else:
        base, tokenizer = load_base(job)
    model.drop()  # the adapters live in the base model's modules; whoever needs it next loads it clean
    done = train(job, base, tokenizer, unfinished=unfinished if resumable else None)
    del base
    free_memory()  # the Trainer's cycles would keep the model until the collector comes by, beside the next one
    return done
