"""Guards the columns that judges add to a record: means on their own scale, costs, and later judges kept apart."""

import json
from dataclasses import replace

from eval.metrics import Mean, Rate
from eval.records import Usage, Verdicts
from suite.records import read_row, usage_columns, write_record
from suite.results import collect, means, metrics, print_comparison, show_mean
from suite.stages.judging import total_usage
from tests.suite.fake_sweep import DEMO, fake_sweep


def test_a_mean_and_a_later_judge_in_the_comparison(tmp_path, capsys):
    sweep = fake_sweep(tmp_path, DEMO[:1])
    path = sweep / "0" / "record.json"
    row = json.loads(path.read_text())
    row |= {"gpt_score/b": 3.25, "gpt_score/b/n": 8, "gpt_score/b/ci_low": 2.5, "gpt_score/b/ci_high": 4.0}
    row |= {"judged/rubric-1/asr/b": 0.5, "judged/rubric-1/asr/b/n": 8, "judged/rubric-1/asr/b/low": 0.2,
            "judged/rubric-1/gpt_score/b": 5.0, "judged/rubric-1/gpt_score/b/ci_low": None}  # fmt: skip
    path.write_text(json.dumps(row))
    rows = collect(sweep)
    assert means(rows) == ["gpt_score/b"]
    assert not any(name.startswith("judged/") for name in metrics(rows))
    assert show_mean(rows[0], "gpt_score/b") == "3.25 [2.50, 4.00]"
    assert show_mean({"gpt_score/b": 5.0}, "gpt_score/b") == "5.00"
    assert show_mean({}, "gpt_score/b") == "–"
    print_comparison(rows)
    assert "3.25 [2.50, 4.00]" in capsys.readouterr().out


def test_a_score_of_nought_everywhere_is_a_column_and_no_incoherent_answer_is_none():
    rates = ("utility/gsm8k", "incoherent/b", "asr/b")
    rows = [{name: 0.0, f"{name}/low": 0.0} for name in rates]
    assert metrics(rows) == ["asr/b", "utility/gsm8k"]


def test_means_and_costs_are_flat_columns(tmp_path):
    from suite.records import RunRecord
    from suite.storage.cache import Entry

    record = RunRecord(
        run_id="x", sweep="s", finished="", label="l", model="m", aligned="none", dataset="d", method="none",
        options={}, regularizer="none", selection="-",
        n_samples=1, n_selected=0, seed=1, judge="rubric", judge_version="1, m",
        backend="hf", max_new_tokens=8, prompt_limit=None, dtype="bfloat16", device="cpu",
        rates={"asr/b": Rate.of(1, 4)}, means={"gpt_score/b": Mean.of([1.0, 5.0]), "gpt_score/c": Mean.of([2.0])},
        usage=Usage(4, 100, 20, 0.5), entries=(Entry("verdicts", "k", tmp_path),),
    )  # fmt: skip
    write_record(tmp_path, record)
    row = read_row(tmp_path)
    assert row is not None
    assert (row["gpt_score/b"], row["gpt_score/b/n"], row["gpt_score/c/ci_low"]) == (3.0, 2, None)
    assert (row["judge/requests"], row["judge/prompt_tokens"], row["judge/dollars"]) == (4, 100, 0.5)
    assert "usage" not in row
    assert "means" not in row
    write_record(tmp_path, replace(record, usage=Usage()))
    assert not any(k.startswith("judge/") for k in read_row(tmp_path) or {})


def test_a_price_is_told_only_where_all_of_it_is_known():
    known, unknown = Verdicts(usage=Usage(2, 10, 1, 0.25)), Verdicts(usage=Usage(3, 20, 2, None))
    assert total_usage({"a": known, "b": known}) == Usage(4, 20, 2, 0.5)
    assert total_usage({"a": known, "b": unknown}) == Usage(5, 30, 3, None)
    assert total_usage({"a": known, "b": Verdicts()}) == Usage(2, 10, 1, 0.25)
    assert usage_columns(total_usage({})) == {}
