"""Guards samples and scores: ids by content, no score that is not a number, ranks broken by id."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.records import Sample, Scores, response_lengths
from eval.records import content_id


def test_a_samples_id_is_its_content_and_nothing_else():
    sample = Sample.of("do", "done", input="this", source="here", category="x")
    assert sample.id == content_id("do", "this", "done")
    assert sample.id == Sample.of("do", "done", input="this", source="elsewhere").id
    assert len({sample.id, Sample.of("do", "done").id, Sample.of("done", "do", input="this").id}) == 3


def test_a_prompt_is_the_instruction_and_on_the_next_line_its_input():
    assert Sample.of("do", "done").prompt == "do"
    assert Sample.of("do", "done", input="this\nand that").prompt == "do\nthis\nand that"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_is_refused_and_its_sample_named(bad):
    with pytest.raises(ValueError, match="1 scores are not finite, the first of sample b"):
        Scores(("a", "b"), np.array([0.5, bad]))


def test_ids_that_repeat_and_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="ids repeat"):
        Scores(("a", "a"), np.zeros(2))
    with pytest.raises(ValueError, match=r"score has shape \(3,\), expected \(2,\)"):
        Scores(("a", "b"), np.zeros(3))
    with pytest.raises(ValueError, match=r"part has shape \(2, 1\), expected \(2,\)"):
        Scores(("a", "b"), np.zeros(2), {"part": np.zeros((2, 1))})


def test_ranking_goes_from_most_to_least_harmful_and_ties_go_by_id():
    scores = Scores(("d", "a", "c", "b"), np.array([1.0, 1.0, 2.0, -3.0]))
    assert [scores.ids[i] for i in scores.ranking()] == ["c", "a", "d", "b"]
    assert scores.ranks().tolist() == [3, 2, 1, 4]


IDS = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), unique=True, max_size=20)


VALUES = st.lists(st.sampled_from([-1.0, -0.0, 0.0, 2.5]), min_size=20, max_size=20)


@given(IDS, VALUES)
def test_ranks_agree_with_a_plain_sort_whatever_the_order_of_the_rows(ids, values):
    wanted = [i for _, i in sorted(zip(values, ids, strict=False), key=lambda pair: (-pair[0], pair[1]))]
    for order in (list(range(len(ids))), list(range(len(ids)))[::-1]):
        scores = Scores(tuple(ids[i] for i in order), np.array([values[i] for i in order], dtype=np.float64))
        assert [scores.ids[i] for i in scores.ranking()] == wanted
        assert dict(zip(scores.ids, scores.ranks().tolist(), strict=True)) == {i: n for n, i in enumerate(wanted, 1)}


def test_response_lengths_count_characters():
    assert response_lengths([Sample.of("x", "four"), Sample.of("y", "é雨")]).tolist() == [4.0, 2.0]
