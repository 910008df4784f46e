"""A LoRA adapter from a selection."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from baselines.records import Sample
from baselines.regularizer import Regularizer
from suite.cache import Entry, StageCache
from suite.plan import LoraRecipe
from suite.progress import progress
from suite.stages.data import ids_key
from suite.stages.models import LoadedModel


@dataclass(frozen=True)
class Adapter:
    folder: Path
    key: str
    entry: Entry
    curve: list[dict[str, float]]
    truncated: int


def fine_tune_selection(
    model: LoadedModel,
    samples: Sequence[Sample],
    recipe: LoraRecipe,
    *,
    regularizer: Regularizer,
    seed: int,
    cache: StageCache,
) -> Adapter:
    """Train on ``samples``, whose order does not matter: they are sorted by id, then shuffled by the seed."""
    samples = sorted(samples, key=lambda s: s.id)

    def compute_stage(out: Path) -> int:
        import tempfile

        from suite.training import attach_lora, fine_tune

        base, tokenizer = model.get()
        adapted = attach_lora(base, recipe, seed)
        model.drop()  # the adapters live in the base model's modules; whoever needs it next loads it clean
        with progress("fine-tuning", None) as advance, tempfile.TemporaryDirectory() as scratch:
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
                on_step=advance.to,
            )
        # Which base it belongs to, without the path of somebody's cache.
        adapted.peft_config["default"].base_model_name_or_path = model.spec.source
        adapted.save_pretrained(out, safe_serialization=True, save_embedding_layers=False)
        (out / "training.json").write_text(
            json.dumps({"curve": log.curve, "truncated": log.truncated, "regularizer": regularizer.report()}, indent=1)
        )
        return log.tokens

    inputs = {
        "model": model.weights.key,
        "dtype": model.spec.dtype,
        "attention": model.spec.attention,
        "samples": ids_key([s.id for s in samples]),
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "name"},
        "regularizer": {"name": regularizer.name, "version": regularizer.version, **asdict(regularizer)},
        "seed": seed,
    }
    entry = cache.entry("adapter", "1", json.loads(json.dumps(inputs)), compute_stage, f"({len(samples)} samples)")
    log = json.loads((entry.path / "training.json").read_text())
    return Adapter(entry.path, entry.key, entry, log["curve"], log["truncated"])
