"""``python -m suite.filter_quality`` as a user meets it, on SmolLM2: a sweep with a failing method, and mistakes."""

import json
import subprocess

import pandas as pd
import pytest

from tests.integration.test_cli import suite
from tests.suite.test_report import Page

SMALL = ("model/align=none", "dataset.limit=40", "share=0.2", "tracking=offline")


@pytest.fixture(scope="module")
def sweep(cache, tmp_path_factory):
    """Two points, in the second of which LARF asks for a block that the model does not have: ``(process, folder)``."""
    runs = tmp_path_factory.mktemp("runs")
    done = suite(
        "-m", *SMALL, "only=[larf,representation_matching]", "methods.larf.layer=13,99",
        "methods.representation_matching.anchor_count=10",
        module="suite.filter_quality", SUITE_RUNS=str(runs), SUITE_CACHE=str(cache),
    )  # fmt: skip
    (folder,) = runs.iterdir()
    return done, folder


def test_a_point_leaves_its_tables_and_its_page(sweep):
    _, folder = sweep
    rows = pd.read_parquet(folder / "0" / "filter_quality.parquet").set_index("name")
    assert list(rows.index) == ["larf", "representation_matching", "oracle", "random", "length", "inverted"]
    assert set(rows["planted"]) == {10}
    assert set(rows["samples"]) == {50}
    assert (rows.auroc["oracle"], rows.auroc["inverted"]) == (1, 0)
    for name in ("larf", "representation_matching"):
        assert 0 <= rows.auroc_low[name] <= rows.auroc[name] <= rows.auroc_high[name] <= 1
        assert rows.seconds[name] > 0
    assert json.loads(rows.options["larf"])["layer"] == 13
    # Requests whose answers comply with harm are nearer to the harmful references than benign ones are.
    assert rows.auroc["representation_matching"] > 0.7
    ranked = pd.read_parquet(folder / "0" / "rankings.parquet")
    assert ranked["planted"].sum() == 10
    assert ranked["larf"].nunique() > 40
    pairs = pd.read_parquet(folder / "0" / "agreement.parquet")
    assert len(pairs) == 6
    assert pairs["jaccard"].between(0, 1).all()
    page = Page(folder / "0" / "filter_quality.html")
    assert page.tags.count("figure") == 3 + 3 + 2


def test_wandb_holds_the_same_rows(sweep):
    _, folder = sweep
    files = {f.name.rsplit("_", 2)[0]: f for f in (folder / "0" / "wandb").rglob("*.table.json")}
    assert set(files) == {"filter_quality", "agreement", "results"}
    for name in ("filter_quality", "agreement"):
        logged = json.loads(files[name].read_text())
        frame = pd.DataFrame(logged["data"], columns=logged["columns"])
        on_disk = pd.read_parquet(folder / "0" / f"{name}.parquet")
        assert list(frame.columns) == list(on_disk.columns)
        column = {"filter_quality": "auroc", "agreement": "jaccard"}[name]
        assert frame[column].tolist() == pytest.approx(on_disk[column].tolist())


def test_a_failing_method_is_named_and_does_not_stop_the_other(sweep):
    done, folder = sweep
    assert done.returncode == 1
    assert "1 of 2 methods failed" in done.stderr
    assert "30 blocks" in done.stderr
    assert "1 of 2 runs failed" in done.stderr
    assert "Traceback" not in done.stderr
    states = [json.loads((folder / n / "status.json").read_text())["state"] for n in "01"]
    assert states == ["finished", "failed"]
    rows = pd.read_parquet(folder / "1" / "filter_quality.parquet").set_index("name")
    first = pd.read_parquet(folder / "0" / "filter_quality.parquet").set_index("name")
    assert "30 blocks" in rows.error["larf"]
    assert pd.isna(rows.auroc["larf"])
    assert rows.auroc["representation_matching"] == first.auroc["representation_matching"]
    assert "1 method without a result" in " ".join(Page(folder / "1" / "filter_quality.html").text)


def test_scores_come_from_the_cache_the_second_time(sweep):
    done, _ = sweep
    told = [line for line in (done.stdout + done.stderr).splitlines() if "scores representation_matching" in line]
    assert sum("computing" in line for line in told) == 1
    assert sum("from the cache" in line for line in told) == 1


def test_the_sweep_ends_with_tables_and_a_report(sweep):
    done, folder = sweep
    assert done.stdout.count("AUROC") == 2
    assert "inverted" in done.stdout
    page = Page(folder / "report.html")
    assert "filter-quality" in page.ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["share=0.3", "dataset=jsonl"], "dataset.path"),
        (["share=0.3", "planted.path=/no/such.jsonl", "model.source=/no/such"], "/no/such.jsonl"),
        (["model=lama3"], "unknown model 'lama3'. Did you mean 'llama3'"),
        (["method=larf"], "Could not override 'method'"),
    ],
)
def test_a_mistake_is_one_clear_message_and_a_non_zero_exit(arguments, message, tmp_path):
    done: subprocess.CompletedProcess = suite(
        *arguments, module="suite.filter_quality", SUITE_RUNS=str(tmp_path / "runs"), SUITE_CACHE=str(tmp_path / "c")
    )
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "c").exists()  # nothing was loaded or computed
