"""How a run was measured, where its configuration does not say it: what must be equal for two rates to be compared."""

import hashlib
import json
from pathlib import Path

from suite.plan import BackendSpec, ComputeSpec, EvalSpec, ModelSpec, VllmSpec


def template_fingerprint(folder: Path) -> str:
    """Hash of a model folder's chat template; "none" without one."""
    file = folder / "chat_template.jinja"
    template: object = None
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    else:
        config = folder / "tokenizer_config.json"
        if config.is_file():
            template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if not template:
        return "none"
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:20]


def decoding(evaluation: EvalSpec, backend: BackendSpec | VllmSpec) -> str:
    """How answers are drawn, in words: all that the completions depend on beside model, prompts and max_new_tokens."""
    parts = ["greedy"]
    if evaluation.system is not None:
        parts.append(f"system turn {hashlib.sha256(evaluation.system.encode()).hexdigest()[:8]}")
    if backend.merge_adapter:
        parts.append("adapters merged")
    return ", ".join(parts)


def rounding(model: ModelSpec, compute: ComputeSpec, backend: BackendSpec | VllmSpec) -> str:
    """The settings that change a number by rounding alone, in words."""
    batches = [compute.scoring_tokens_per_batch, compute.training_tokens_per_pass]
    if isinstance(backend, BackendSpec):
        batches.append(backend.tokens_per_batch)
    parts = [f"attention {model.attention}", f"tokens a batch {'/'.join(map(str, batches))}"]
    parts += [f"threads {compute.threads}"] if compute.threads is not None else []
    for what, count in (("scoring", compute.scoring_processes), ("training", compute.training_processes)):
        parts += [f"{what} over {count} processes"] if count != 1 else []
    return ", ".join(parts + (["deterministic kernels"] if compute.deterministic else []))


def devices(asked: str, backend: BackendSpec | VllmSpec | None = None) -> tuple[str, int]:
    """``(kind, number of GPUs)`` that ``compute.device`` stands for here, ``("cpu", 0)`` without one; with the back
    end, as many as one answer comes from, which rounding depends on.

    Scoring's processes are not among them: each has the whole model, so their number changes no score beyond rounding
    and stands with the stage's costs alone (``cost/scores/gpus``).
    """
    import torch

    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    kind = asked.split(":")[0]
    if kind != "cuda":
        return kind, 0
    return kind, backend.tensor_parallel_size if isinstance(backend, VllmSpec) else 1
