"""Guards the random baseline: seeded, uniform, and the same for a sample wherever it stands."""

import numpy as np
import pytest
from scipy.stats import kstest

from baselines import get_method
from baselines.records import Sample

SAMPLES = [Sample.of(f"question {i}", f"answer {i}") for i in range(2000)]


def score(samples, seed: int):
    return get_method("random")().score(None, None, samples, seed=seed)


def test_a_seed_always_gives_the_same_scores_and_another_seed_others():
    assert np.array_equal(score(SAMPLES, 1).score, score(SAMPLES, 1).score)
    correlation = np.corrcoef(score(SAMPLES, 1).score, score(SAMPLES, 2).score)[0, 1]
    assert abs(correlation) < 0.1


def test_scores_belong_to_samples_and_not_to_rows():
    forward, backward = score(SAMPLES, 5), score(SAMPLES[::-1], 5)
    assert forward.ids == tuple(s.id for s in SAMPLES)
    assert dict(zip(forward.ids, forward.score, strict=True)) == dict(zip(backward.ids, backward.score, strict=True))
    assert len(set(forward.score)) == len(SAMPLES)


@pytest.mark.parametrize("seed", [0, 42])
def test_scores_are_uniform_over_zero_to_one(seed):
    values = score(SAMPLES, seed).score
    assert values.min() >= 0
    assert values.max() < 1
    assert kstest(values, "uniform").pvalue > 0.001


def test_every_sample_is_as_likely_to_be_chosen_as_any_other():
    few = SAMPLES[:10]
    counts = np.zeros(10)
    for seed in range(600):
        counts[score(few, seed).ranking()[:3]] += 1
    # 600 draws of 3 in 10: 180 a sample, standard deviation 11.
    assert counts.sum() == 1800
    assert np.abs(counts - 180).max() < 50


def test_it_needs_a_seed_and_no_model():
    cls = get_method("random")
    assert (cls.uses_model, cls.uses_seed, cls.scores, cls.fine_tunes) == (False, True, True, True)
    assert score([], 3).ids == ()
