"""A sweep of every kind of stage that takes a second or two, and how two of them are compared."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

# What tells when a run was, what it cost, and whether it found its stages in the cache; all else must be equal.
TIMES = ("finished", "sweep", "stages_from_cache")
COSTS = ("cost/",)
TABLES = ("completions", "scores", "selected", "training", "categories", "safety_curve")


def make_model(folder: Path) -> Path:
    """A tiny random Llama, with SmolLM2's tokenizer brought down to 800 tokens, so that either loads in no time."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from suite.stages.models import prepare
    from suite.storage.cache import StageCache
    from tests.helpers import COMPUTE, SMOLLM2

    root = Path(__file__).resolve().parents[3]
    full = AutoTokenizer.from_pretrained(prepare(SMOLLM2, COMPUTE, StageCache(root / "cache")).folder)
    texts = (root / "baselines" / "data" / "mini_benign.jsonl").read_text().splitlines()
    full.train_new_from_iterator(texts, 800).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = LlamaConfig(vocab_size=800, num_key_value_heads=2, max_position_embeddings=512, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def arguments(model: Path, cache: Path, runs: Path, *more: str) -> list[str]:
    """Two points with scores, adapters, checkpoints along the training, completions and verdicts."""
    return [
        "-m", "method=larf,random", "model.larf_layer=1",
        f"model.source={model}", "model.name=tiny", "model.dtype=float32", "model.attention=sdpa", "model/align=none",
        "dataset.limit=24", "selection.k=12", "train.batch_size=2", "train.accumulation=1", "train.epochs=2",
        "train.max_length=128", "compute.max_length=128", "compute.checkpoint_seconds=0", "compute.device=cpu",
        "eval.limit=6", "eval.max_new_tokens=6", "eval.every=6", "eval.every_limit=2", "backend.tokens_per_batch=150",
        "benchmark=[mini_harmful,mini_benign]",
        "tracking=disabled", f"paths.cache={cache}", f"paths.runs={runs}", *more,
    ]  # fmt: skip


def rows(sweep: Path) -> list[dict[str, Any]]:
    """The rows of ``results.parquet`` without times and costs."""
    found = pq.read_table(sweep / "results.parquet").to_pylist()
    return [{k: v for k, v in row.items() if k not in TIMES and not k.startswith(COSTS)} for row in found]


def results_bytes(sweep: Path, to: Path) -> bytes:
    """``results.parquet`` without times and costs, as the bytes of a Parquet file."""
    table = pq.read_table(sweep / "results.parquet")
    dropped = [c for c in table.column_names if c in TIMES or c.startswith(COSTS)]
    pq.write_table(table.drop_columns(dropped).replace_schema_metadata(), to)
    return to.read_bytes()


def differences(sweep: Path, undisturbed: Path, scratch: Path) -> list[str]:
    """Everything in which the two are not the same, byte for byte."""
    found = []
    if results_bytes(sweep, scratch / "a.parquet") != results_bytes(undisturbed, scratch / "b.parquet"):
        found.append("results.parquet")
    points = sorted(f.parent.name for f in undisturbed.glob("*/record.json"))
    if points != sorted(f.parent.name for f in sweep.glob("*/record.json")):
        found.append("points")
    for point in points:
        for table in TABLES:
            mine, theirs = sweep / point / f"{table}.parquet", undisturbed / point / f"{table}.parquet"
            if mine.is_file() != theirs.is_file() or (mine.is_file() and mine.read_bytes() != theirs.read_bytes()):
                found.append(f"{point}/{table}.parquet")
    return found


def rows_lost(sweep: Path, undisturbed: Path) -> int:
    """Rows of the undisturbed sweep's tables, its results among them, that the other one has not."""
    lost = max(0, pq.read_metadata(undisturbed / "results.parquet").num_rows
               - pq.read_metadata(sweep / "results.parquet").num_rows)  # fmt: skip
    for theirs in undisturbed.glob("*/*.parquet"):
        mine = sweep / theirs.parent.name / theirs.name
        have = pq.read_metadata(mine).num_rows if mine.is_file() else 0
        lost += max(0, pq.read_metadata(theirs).num_rows - have)
    return lost


def leftovers(cache: Path) -> list[str]:
    """Working folders and unfinished stages in a cache in which nobody is at work."""
    hidden = [f for f in cache.glob("*/.*") if f.is_dir()]
    unfinished = list((cache / "unfinished").iterdir()) if (cache / "unfinished").is_dir() else []
    return sorted(str(f.relative_to(cache)) for f in (*hidden, *unfinished))


def only_sweep(runs: Path) -> Path:
    (sweep,) = runs.iterdir()
    return sweep


def newest_sweep(runs: Path) -> Path:
    return max(runs.iterdir(), key=lambda f: f.stat().st_ctime_ns)


def states(sweep: Path) -> dict[str, str]:
    return {f.parent.name: json.loads(f.read_text())["state"] for f in sorted(sweep.glob("*/status.json"))}
