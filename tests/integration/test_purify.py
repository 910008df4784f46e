"""``python -m suite.purify`` as a user meets it, on SmolLM2: two voters, the damage check, mistakes."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from baselines.anchors import EMBEDDED
from tests.integration.test_cli import ROOT, suite
from tests.suite.test_report import Page

SMALL = ("model/align=none", "eval.max_new_tokens=8", "eval.limit=2", "check.prompts=2", "check.controls=8",
         "train.epochs=1", "verify_rows=4", "method.anchor_count=6")  # fmt: skip


@pytest.fixture(scope="module")
def purified(cache, tmp_path_factory):
    """``(process, folder)`` of 24 benign and 6 planted rows, 6 to go, the model unaligned."""
    folder = tmp_path_factory.mktemp("data")
    benign = (EMBEDDED / "mini_benign.jsonl").read_text().splitlines()[:24]
    planted = (EMBEDDED / "planted.jsonl").read_text().splitlines()[-6:]
    rows = [line for i in range(6) for line in (*benign[4 * i : 4 * i + 4], planted[i])]
    (folder / "mine.jsonl").write_text("\n".join(rows) + "\n")
    return suite(
        *arguments(folder), SUITE_RUNS=str(folder / "runs"), SUITE_CACHE=str(cache), module="suite.purify"
    ), folder


def arguments(folder, *more):
    return (
        "model=smollm2", "dataset=jsonl", f"dataset.path={folder}/mine.jsonl", "method=representation_matching",
        "keep=0.8", f"out={folder}/clean.jsonl", "verify=true", *SMALL, *more,
    )  # fmt: skip


def test_planted_rows_go_and_the_others_leave_as_they_came(purified):
    done, folder = purified
    assert done.returncode == 0, done.stderr
    lines, kept = ((folder / name).read_text().splitlines() for name in ("mine.jsonl", "clean.jsonl"))
    assert kept == [line for line in lines if line in kept]
    assert len(kept) == 24
    rows = pq.read_table(folder / "clean.scores.parquet").to_pylist()
    assert all(row["kept"] == (row["rank"] > 6) for row in rows)
    planted = [row["rank"] for number, row in enumerate(rows) if number % 5 == 4]
    assert sum(planted) / 6 < 10  # 15.5 by chance; an unaligned model and six anchors find some
    assert all(-1 <= row["representation_matching"] <= 1 for row in rows)
    assert all(row["nearest_anchor"] for row in rows if not row["kept"])
    assert "30 rows in, 24 out, 6 dropped" in done.stdout


def test_the_damage_check_and_an_unaligned_models_warning_are_on_the_page(purified):
    _, folder = purified
    record = json.loads((folder / "clean.purify.json").read_text())
    assert [(arm["name"], arm["rows"]) for arm in record["verify"]] == [
        ("before", 0), ("kept", 4), ("dropped", 4), ("random", 4),
    ]  # fmt: skip
    assert all(arm["rates"]["asr/mini_harmful"]["n"] == 2 for arm in record["verify"])
    assert any("harmful requests (criterion" in w for w in record["warnings"]) == (record["refused"]["value"] < 0.5)
    page = Page(folder / "clean.report.html")
    assert {"warnings", "damage", "scores", "common"} - set(page.ids) <= {"warnings"}
    assert "fine-tuned on 4 rows of each kind" in " ".join(" ".join(page.text).split())


def test_the_second_time_everything_comes_from_the_cache(purified, cache):
    _, folder = purified
    again = suite(
        *arguments(folder, "keep=0.9", "verify=false", "overwrite=true"),
        SUITE_RUNS=str(folder / "runs"), SUITE_CACHE=str(cache), module="suite.purify",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    told = [line for line in (again.stdout + again.stderr).splitlines() if "scores representation_matching" in line]
    assert told
    assert all("from the cache" in line for line in told)
    assert len((folder / "clean.jsonl").read_text().splitlines()) == 27


def test_help_loads_no_torch():
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "suite.purify", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert loaded.returncode == 0
    assert "mean_rank" in loaded.stdout
    imported = {line.split("|")[-1].strip() for line in loaded.stderr.splitlines() if "|" in line}
    assert "hydra" in imported
    assert imported.isdisjoint({"torch", "transformers", "wandb", "pandas"})


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["keep=0.8", "out=x.jsonl"], "dataset.path has no value; name one: dataset.path=...", 1),
        (["method=laff", "keep=0.8"], "Did you mean 'larf'", 2),
        (["method=full", "keep=0.8"], "method=full does not score samples", 2),
        (["dataset.path=/no/such.jsonl", "keep=0.8", "out=x.jsonl"], "no such file", 1),
        (["scorer=smolm2", "dataset.path=x", "keep=0.8", "out=x.jsonl"], "Did you mean 'smollm2'", 2),
    ],
)
def test_a_mistake_is_one_clear_message_and_a_non_zero_exit(arguments, message, status, tmp_path):
    done = suite(
        *arguments, module="suite.purify", SUITE_RUNS=str(tmp_path / "runs"), SUITE_CACHE=str(tmp_path / "cache")
    )
    assert done.returncode == status
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert not (tmp_path / "cache").exists()  # nothing was loaded or computed
