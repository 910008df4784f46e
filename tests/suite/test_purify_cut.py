"""From scores to a decision: hand-worked cuts and votes, against plain definitions on random scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import CapacityError, KeelBenchError
from suite.purify.cut import CutSpec, decide

IDS = np.array([b"a", b"b", b"c", b"d", b"e"])
ONE = np.array([0.1, 0.9, 0.5, 0.5, 0.3])
TWO = np.array([9.0, 8.0, 1.0, 2.0, 3.0])


def gone(decision) -> str:
    return b"".join(IDS[decision.dropped]).decode()


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"keep": 0.8}, "b"),
        ({"keep": 0.6}, "bc"),
        ({"drop": 3}, "bcd"),
        ({"threshold": 0.5}, "b"),
        ({"threshold": 0.3}, "bcd"),
    ],
)
def test_one_methods_cut(spec, wanted):
    found = decide(IDS, {"m": ONE}, "mean_rank", CutSpec(**spec))
    assert gone(found) == wanted
    assert found.rank.tolist() == [5, 1, 2, 3, 4]
    assert found.at == min(ONE[found.dropped])


def test_votes_by_hand():
    """ONE ranks b c d e a, TWO ranks a b e d c; two rows to go."""
    both = {"one": ONE, "two": TWO}
    # Mean places: a (5 + 1), b (1 + 2), c (2.5 + 5), d (2.5 + 4), e (4 + 3): b first, a second.
    assert gone(decide(IDS, both, "mean_rank", CutSpec(drop=2))) == "ab"
    assert gone(decide(IDS, both, "union", CutSpec(drop=2))) == "abc"
    assert gone(decide(IDS, both, "intersection", CutSpec(drop=2))) == "b"
    assert decide(IDS, both, "union", CutSpec(drop=2)).ranks["two"].tolist() == [1, 2, 5, 4, 3]


@given(st.integers(2, 40), st.integers(1, 3), st.data())
def test_union_and_intersection_are_those_of_the_single_cuts(n, methods, data):
    values = st.lists(st.integers(0, 9), min_size=n, max_size=n)
    scores = {str(m): np.array(data.draw(values), dtype=float) for m in range(methods)}
    ids = np.array([f"{i:04d}" for i in data.draw(st.permutations(range(n)))], dtype="S16")
    k = data.draw(st.integers(1, n - 1))
    single = [decide(ids, {"m": s}, "union", CutSpec(drop=k)).dropped for s in scores.values()]
    assert all(s.sum() == k for s in single)
    for combine, join in (("union", np.logical_or), ("intersection", np.logical_and)):
        wanted = join.reduce(single)
        if wanted.all():
            with pytest.raises(CapacityError, match="nothing is left to keep"):
                decide(ids, scores, combine, CutSpec(drop=k))
            continue
        found = decide(ids, scores, combine, CutSpec(drop=k))
        assert (found.dropped == wanted).all()
        # The combined ranking begins with what it drops.
        assert set(found.rank[found.dropped]) == set(range(1, int(wanted.sum()) + 1))
    mean = decide(ids, scores, "mean_rank", CutSpec(drop=k))
    assert mean.dropped.sum() == k


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of keep .*none is given"),
        ({"keep": 0.5, "drop": 3}, "keep and drop"),
        ({"keep": 1.0}, "a share between 0 and 1"),
        ({"keep": 80.0}, "a share between 0 and 1 .*drop=<n>"),
        ({"drop": 0}, "at least 1"),
    ],
)
def test_a_cut_that_means_nothing_is_refused(options, message):
    with pytest.raises(KeelBenchError, match=message):
        CutSpec(**options)


def test_nothing_to_keep_and_everything_kept():
    with pytest.raises(CapacityError, match="drop=5 of 5 scored rows leaves nothing"):
        CutSpec(drop=5).size(5)
    with pytest.raises(CapacityError, match=r"keep=0\.999 of 5 scored rows keeps everything"):
        CutSpec(keep=0.999).size(5)
    with pytest.raises(CapacityError, match=r"all 5 rows would be dropped \(the lowest score is 0.1\)"):
        decide(IDS, {"m": ONE}, "union", CutSpec(threshold=0.0))
    everything = decide(IDS, {"m": ONE}, "union", CutSpec(threshold=2.0))
    assert not everything.dropped.any()
    assert np.isnan(everything.at)


def test_a_threshold_needs_a_scale():
    with pytest.raises(KeelBenchError, match="no common scale"):
        decide(IDS, {"one": ONE, "two": TWO}, "union", CutSpec(threshold=0.5))
    # Places from the top as shares: a (1 + 5)/10, b (5 + 4)/10, c 4.5/10, d 5.5/10, e 5/10.
    assert gone(decide(IDS, {"one": ONE, "two": TWO}, "mean_rank", CutSpec(threshold=0.58))) == "ab"
