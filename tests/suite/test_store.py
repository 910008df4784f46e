"""The results store: SQL conditions on the rows of many sweeps, Parquet, and rows that W&B holds."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.errors import KeelBenchError
from suite import store
from suite.results import collect
from tests.suite.fake_sweep import DEMO, fake_sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    fake_sweep(root / "one", DEMO[:3])
    fake_sweep(root / "two", DEMO[2:])
    return root


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "suite.results", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_conditions_pick_rows_of_all_sweeps_in_order(runs):
    pytest.importorskip("duckdb")
    rows = collect(runs)
    assert len(rows) == 5
    assert store.where(rows, "method='larf' and model='smollm2'") == [r for r in rows if r["method"] == "larf"]
    dangerous = store.where(rows, '"asr/mini_harmful" > 0.5 -- of the requests')
    assert {r["label"] for r in dangerous} == {"larf-top"}
    assert store.where(rows, "train_loss is null") == [rows[0]]  # absent from a row, so null


@pytest.mark.parametrize(
    "condition", ["methd='larf'", "method=", "1) or (select 1 from read_csv('/etc/passwd')) or (1"]
)
def test_a_wrong_condition_names_the_columns(runs, condition):
    pytest.importorskip("duckdb")
    with pytest.raises(KeelBenchError, match=r"(?s)--where: .*columns: run_id, .*rates: .*\"asr/mini_harmful\""):
        store.where(collect(runs), condition)


def test_the_command_filters_and_writes(runs, tmp_path):
    pytest.importorskip("duckdb")
    done = command(str(runs), "--where", "method='larf'", "--parquet", str(tmp_path / "deep" / "larf.parquet"))
    assert (done.returncode, done.stderr) == (0, "")
    table = pq.read_table(tmp_path / "deep" / "larf.parquet")
    assert table["label"].to_pylist() == ["larf-top", "larf-top", "larf-bottom"]
    printed = command(str(runs), "--where", "seed = 42", "--csv")
    assert len(printed.stdout.splitlines()) == 6
    nothing = command(str(runs), "--where", "seed = 1")
    assert nothing.returncode == 1
    assert "none of 5 runs" in nothing.stderr


def test_columns_of_several_kinds_become_text():
    table = store.as_table([{"a": 1, "b": "x"}, {"a": "many", "c": 2.5}])
    assert table.to_pylist() == [{"a": "1", "b": "x", "c": None}, {"a": "many", "b": None, "c": 2.5}]


class FakeRun:
    """A run as ``wandb.Api`` gives it, over the files that an offline run left."""

    def __init__(self, name: str, folder: Path | None):
        self.name, self.folder = name, folder
        path = next(folder.rglob("results*.table.json")).relative_to(folder) if folder else None
        self.summary = {"results": {"_type": "table-file", "path": str(path)}} if path else {"loss": 1.0}

    def file(self, path: str) -> "FakeRun":
        self.path = path
        return self

    def download(self, root: str, replace: bool):
        assert self.folder is not None
        return (self.folder / self.path).open()


class FakeApi:
    def __init__(self, runs: list[FakeRun]):
        self.held = runs

    def runs(self, project: str, filters: dict, order: str) -> list[FakeRun]:
        assert (project, filters, order) == ("team/keelbench", {"state": "finished"}, "+created_at")
        return self.held


def test_rows_come_back_from_wandb_as_they_went(runs, tmp_path):
    """The tables are those that the real client wrote offline; the server's part is invented."""
    from suite.plan import TrackingSpec
    from suite.tracking.run import Tracker

    spec = TrackingSpec(
        mode="offline", project="p", entity=None, show_harmful=False, tags=(), notes=None, group=None
    )  # fmt: skip
    rows = collect(runs / "one")[:2]
    held = [FakeRun("another program's", None)]
    for i, row in enumerate(rows):
        folder = tmp_path / str(i)
        folder.mkdir()
        with Tracker(spec, folder=folder, name="n", sweep="g", job_type="run", config={}) as tracker:
            tracker.summary(row)
        (files,) = folder.glob("wandb/offline-run-*/files")
        held.append(FakeRun(f"run {i}", files))
    assert store.from_wandb("team/keelbench", FakeApi(held)) == json.loads(json.dumps(rows))
    with pytest.raises(KeelBenchError, match=r"no finished run of KeelBench \(1 runs without the table"):
        store.from_wandb("team/keelbench", FakeApi(held[:1]))


def test_a_source_that_is_none_is_refused():
    done = command("--from", "mlflow:x")
    assert done.returncode == 1
    assert "wandb:<entity>/<project>" in done.stderr
