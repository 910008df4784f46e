"""``python -m suite.diversity``: its plan, its rows, and the paper's claim on real data."""

import pandas as pd
import pytest

from eval.errors import DataError, UnknownNameError
from suite.diversity import diversity_plan, run
from suite.papers.compare import compare, sweep_rows
from suite.papers.published import table
from tests.helpers import compose
from tests.integration.test_cli import suite


def plan(*overrides):
    return diversity_plan(compose(["tracking=disabled", *overrides], name="diversity"))


def test_rows_are_of_responses_and_of_both(tmp_path):
    run(plan(), tmp_path, "s")
    rows = pd.read_parquet(tmp_path / "diversity.parquet").set_index("text")
    assert list(rows.index) == ["response", "query and response"]
    assert set(rows.texts) == {430}
    assert rows.tokens["response"] < rows.tokens["query and response"]
    assert set(rows.segment) == {50}


def test_safety_answers_are_less_diverse_than_general_ones_in_sets_of_equal_size(tmp_path, shared_data):
    places = {
        "general": ["dataset=alpaca", "dataset.limit=2000", f"paths.data={shared_data}"],
        "safety": ["dataset=jsonl", f"dataset.path={shared_data / 'safety_instructions' / 'train.jsonl'}",
                   "dataset.limit=2000"],
    }  # fmt: skip
    rows = {}
    for name, overrides in places.items():
        (tmp_path / name).mkdir()
        run(plan(*overrides), tmp_path / name, "s")
        rows[name] = pd.read_parquet(tmp_path / name / "diversity.parquet").set_index("text").loc["response"]
    # Not MSTTR: within 50 words these refusals repeat little; they repeat each other (docs/papers.md).
    for metric in ("entropy_1", "entropy_2", "entropy_3", "distinct_2", "distinct_3"):
        assert rows["safety"][metric] < rows["general"][metric], metric
    joined = compare(table("vcl_table1"), sweep_rows(table("vcl_table1"), tmp_path))
    ours = [r for r in joined if r["ours"] is not None]
    assert {(r["dataset"], r["quantity"]) for r in ours} == {
        (d, q) for d in ("alpaca", "jsonl") for q in table("vcl_table1").columns
    }


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["+segments=3"], UnknownNameError, "Did you mean 'segment'"),
        (["dataset=jsonl", "dataset.path=/no/such.jsonl"], DataError, "no such file"),
    ],
)
def test_mistakes(overrides, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run(plan(*overrides), tmp_path, "s")


def test_the_command_prints_one_table_for_all_points(tmp_path):
    done = suite(
        "-m", "dataset=mini", "segment=20,50", "tracking=offline", module="suite.diversity", SUITE_RUNS=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("query and response") == 2
    (sweep,) = tmp_path.iterdir()
    assert len(list(sweep.glob("*/diversity.parquet"))) == 2
    assert suite("dataset=alpacca", module="suite.diversity", SUITE_RUNS=str(tmp_path)).returncode == 2
