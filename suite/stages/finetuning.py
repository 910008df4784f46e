"""A LoRA adapter from a selection, and what it was on the way."""

import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baselines.records import Sample
from baselines.regularizer import Regularizer
from eval.flops import Work
from suite.cache import Entry, StageCache
from suite.conditions import devices
from suite.plan import LoraRecipe
from suite.progress import progress
from suite.stages.data import ids_key
from suite.stages.models import LoadedModel
from suite.unfinished import Unfinished, without_checksum

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


@dataclass(frozen=True)
class Checkpoint:
    """The adapter as it was after ``step`` optimiser steps."""

    step: int
    folder: Path
    key: str


def fine_tune_selection(
    model: LoadedModel,
    samples: Sequence[Sample],
    recipe: LoraRecipe,
    *,
    regularizer: Regularizer,
    seed: int,
    cache: StageCache,
    every: int | None = None,
) -> Adapter:
    """Train on ``samples``, whose order does not matter: they are sorted by id, then shuffled by the seed.

    With ``every``, the adapter after each ``every`` steps is kept too, as a stage of its own: keeping them changes
    nothing of the training, so the adapter's key does not know of it. Where the adapter is in the cache and they are
    not, they take a second training.
    """
    samples = sorted(samples, key=lambda s: s.id)
    inputs = json.loads(
        json.dumps(
            {
                "model": model.weights.key,
                "dtype": model.spec.dtype,
                "attention": model.spec.attention,
                "samples": ids_key([s.id for s in samples]),
                "recipe": {k: v for k, v in asdict(recipe).items() if k != "name"},
                "regularizer": {"name": regularizer.name, "version": regularizer.version, **asdict(regularizer)},
                "seed": seed,
            }
        )
    )
    curve_inputs = inputs | {"every": every}

    def train(out: Path, unfinished: Unfinished) -> Work:
        done = _train(model, samples, recipe, regularizer, seed, out, unfinished, every)
        if every is not None:  # left where the next stage looks for it: a kill between the two loses nothing
            next_stage = cache.unfinished("checkpoints", cache.key("checkpoints", "1", curve_inputs))
            _hand_over(unfinished.folder / CURVE, Unfinished(next_stage))
        return done

    def collect(out: Path, unfinished: Unfinished) -> Work:
        if _handed_over(unfinished, out):
            return Work(flops=0.0)  # kept on the way, unless it takes a second training
        with tempfile.TemporaryDirectory() as again:
            done = _train(model, samples, recipe, regularizer, seed, Path(again), unfinished, every)
        shutil.copytree(unfinished.folder / CURVE, out, dirs_exist_ok=True)
        return done

    entry = cache.resumable_entry("adapter", "1", inputs, train, f"({len(samples)} samples)")
    kept_entry = None
    if every is not None:
        kept_entry = cache.resumable_entry("checkpoints", "1", curve_inputs, collect, f"(every {every} steps)")
    log = json.loads((entry.path / "training.json").read_text())
    return Adapter(entry.path, entry.key, entry, log["curve"], log["truncated"], _checkpoints(kept_entry), kept_entry)


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


def _train(
    model: LoadedModel,
    samples: Sequence[Sample],
    recipe: LoraRecipe,
    regularizer: Regularizer,
    seed: int,
    out: Path,
    unfinished: Unfinished,
    every: int | None,
) -> Work:
    """The adapter into ``out``, and into ``CURVE`` in the unfinished folder what it was after each ``every`` steps and
    at the end."""
    from suite.checkpointing import Checkpoints
    from suite.training import attach_lora, fine_tune

    base, tokenizer = model.get()
    adapted = attach_lora(base, recipe, seed)
    model.drop()  # the adapters live in the base model's modules; whoever needs it next loads it clean
    # Which base it belongs to, without the path of somebody's cache.
    adapted.peft_config["default"].base_model_name_or_path = model.spec.source

    curve = unfinished.folder / CURVE
    checkpoints = Checkpoints(
        unfinished,
        seconds=model.compute.checkpoint_seconds,
        beside=curve if every is not None else None,
        report=regularizer.report,
        restore=regularizer.go_on_from,
    )
    with progress("fine-tuning", None) as advance, tempfile.TemporaryDirectory() as scratch:

        def on_step(step: int, total: int) -> None:
            advance.to(step, total)
            if every is not None and (step % every == 0 or step == total):
                _save(adapted, curve / f"step-{step}")

        log = fine_tune(
            adapted,
            tokenizer,
            samples,
            recipe,
            seed=seed,
            work_dir=Path(scratch),
            auxiliary_loss=None if regularizer.name == "none" else regularizer.auxiliary_loss,
            hidden_states=regularizer.hidden_states,
            tokens_per_pass=model.compute.training_tokens_per_pass,
            on_step=on_step,
            checkpoints=checkpoints,
        )
    _save(adapted, out)
    (out / "training.json").write_text(
        json.dumps({"curve": log.curve, "truncated": log.truncated, "regularizer": regularizer.report()}, indent=1)
    )
    return Work(log.tokens, log.flops, devices(model.compute.device)[1])


def _save(adapted: Any, folder: Path) -> None:
    adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
