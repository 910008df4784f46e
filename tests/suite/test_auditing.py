"""Guards the judges' audit: agreement, kappa and accuracy by hand, and the keyword judge on labels of ours."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, cohen_kappa_score, precision_score, recall_score

from eval.agreement import accuracy, agreement, confusion
from eval.errors import DataError, KeelBenchError
from eval.records import Prompt, Verdict
from suite.auditing.labelled import load_labelled
from suite.auditing.plan import Columns, audit_plan
from suite.auditing.run import ANSWERS, category_rows, run

LABELLED = Path(__file__).parents[1] / "data" / "labelled_refusals.csv"
XSTEST = {"1_full_compliance": "complied", "2_full_refusal": "refused", "3_partial_refusal": "refused"}
COLUMNS = Columns(id="id", prompt="prompt", completion="completion", label="label", category="type")


def verdicts(*labels: str) -> list[Verdict]:
    return [Verdict(f"p{i}", "j", label, 0.0, "") for i, label in enumerate(labels)]


def test_agreement_is_on_success_and_leaves_out_what_either_could_not_judge():
    first = verdicts("harmful", "complied", "refused", "not_harmful", "unparsed", "harmful", "refused", "refused")
    second = verdicts("complied", "refused", "incoherent", "harmful", "harmful", "not_judged", "refused", "refused")
    found = agreement(first, second)
    assert (found.both, found.only_first, found.only_second, found.neither, found.left_out) == (1, 1, 1, 3, 2)
    assert (found.share.value, found.share.n) == (4 / 6, 6)
    kept = [0, 1, 2, 3, 6, 7]
    succeeded = [[v.label in ("harmful", "complied") for v in given] for given in (first, second)]
    expected = cohen_kappa_score(*[[given[i] for i in kept] for given in succeeded])
    assert found.kappa == pytest.approx(expected)
    assert found.kappa_low < found.kappa < found.kappa_high
    assert confusion(first, second)["refused", "refused"] == 2


def test_kappa_of_judges_that_always_say_the_same_is_undefined_and_not_one():
    found = agreement(verdicts("refused", "refused"), verdicts("refused", "not_harmful"))
    assert found.share.value == 1
    assert math.isnan(found.kappa)
    assert math.isnan(agreement([], []).kappa)


def test_kappa_of_judges_that_always_disagree_is_negative():
    found = agreement(verdicts("harmful", "refused"), verdicts("refused", "harmful"))
    assert found.kappa == pytest.approx(-1)


def test_verdicts_on_different_completions_are_no_agreement():
    with pytest.raises(ValueError, match="different completions"):
        agreement(verdicts("refused", "refused"), list(reversed(verdicts("refused", "refused"))))


def test_accuracy_is_scikit_learns_and_what_was_not_judged_is_left_out():
    truth = [True, True, True, False, False, False, True, False]
    judged = [True, False, True, False, True, False, None, None]
    found = accuracy(truth, judged)
    t, j = truth[:6], judged[:6]
    assert found.accuracy.value == accuracy_score(t, j)
    assert found.precision.value == precision_score(t, j)
    assert found.recall.value == recall_score(t, j)
    assert found.kappa == pytest.approx(cohen_kappa_score(t, j))
    assert (found.true_positive, found.false_positive, found.false_negative, found.true_negative) == (2, 1, 1, 2)
    assert found.left_out == 2
    assert accuracy([True], [None]).accuracy.n == 0


def test_rates_by_category():
    prompts = [Prompt(f"p{i}", "b", "?", "fraud" if i < 2 else "drugs", "refuse") for i in range(3)]
    rows = category_rows(prompts, {"guard": verdicts("harmful", "not_harmful", "unparsed")})
    by_category = {row["category"]: row for row in rows}
    assert (by_category["fraud"]["asr"], by_category["fraud"]["asr/n"]) == (0.5, 2)
    assert (by_category["drugs"]["asr/n"], by_category["drugs"]["unparsed"]) == (0, 1.0)


def audit(tmp_path, **changes):
    config = {
        "judges": {"keywords": {"name": "refusal_keywords"}},
        "run": None,
        "labelled": str(LABELLED),
        "columns": {"id": "id", "prompt": "prompt", "completion": "completion", "label": "label", "category": "type"},
        "labels": XSTEST,
        "compute": {},
        "paths": {"data": None, "cache": str(tmp_path / "cache"), "runs": "runs"},
    }
    return audit_plan({**config, **changes})


def test_the_keyword_judge_on_labelled_completions(tmp_path, capsys):
    """Counted by hand from the file; nothing of the judge was tuned on it."""
    run(audit(tmp_path), tmp_path)
    (row,) = pd.read_parquet(tmp_path / "accuracy.parquet").to_dict("records")
    rows = pd.read_csv(LABELLED)
    labels = rows["label"].map(XSTEST) == "refused"
    given = pd.read_parquet(tmp_path / "verdicts.parquet")
    assert list(given["prompt_id"]) == list(rows["id"])
    said = given["label"] == "refused"
    assert row["accuracy"] == accuracy_score(labels, said)
    assert row["precision"] == precision_score(labels, said)
    assert row["recall"] == recall_score(labels, said)
    assert row["accuracy/low"] < row["accuracy"] < row["accuracy/high"]
    wrong = set(rows["id"][labels != said])
    # It misses refusals without its phrases, and takes "I can't recommend it enough" for one.
    assert {"k10", "k17", "k36", "k55"} <= wrong
    assert "accuracy" in capsys.readouterr().out
    assert json.loads((tmp_path / "audit.json").read_text())["completions"] == 60


def test_labels_answer_one_question():
    labelled = load_labelled(LABELLED, COLUMNS, XSTEST)
    assert (labelled.question, sum(labelled.truth), len(labelled.truth)) == ("refusal", 24, 60)
    assert labelled.prompts[0].category == "homonyms"
    # A judge that only knows harm has no answer to whether something was refused.
    assert {ANSWERS["refusal"].get(label) for label in ("harmful", "not_harmful", "unparsed")} == {None}
    with pytest.raises(DataError, match="labels of refusal and of harm together"):
        load_labelled(LABELLED, COLUMNS, {**XSTEST, "3_partial_refusal": "harmful"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,prompt,completion,label\n1,a,b,maybe\n", r"line 2, field 'label': 'maybe' has no meaning; known: 1_full"),
        ("id,prompt,completion,label\n1,a,b,1_full_compliance\n1,c,d,2_full_refusal\n", "'1' stands for two rows"),
        ("id,prompt,label\n1,a,1_full_compliance\n", r"line 2, field 'completion': missing"),
        ("id,prompt,completion,label\n", "no row"),
    ],
)
def test_a_broken_labelled_file_is_told(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    columns = Columns(id="id", prompt="prompt", completion="completion", label="label", category=None)
    with pytest.raises(DataError, match=message):
        load_labelled(path, columns, XSTEST)


def test_numbers_as_ids_are_fine(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": 7, "prompt": "a", "completion": "b", "label": "2_full_refusal", "type": ""}\n')
    assert load_labelled(path, COLUMNS, XSTEST).prompts[0].id == "7"


def test_all_problems_are_told_before_a_model_is_loaded(tmp_path):
    from dataclasses import replace

    from tests.eval.judge_settings import judge

    guard = judge("llama_guard", model="/no/such/guard")
    far = judge("rubric", server="http://127.0.0.1:9/v1", key_variable=None)
    plan = replace(audit(tmp_path, labelled="/no/such.csv"), judges={"guard": guard, "far": far})
    with pytest.raises(KeelBenchError) as caught:
        run(plan, tmp_path)
    told = str(caught.value).splitlines()
    assert len(told) == 3
    for part in ("/no/such.csv", "judges.guard: model folder '/no/such/guard'", "judges.far: the judge's server"):
        assert part in str(caught.value)


def test_an_audit_is_of_a_run_or_of_labels(tmp_path):
    with pytest.raises(KeelBenchError, match="either run="):
        audit(tmp_path, labelled=None)
    with pytest.raises(KeelBenchError, match=r"labels\.x='fine': one of refused"):
        audit(tmp_path, labels={"x": "fine"})
