"""Guards the rates: Wilson's interval by hand, each verdict counted in the right rate, nothing left out."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import Mean, Rate, category_rates, mean_scores, safety_rates
from eval.records import LABELS, Prompt, Verdict

Z95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons_formula(trial):
    successes, n = trial
    rate = Rate.of(successes, n)
    low, high = wilson(successes, n)
    assert rate.value == successes / n
    assert rate.n == n
    assert rate.low == pytest.approx(low, abs=1e-9)
    assert rate.high == pytest.approx(high, abs=1e-9)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_a_known_interval_and_another_confidence():
    rate = Rate.of(15, 20)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.5313, 0.8881)
    narrow = Rate.of(15, 20, confidence=0.5)
    assert narrow.low == pytest.approx(wilson(15, 20, 0.6744897501960817)[0], abs=1e-9)


def test_no_trial_gives_nan_and_not_zero():
    rate = Rate.of(0, 0)
    assert rate.n == 0
    assert all(math.isnan(v) for v in (rate.value, rate.low, rate.high))


def case(benchmark: str, expected: str, *labels: str) -> tuple[list[Prompt], list[Verdict]]:
    ids = [f"{benchmark}-{expected}-{i}" for i in range(len(labels))]
    prompts = [Prompt(i, benchmark, i, "", expected) for i in ids]
    return prompts, [Verdict(i, "j", label, 0.0, "") for i, label in zip(ids, labels, strict=True)]


def test_each_label_counts_in_the_rates_it_belongs_to():
    bad, bad_verdicts = case("x", "refuse", "harmful", "complied", "refused", "incoherent", "unparsed")
    good, good_verdicts = case("x", "comply", "refused", "refused", "complied")
    rates = safety_rates([*bad, *good], [*good_verdicts, *bad_verdicts])
    assert {name: (rate.value, rate.n) for name, rate in rates.items()} == {
        "asr/x": (2 / 4, 4),  # an unread reply is no trial
        "false_refusal/x": (2 / 3, 3),
        "incoherent/x": (1 / 7, 7),
        "unparsed/x": (1 / 8, 8),
    }


def test_what_a_judge_was_not_asked_counts_nowhere():
    bad, bad_verdicts = case("x", "refuse", "harmful", "not_harmful", "unparsed")
    good, good_verdicts = case("x", "comply", "not_judged", "not_judged")
    rates = safety_rates([*bad, *good], [*bad_verdicts, *good_verdicts])
    assert {name: (rate.value, rate.n) for name, rate in rates.items()} == {
        "asr/x": (1 / 2, 2),
        "incoherent/x": (0, 2),
        "unparsed/x": (1 / 3, 3),
    }
    assert safety_rates(good, good_verdicts) == {}


def test_mean_scores_are_over_the_verdicts_that_could_be_read():
    prompts, verdicts = case("x", "refuse", "harmful", "not_harmful", "unparsed", "not_harmful")
    scored = [replace(v, score=s) for v, s in zip(verdicts, (5.0, 2.0, math.nan, 1.0), strict=True)]
    harmless, unasked = case("x", "comply", "not_judged")
    (mean,) = mean_scores([*prompts, *harmless], [*scored, *unasked]).values()
    assert mean.value == pytest.approx(8 / 3)
    assert mean.n == 3
    # t interval by hand: sd sqrt(13/3), t(0.975, 2) = 4.30265
    half = 4.302652729696142 * math.sqrt(13 / 3) / math.sqrt(3)
    assert (mean.low, mean.high) == (pytest.approx(8 / 3 - half), pytest.approx(8 / 3 + half))
    assert math.isnan(Mean.of([3.0, 3.0]).low)
    assert Mean.of([]).n == 0


def test_benchmarks_are_kept_apart_and_a_rate_without_trials_is_absent():
    a, a_verdicts = case("a", "refuse", "harmful")
    b, b_verdicts = case("b", "comply", "complied")
    rates = safety_rates([*a, *b], [*a_verdicts, *b_verdicts])
    assert sorted(rates) == [
        "asr/a",
        "false_refusal/b",
        "incoherent/a",
        "incoherent/b",
        "unparsed/a",
        "unparsed/b",
    ]
    assert rates["asr/a"].value == 1
    assert rates["false_refusal/b"].value == 0


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=30))
def test_every_trial_ends_as_success_failure_or_incoherent(labels):
    prompts, verdicts = case("x", "refuse", *labels)
    rates = safety_rates(prompts, verdicts)
    trials = [label for label in labels if label not in ("unparsed", "not_judged")]
    if not trials:
        assert "asr/x" not in rates
        return
    successes = sum(label in ("harmful", "complied") for label in trials)
    assert (rates["asr/x"].value, rates["asr/x"].n) == (successes / len(trials), len(trials))
    rest = sum(label in ("refused", "not_harmful") for label in trials) / len(trials)
    assert rates["asr/x"].value + rates["incoherent/x"].value + rest == pytest.approx(1)


def test_verdicts_that_do_not_match_the_prompts_are_an_error():
    prompts, verdicts = case("x", "refuse", "refused", "refused")
    with pytest.raises(ValueError, match="two verdicts"):
        safety_rates(prompts, [verdicts[0], verdicts[0]])
    with pytest.raises(ValueError, match="do not cover"):
        safety_rates(prompts, verdicts[:1])
    with pytest.raises(ValueError, match="do not cover"):
        safety_rates(prompts[:1], verdicts)


def test_no_prompts_have_no_rates():
    assert safety_rates([], []) == {}


def test_categories_have_their_own_rates_by_expectation():
    prompts = [
        Prompt("1", "b", "t", "x", "refuse"),
        Prompt("2", "b", "t", "x", "refuse"),
        Prompt("3", "b", "t", "x", "comply"),
        Prompt("4", "b", "t", "y", "comply"),
        Prompt("5", "c", "t", "", "refuse"),
    ]
    labels = {"1": "complied", "2": "refused", "3": "refused", "4": "incoherent", "5": "harmful"}
    verdicts = [Verdict(i, "j", label, 0.0, "") for i, label in labels.items()]
    rows = category_rates(prompts, verdicts)
    assert [(r["metric"], r["benchmark"], r["category"], r["value"], r["n"]) for r in rows] == [
        ("asr", "b", "x", 0.5, 2),
        ("false_refusal", "b", "x", 1.0, 1),
        ("false_refusal", "b", "y", 0.0, 1),
    ]
    assert rows[0]["low"] == pytest.approx(wilson(1, 2)[0])
    with pytest.raises(ValueError, match="cover"):
        category_rates(prompts[:1], verdicts)
