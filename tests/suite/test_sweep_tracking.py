"""The sweep's own W&B run holds the whole grid."""

import json

from suite.report.load import load_sweep
from suite.report.text import grid
from suite.statistics.compare import compare, difference_rows
from suite.statistics.outcomes import points_of
from suite.tracking.sweep import track_sweep
from tests.helpers import compose
from tests.suite.fake_sweep import DEMO, fake_sweep


def settings(sweep, mode: str) -> None:
    from omegaconf import OmegaConf

    for folder in sweep.glob("?"):
        (folder / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(compose([f"tracking={mode}"]), folder / ".hydra" / "config.yaml")


def rows(file) -> list[dict]:
    table = json.loads(file.read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_comparison_differences_and_runs(tmp_path):
    sweep = fake_sweep(tmp_path, DEMO)
    runs = load_sweep(sweep)[0]
    found = compare(points_of(runs), resamples=200)
    settings(sweep, "offline")
    track_sweep(sweep, runs, found)
    tables = {f.name.rsplit("_", 2)[0]: f for f in sweep.glob("wandb/offline-run-*/files/media/table/*.table.json")}
    assert set(tables) == {"comparison", "differences", "runs"}  # no experiment, so no table of a paper's
    assert rows(tables["comparison"]) == grid(runs, found)
    assert rows(tables["differences"]) == json.loads(json.dumps(difference_rows(found)))
    assert [r["run_id"] for r in rows(tables["runs"])] == [run.row["run_id"] for run in runs]
    assert len(rows(tables["comparison"])) == 4 * 2


def test_one_run_needs_none_and_disabled_is_respected(tmp_path):
    sweep = fake_sweep(tmp_path, DEMO[:2])
    runs = load_sweep(sweep)[0]
    found = compare(points_of(runs), resamples=200)
    track_sweep(sweep, runs, found)  # no settings to be read: a folder that Hydra did not make
    settings(sweep, "disabled")
    track_sweep(sweep, runs, found)
    settings(sweep, "offline")
    track_sweep(sweep, runs[:1], found)
    assert not (sweep / "wandb").exists()


def test_the_papers_table_of_an_experiments_sweep(tmp_path):
    sweep = fake_sweep(tmp_path, DEMO)
    for status in sweep.glob("*/status.json"):
        status.write_text(json.dumps({"state": "finished", "task": "+experiment=larf_table1,scale=laptop,seed=1"}))
    runs = load_sweep(sweep)[0]
    settings(sweep, "offline")
    track_sweep(sweep, runs, compare(points_of(runs), resamples=200))
    (file,) = sweep.glob("wandb/offline-run-*/files/media/table/paper_*.table.json")
    found = {row["cell"]: row for row in rows(file)}
    published = found["llama3 · alpaca · directharm4 · larf"]
    assert (published["published"], published["ours"], published["difference"]) == (52.0, None, None)
    assert (
        published["note"]
        == "no run with model=llama3, dataset=alpaca, method=larf, selection=top, options.direction=bidirectional"
    )
    ours = found["smollm2 · mini · mini_harmful · random"]
    assert ours["ours"] == 100 * runs[1].row["asr/mini_harmful"]
    assert (ours["published"], ours["runs"]) == (None, runs[1].row["run_id"])
