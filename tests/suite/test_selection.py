"""Cuts through a ranking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.records import Scores
from eval.errors import CapacityError
from suite.plan import SelectionSpec
from suite.stages.selection import select


def scores(values: list[float]) -> Scores:
    return Scores(tuple(f"id{i:03d}" for i in range(len(values))), np.array(values, dtype=float))


def cut(name: str, values: list[float], **size) -> list[str]:
    return select(SelectionSpec(name=name, **size), scores(values))


def test_top_bottom_and_drop_top_cut_where_they_say():
    values = [0.1, 0.9, 0.5, 0.7]
    assert cut("top", values, k=2) == ["id001", "id003"]
    assert cut("bottom", values, k=1) == ["id000"]
    assert cut("drop_top", values, k=1) == ["id003", "id002", "id000"]
    assert cut("all", values) == ["id001", "id003", "id002", "id000"]
    assert cut("top", values, fraction=0.5) == ["id001", "id003"]


@pytest.mark.parametrize(("name", "k"), [("top", 5), ("bottom", 5), ("drop_top", 5), ("drop_top", 4)])
def test_a_cut_that_does_not_fit_is_refused(name, k):
    with pytest.raises(CapacityError):
        cut(name, [1.0, 2.0, 3.0, 4.0], k=k)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=30), st.data())
def test_top_and_drop_top_partition_the_data_and_ties_go_by_id(values, data):
    k = data.draw(st.integers(1, len(values) - 1))
    top, rest = cut("top", values, k=k), cut("drop_top", values, k=k)
    assert sorted(top + rest) == sorted(scores(values).ids)
    assert cut("bottom", values, k=len(values) - k) == rest
    by_id = dict(zip(scores(values).ids, values, strict=True))
    assert [(-by_id[i], i) for i in top + rest] == sorted((-v, i) for i, v in by_id.items())
