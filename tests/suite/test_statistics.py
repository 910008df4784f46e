"""The statistics against libraries, against plain enumeration, and against what they promise of errors."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar

from suite.report.load import load_sweep
from suite.statistics.compare import ALL_PAIRS, compare
from suite.statistics.outcomes import points_of
from suite.statistics.paired import (
    bootstrap_intervals,
    exact_p,
    holm,
    least_discordant,
    smallest_difference,
)
from tests.suite.fake_sweep import DEMO, Point, fake_sweep

settings.register_profile("few", deadline=None, max_examples=40)
settings.load_profile("few")

signs = st.integers(-1, 1)
one_seed = arrays(np.int8, st.tuples(st.just(1), st.integers(1, 40)), elements=signs)
few_seeds = arrays(np.int8, st.tuples(st.integers(1, 3), st.integers(1, 10)), elements=signs)


@given(one_seed)
def test_with_one_seed_the_test_is_mcnemars(differences):
    more, fewer = int((differences > 0).sum()), int((differences < 0).sum())
    expected = mcnemar([[0, more], [fewer, 0]], exact=True).pvalue
    assert exact_p(differences) == pytest.approx(expected if more + fewer else 1.0, abs=1e-12)


@given(few_seeds)
def test_with_several_it_is_the_enumeration_of_all_signs(differences):
    sums = differences.sum(axis=0)
    flips = [abs(np.dot(sums, flip)) for flip in itertools.product((-1, 1), repeat=len(sums))]
    expected = np.mean([f >= abs(sums.sum()) for f in flips])
    assert exact_p(differences) == pytest.approx(expected, abs=1e-12)


@given(few_seeds)
def test_p_does_not_depend_on_direction_or_order(differences):
    shuffled = differences[:, np.random.default_rng(0).permutation(differences.shape[1])]
    assert exact_p(differences) == pytest.approx(exact_p(-shuffled), abs=1e-12)


@given(arrays(np.int8, st.tuples(st.just(1), st.integers(5, 40)), elements=signs), st.integers(2, 4))
def test_repeating_a_seed_adds_no_evidence(differences, times):
    """The same answers again must not count as more prompts would."""
    assert exact_p(np.repeat(differences, times, axis=0)) == pytest.approx(exact_p(differences), abs=1e-12)


def test_the_exact_test_keeps_its_level_with_prompts_that_answer_alike_over_seeds():
    """Under the null, p below 0.05 in at most 5 % of experiments; a test that counts seeds as prompts does not."""
    dice = np.random.default_rng(1)
    wrong = naive = 0
    for _ in range(400):
        hard = dice.normal(size=60)  # a prompt's leaning, the same under every seed, another for each point
        mine, theirs = (
            (dice.uniform(size=(3, 60)) < 1 / (1 + np.exp(-3 * (hard + dice.normal(size=60))))) for _ in "ab"
        )
        differences = mine.astype(np.int8) - theirs.astype(np.int8)
        wrong += exact_p(differences) < 0.05
        naive += exact_p(differences.reshape(1, -1)) < 0.05
    assert wrong / 400 < 0.08
    assert naive / 400 > 0.12


def test_with_one_seed_the_bootstrap_is_the_ordinary_one():
    differences = np.random.default_rng(0).choice([-1, 0, 1], size=(1, 120), p=[0.1, 0.6, 0.3])
    ((low, high),) = bootstrap_intervals([differences], seed=3)
    usual = bootstrap((differences[0],), np.mean, method="percentile", n_resamples=10_000, rng=4).confidence_interval
    assert low == pytest.approx(usual.low, abs=0.02)
    assert high == pytest.approx(usual.high, abs=0.02)


def test_seeds_that_disagree_widen_the_interval():
    alike = np.zeros((4, 100), dtype=np.int8)
    alike[:, :40] = 1
    apart = alike.copy()
    apart[:2], apart[2:, :] = 0, 1
    apart[2:, 80:] = 0  # the same mean, from two seeds alone
    (narrow,), (wide,) = bootstrap_intervals([alike]), bootstrap_intervals([apart])
    assert alike.mean() == apart.mean()
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


@settings(deadline=None)
@given(few_seeds)
def test_intervals_hold_to_their_range_and_turn_with_the_sign(differences):
    ((low, high),) = bootstrap_intervals([differences], resamples=200)
    assert -1 <= low <= high <= 1
    ((turned_low, turned_high),) = bootstrap_intervals([-differences], resamples=200)
    assert (turned_low, turned_high) == (pytest.approx(-high, abs=1e-5), pytest.approx(-low, abs=1e-5))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_stricter_than_none_and_milder_than_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, corrected in zip(p_values, adjusted, strict=True):
        assert p - 1e-12 <= corrected <= min(1, len(p_values) * p) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(np.array(adjusted)[order]))
    # The step-down rule itself, by hand.
    running, expected = 0.0, {}
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        expected[place] = running
    assert adjusted == pytest.approx([expected[i] for i in range(len(p_values))], abs=1e-12)


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.05 / 12])
def test_the_least_discordant_number_is_the_border_of_the_exact_test(alpha):
    b = least_discordant(alpha)
    assert exact_p(np.ones((1, b), dtype=np.int8)) <= alpha
    assert exact_p(np.ones((1, b - 1), dtype=np.int8)) > alpha


def test_the_smallest_difference_is_found_as_often_as_it_says():
    """Simulated: experiments whose true difference is the one named find it in about 80 of 100."""
    n, share = 200, 0.3
    seen = np.zeros((1, n), dtype=np.int8)
    seen[0, : int(n * share) // 2], seen[0, int(n * share) // 2 : int(n * share)] = 1, -1
    delta = smallest_difference(seen)
    assert 0.05 < delta < 0.2
    dice = np.random.default_rng(2)
    chances = [share / 2, 1 - share - delta, share / 2 + delta]
    found = [exact_p(dice.choice([-1, 0, 1], size=(1, n), p=chances)) < 0.05 for _ in range(1000)]
    assert 0.72 < np.mean(found) < 0.86  # the exact test gives some power away


@given(one_seed)
def test_the_smallest_difference_is_possible_or_said_not_to_be(differences):
    n = differences.shape[1]
    delta = smallest_difference(differences)
    assert delta == math.inf or least_discordant() / n <= delta <= 1
    if n < least_discordant():
        assert delta == math.inf


def compared(tmp_path, *points):
    return compare(points_of(load_sweep(fake_sweep(tmp_path, points))[0]), resamples=500)


def test_a_sweep_is_compared_with_random_and_counts_agree_with_the_tables(tmp_path):
    points = [replace(p, seed=s) for p in DEMO[1:] for s in (1, 2)] + [DEMO[0]]
    sweep = fake_sweep(tmp_path, tuple(points))
    runs = load_sweep(sweep)[0]
    found = compare(points_of(runs), resamples=500)
    assert found.references == ["random"]
    assert len(found.differences) == 6 * 2  # all pairs of four points, two rates
    assert not found.not_compared
    d = found.against_reference("larf-top", "asr/mini_harmful")
    assert (d.prompts, d.seeds) == (80, 2)
    mean = {n: np.mean([r.row["asr/mini_harmful"] for r in runs if r.name == n]) for n in ("larf-top", "random")}
    assert d.difference == pytest.approx(mean["larf-top"] - mean["random"])
    assert d.difference == pytest.approx((d.more - d.fewer) / 160)
    assert d.survives  # 70 % against 30 %
    untuned = found.against_reference("none", "asr/mini_harmful")
    assert untuned.seeds == 2  # one run stands for every seed


def test_equal_points_rarely_survive(tmp_path):
    """Twelve copies of one point, invented apart: nothing to be found, and nothing found."""
    points = [Point(f"copy-{i}", "random", "top", asr=0.4, over=0.3) for i in range(12)]
    found = compared(tmp_path, *points)
    assert len(found.differences) == 11 * 2  # more than five points: each with the reference alone
    assert len(points) > ALL_PAIRS
    assert not any(d.survives for d in found.differences)


def test_runs_measured_apart_are_not_compared_and_the_report_says_why(tmp_path):
    from suite.report import write_report

    found = compared(tmp_path / "a", DEMO[1], replace(DEMO[2], tokens=512))
    assert found.differences == []
    (pair,) = found.not_compared
    assert pair.reasons == ("max_new_tokens: 128 and 512",)
    page = write_report(tmp_path / "a" / "2025-01-31_12-00-00").read_text()
    assert "Not compared" in page
    assert "max_new_tokens: 128 and 512" in page


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [("judge", "llama_guard", "judge"), ("fingerprint/template", "abc", "chat template"),
     ("backend", "vllm", "back end"), ("decoding", "greedy, adapters merged", "decoding"),
     ("gpus", 8, "number of GPUs"), ("dtype", "float16", "dtype"), ("device", "cuda", "device"),
     ("judge_version", "0", "judge's version"), ("fingerprint/judge", "abc", "judge's settings"),
     ("max_new_tokens", 7, "max_new_tokens")],
)  # fmt: skip
def test_every_condition_of_measuring_counts(tmp_path, column, value, told):
    runs = load_sweep(fake_sweep(tmp_path, DEMO[1:3]))[0]
    runs[1].row[column] = value
    found = compare(points_of(runs), resamples=100)
    assert found.differences == []
    assert told in found.not_compared[0].reasons[0]


@pytest.mark.parametrize(
    ("column", "value"),
    [("fingerprint/code", "abc"), ("version/torch", "2.12.0"), ("version/vllm", "0.32.0"), ("fingerprint/data", "abc"),
     ("revision/model", "c" * 40), ("prompt_limit", 7), ("judge_version", "0"), ("dtype", "float16"), ("gpus", 8),
     ("device", "cuda"), ("backend", "vllm"), ("decoding", "greedy, adapters merged"), ("max_new_tokens", 7),
     ("fingerprint/template", "abc"), ("fingerprint/judge", "abc"), ("rounding", "attention sdpa")],
)  # fmt: skip
def test_the_ledger_tells_what_differs_between_rows(tmp_path, column, value):
    """Whatever matters and is not equal stands below the table, tested or not."""
    from suite.report import write_report
    from suite.results import conditions

    sweep = fake_sweep(tmp_path, DEMO[1:3])
    assert conditions([run.row for run in load_sweep(sweep)[0]]) == {}
    file = sweep / "1" / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {column: value}))
    (told,) = conditions([run.row for run in load_sweep(sweep)[0]]).items()
    assert told[0] == column
    assert str(value) in told[1]
    if column == "version/torch":
        page = write_report(sweep).read_text()
        assert "Not equal across rows" in page
        assert f"{column}: {value}, " in page


def test_the_ledger_tells_where_batches_shrank(tmp_path):
    from suite.results import conditions

    rows = [{"shrunk": "[]"}, {"shrunk": '[{"stage": "scores"}]'}, {}]
    assert conditions(rows)["shrunk"] == ["nothing", "some batches"]
    assert "shrunk" not in conditions([rows[0], rows[2]])


def test_settings_that_only_round_are_told_in_words():
    from suite.conditions import rounding
    from tests.helpers import plan

    def told(*overrides: str) -> str:
        made = plan(None, *overrides)
        return rounding(made.model, made.compute, made.backend)

    plain = told()
    assert plain.startswith("attention ")
    assert "4096/2048/" in plain
    changes = ("model.attention=flash_attention_2", "compute.scoring_tokens_per_batch=7", "compute.threads=3",
               "compute.training_tokens_per_pass=9", "compute.scoring_processes=auto", "compute.deterministic=true",
               "compute.training_processes=2", "backend.tokens_per_batch=5")  # fmt: skip
    assert len({plain, *map(told, changes)}) == 1 + len(changes)


def test_other_prompts_and_other_seeds_are_not_paired(tmp_path):
    points = points_of(load_sweep(fake_sweep(tmp_path, (DEMO[1], replace(DEMO[2], seed=7))))[0])
    reasons = {pair.reasons for pair in compare(points, resamples=100).not_compared}
    assert reasons == {("no seed in common",)}
    points[1].answers[42] = points[1].answers.pop(7)
    answers = points[1].answers[42]["asr/mini_harmful"]
    points[1].answers[42]["asr/mini_harmful"] = replace(answers, prompts=("other", *answers.prompts[1:]))
    found = compare(points, resamples=100)
    assert [(p.rate, p.reasons) for p in found.not_compared] == [("asr/mini_harmful", ("not the same prompts",))]
    assert [d.rate for d in found.differences] == ["false_refusal/mini_overrefusal"]
