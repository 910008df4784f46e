"""A measurement as a stage of the cache: computed once for a model and its prompts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from baselines.method import Engine
from eval.errors import KeelBenchError
from eval.geometry.dimension import IntrinsicDimension
from eval.geometry.principal import Principal
from suite.flowlens.states import Geometry, Trajectories, measure
from suite.progress import progress
from suite.stages.inference import with_adapter
from suite.stages.models import LoadedModel
from suite.storage.cache import Entry, StageCache, file_sha256

ARRAYS = "geometry.npz"


@dataclass(frozen=True)
class Measured:
    geometry: Geometry
    entry: Entry


def measured(
    model: LoadedModel,
    adapter: Path | None,
    texts: Sequence[str],
    *,
    components: int,
    dimension_rows: int,
    with_mark: bool,
    seed: int,
    cache: StageCache,
) -> Measured:
    """The geometry of ``texts``, from the cache where it is there (``suite.flowlens.states.measure``)."""

    def compute_stage(out: Path) -> int:
        loaded, tokenizer = model.get()
        if adapter is not None:
            model.drop()  # the adapter lives in the base model's modules
            loaded = with_adapter(loaded, adapter).eval()
        passes = 4 if with_mark else 2
        with progress("reading hidden states", passes * len(texts)) as advance:
            engine = Engine(
                tokens_per_batch=model.compute.scoring_tokens_per_batch,
                max_length=model.compute.max_length,
                on_progress=advance,
            )
            found = measure(
                loaded,
                tokenizer,
                texts,
                components=components,
                dimension_rows=dimension_rows,
                seed=seed,
                with_mark=with_mark,
                engine=engine,
            )
        save_geometry(out, found)
        return found.tokens

    inputs = {
        "model": model.weights.key,
        "dtype": model.spec.dtype,
        "attention": model.spec.attention,
        "adapter": file_sha256(adapter / "adapter_model.safetensors") if adapter else None,
        "adapter_config": file_sha256(adapter / "adapter_config.json") if adapter else None,
        "texts": hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest(),
        "max_length": model.compute.max_length,
        "components": components,
        "dimension_rows": dimension_rows,
        "with_mark": with_mark,
        "seed": seed,
    }
    entry = cache.entry("geometry", "1", inputs, compute_stage, f"({len(texts)} prompts)")
    return Measured(load_geometry(entry.path), entry)


def save_geometry(folder: Path, geometry: Geometry) -> None:
    """``geometry.npz``: everything, as named arrays."""
    principal, marked = geometry.principal, geometry.with_mark
    arrays: dict[str, Any] = {
        "mean": principal.mean,
        "directions": principal.directions,
        "variances": principal.variances,
        "total_variance": principal.total_variance,
        "dimension": geometry.dimension.value,
        "points": geometry.dimension.points,
        "duplicates": geometry.dimension.duplicates,
        "coordinates": geometry.trajectories.coordinates,
        "mean_cosine": geometry.trajectories.mean_cosine,
        "tokens": geometry.tokens,
        "truncated": geometry.truncated,
    }
    if marked is not None:
        arrays |= {"marked_coordinates": marked.coordinates, "marked_mean_cosine": marked.mean_cosine}
    np.savez(folder / ARRAYS, **arrays)


def load_geometry(folder: Path) -> Geometry:
    """
    Raises:
        KeelBenchError: the folder has no ``geometry.npz``, or it is not one of these.
    """
    path = folder / ARRAYS
    if not path.is_file():
        raise KeelBenchError(f"{folder} has no {ARRAYS}: name the folder of a finished run of suite.flowlens")
    try:
        with np.load(path, allow_pickle=False) as found:
            marked = None
            if "marked_coordinates" in found:
                marked = Trajectories(found["marked_coordinates"], found["marked_mean_cosine"])
            return Geometry(
                Principal(found["mean"], found["directions"], found["variances"], float(found["total_variance"])),
                IntrinsicDimension(float(found["dimension"]), int(found["points"]), int(found["duplicates"])),
                Trajectories(found["coordinates"], found["mean_cosine"]),
                marked,
                int(found["tokens"]),
                int(found["truncated"]),
            )
    except (KeyError, ValueError, OSError) as error:
        raise KeelBenchError(f"{path} cannot be read: {error}") from error
