"""One flat row per run: what was chosen, what was measured, what it cost, and what it rests on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eval.metrics import Mean, Rate
from eval.records import Usage
from suite.storage.cache import Entry, stage_and_key
from suite.storage.durable import replace_text


@dataclass(frozen=True)
class RunRecord:
    """A finished run. ``row`` is its flat form, the one in ``record.json``, ``results.parquet`` and W&B."""

    run_id: str
    sweep: str
    finished: str  # ISO 8601, UTC
    label: str
    model: str
    aligned: str  # name of the alignment, "none" without
    dataset: str
    method: str
    options: dict[str, Any]  # the method's options, as it scored
    regularizer: str
    selection: str
    n_samples: int
    n_selected: int
    seed: int
    judge: str
    judge_version: str
    backend: str
    max_new_tokens: int
    prompt_limit: int | None
    dtype: str
    device: str  # cpu, cuda
    gpus: int = 0
    decoding: str = ""  # suite.conditions
    rounding: str = ""  # likewise
    rates: dict[str, Rate] = field(default_factory=dict)
    means: dict[str, Mean] = field(default_factory=dict)  # of judges that give scores, such as gpt_score/<benchmark>
    usage: Usage = field(default_factory=Usage)  # what the judge's model took, when the verdicts were given
    train_loss: float | None = None  # of the last optimiser step, nats a token
    entries: tuple[Entry, ...] = ()  # every stage the run rests on
    compute: dict[str, float | None] = field(default_factory=dict)  # cost/<stage>/flops, /gpus and /mfu (suite.flops)
    fingerprints: dict[str, str] = field(default_factory=dict)  # config, data, prompts, code, model, template
    scorer_info: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)  # hub commits: model, judge, dataset, benchmark names
    benchmark_files: dict[str, dict[str, str | None]] = field(default_factory=dict)  # checksums, found and known
    utility_settings: dict[str, Any] = field(default_factory=dict)  # how each task was put (suite.stages.utility)
    utility_stderr: dict[str, float | None] = field(default_factory=dict)  # the harness's own, by utility/<task>

    def row(self) -> dict[str, Any]:
        """Flat and JSON-valued; absent is None. Rates: ``<name>``, ``<name>/n``, ``/low``, ``/high``."""
        row: dict[str, Any] = {
            k: v
            for k, v in asdict(self).items()
            if k
            not in (
                "rates",
                "means",
                "usage",
                "entries",
                "compute",
                "fingerprints",
                "options",
                "scorer_info",
                "versions",
                "revisions",
                "benchmark_files",
                "utility_settings",
                "utility_stderr",
            )
        }
        row["options"] = json.dumps(self.options, sort_keys=True)
        row["scorer_info"] = json.dumps(self.scorer_info, sort_keys=True)
        row["benchmark_files"] = json.dumps(self.benchmark_files, sort_keys=True)
        row["utility_settings"] = json.dumps(self.utility_settings, sort_keys=True)
        row |= {f"{name}/stderr": value for name, value in self.utility_stderr.items()}
        row |= rate_columns(self.rates)
        row |= mean_columns(self.means) | usage_columns(self.usage)
        for stage in dict.fromkeys(e.stage for e in self.entries):
            costs = [e.cost for e in self.entries if e.stage == stage]
            row[f"cost/{stage}/seconds"] = sum(c.seconds for c in costs)
            row[f"cost/{stage}/tokens"] = sum(c.tokens for c in costs)
            row[f"cost/{stage}/peak_memory_mb"] = max(c.peak_memory_mb for c in costs)
            on_gpu = [c.gpu_peak_memory_mb for c in costs if c.gpu_peak_memory_mb is not None]
            if on_gpu:
                row[f"cost/{stage}/gpu_peak_memory_mb"] = max(on_gpu)
        row |= self.compute
        row["stages"] = json.dumps([f"{e.stage}/{e.key}" for e in self.entries])
        row["shrunk"] = json.dumps([{"stage": e.stage, **vars(s)} for e in self.entries for s in e.shrunk])
        row["stages_from_cache"] = sum(e.cached for e in self.entries)
        row |= {f"fingerprint/{k}": v for k, v in self.fingerprints.items()}
        row |= {f"version/{k}": v for k, v in self.versions.items()}
        row |= {f"revision/{k}": v for k, v in self.revisions.items()}
        return row


def rate_columns(rates: Mapping[str, Rate], prefix: str = "") -> dict[str, Any]:
    """``<name>``, ``<name>/n``, ``/low``, ``/high`` of every rate."""
    columns: dict[str, Any] = {}
    for name, rate in rates.items():
        values = {"": rate.value, "/n": rate.n, "/low": rate.low, "/high": rate.high}
        columns |= {f"{prefix}{name}{end}": value for end, value in values.items()}
    return columns


def mean_columns(means: Mapping[str, Mean], prefix: str = "") -> dict[str, Any]:
    """``<name>``, ``<name>/n``, ``/ci_low``, ``/ci_high`` of every mean: on the judge's own scale, not a share."""
    columns: dict[str, Any] = {}
    for name, mean in means.items():
        values = {"": mean.value, "/n": mean.n, "/ci_low": mean.low, "/ci_high": mean.high}
        columns |= {f"{prefix}{name}{end}": None if value != value else value for end, value in values.items()}
    return columns


def usage_columns(usage: Usage, prefix: str = "") -> dict[str, Any]:
    """``judge/requests``, ``/prompt_tokens``, ``/completion_tokens``, ``/dollars``, where a model was asked."""
    return {f"{prefix}judge/{k}": v for k, v in asdict(usage).items()} if usage.requests else {}


def write_record(folder: Path, record: RunRecord) -> None:
    replace_text(folder / "record.json", json.dumps(record.row(), indent=1))


def read_row(folder: Path) -> dict[str, Any] | None:
    """A run's row; None where it has not finished."""
    path = folder / "record.json"
    if not path.is_file():
        return None
    row: dict[str, Any] = json.loads(path.read_text())
    return row


def adapter_key(row: Mapping[str, Any]) -> str | None:
    """The cache key of a run's adapter; None where it has none.

    Raises:
        KeelBenchError: a stage that could not be one: the key becomes a path.
    """
    stages = map(stage_and_key, json.loads(row.get("stages") or "[]"))
    return next((key for stage, key in stages if stage == "adapter"), None)
