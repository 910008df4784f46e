"""Moments, directions and dimensions against numpy and against data whose answer is known."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import CapacityError, KeelBenchError
from eval.geometry.covariance import StreamingCovariance
from eval.geometry.dimension import two_nn
from eval.geometry.principal import Principal, alignment, principal_directions

RANDOM = np.random.default_rng(0)


def streamed(rows, sizes):
    moments, start = StreamingCovariance(rows.shape[1]), 0
    for size in sizes:
        moments.update(rows[start : start + size])
        start += size
    moments.update(rows[start:])
    return moments


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 1000))
def test_batches_of_any_size_give_numpys_mean_and_covariance(sizes, seed):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(40, 5)) @ random.normal(size=(5, 5)) + 3
    moments = streamed(rows, sizes)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows, rowvar=False), rtol=1e-10, atol=1e-12)


def test_a_mean_far_larger_than_the_deviations_loses_no_digits():
    """As in residual streams, where a few entries are thousands of times larger than the rest."""
    deviations = RANDOM.normal(size=(1000, 4))
    moments = streamed(1e7 + deviations, [1] * 500)
    np.testing.assert_allclose(moments.covariance(), np.cov(deviations, rowvar=False), rtol=1e-6, atol=1e-7)


def test_memory_does_not_grow_with_the_number_of_rows():
    def peak(batches):
        moments = StreamingCovariance(64)
        tracemalloc.start()
        for _ in range(batches):
            moments.update(RANDOM.normal(size=(50, 64)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(10), peak(200)
    assert many < 1.2 * few


def test_wrong_rows_are_refused():
    moments = StreamingCovariance(3)
    with pytest.raises(KeelBenchError, match="no covariance"):
        moments.covariance()
    with pytest.raises(KeelBenchError, match="expected \\[n, 3\\]"):
        moments.update(np.zeros((2, 4)))
    with pytest.raises(KeelBenchError, match="not finite"):
        moments.update([[0, 1, np.inf]])
    moments.update(np.zeros((0, 3)))
    assert moments.count == 0


def test_principal_directions_are_those_of_the_singular_value_decomposition():
    rows = RANDOM.normal(size=(200, 12)) * np.linspace(1, 5, 12)
    found = principal_directions(rows.mean(axis=0), np.cov(rows, rowvar=False), 4)
    centred = rows - rows.mean(axis=0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * right[:4], axis=1)), 1, rtol=1e-9)
    np.testing.assert_allclose(found.variances, singular[:4] ** 2 / 199, rtol=1e-9)
    np.testing.assert_allclose(found.explained, singular[:4] ** 2 / (singular**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(found.project(rows).var(axis=0, ddof=1), found.variances, rtol=1e-9)
    assert (np.take_along_axis(found.directions, np.abs(found.directions).argmax(1)[:, None], 1) > 0).all()


def test_directions_that_do_not_exist_are_refused():
    with pytest.raises(CapacityError, match="5 principal directions of states with 3"):
        principal_directions(np.zeros(3), np.eye(3), 5)
    with pytest.raises(KeelBenchError, match="all hidden states are equal"):
        principal_directions(np.zeros(3), np.zeros((3, 3)), 1)


def along(*directions):
    unit = np.array(directions, dtype=float)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return Principal(np.zeros(unit.shape[1]), unit, np.ones(len(unit)), float(len(unit)))


def test_alignment_is_the_cosine_of_one_component_whatever_its_sign():
    a, b = along([1, 0, 0], [0, 1, 0]), along([-1, 0, 0], [0, 1, 1])
    assert alignment(a, b, 1) == 1
    assert alignment(a, b, 2) == pytest.approx(np.sqrt(0.5))
    assert alignment(b, a, 2) == alignment(a, b, 2)
    assert alignment(a, along([0, 1, 0]), 1) == 0
    with pytest.raises(CapacityError, match="component 3"):
        alignment(a, b, 3)
    with pytest.raises(KeelBenchError, match="of 3 and of 2 entries"):
        alignment(a, along([1, 0]), 1)


def plain_two_nn(points, discarded):
    ratios = []
    for i in range(len(points)):
        first, second = sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[:2]
        ratios.append(second / first)
    ratios.sort()
    pairs = [(np.log(m), -np.log(1 - i / (len(ratios) + 1))) for i, m in enumerate(ratios, start=1)]
    pairs = pairs[: int(len(ratios) * (1 - discarded))]
    return sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)


@pytest.mark.parametrize("discarded", [0.0, 0.1])
def test_two_nn_against_plain_loops(discarded):
    points = RANDOM.normal(size=(120, 3))
    assert two_nn(points, discarded=discarded).value == pytest.approx(plain_two_nn(points, discarded), rel=1e-9)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5])  # from 8 on the patch's border makes TwoNN's estimate small
def test_two_nn_finds_the_dimension_of_a_flat_patch_in_many_dimensions(dimension):
    random = np.random.default_rng(dimension)
    embedding = np.linalg.qr(random.normal(size=(50, dimension)))[0]
    points = random.uniform(size=(4000, dimension)) @ embedding.T + 7
    assert two_nn(points).value == pytest.approx(dimension, rel=0.08)


def test_two_nn_finds_the_dimension_of_curved_surfaces():
    random = np.random.default_rng(1)
    sphere = random.normal(size=(4000, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert two_nn(sphere).value == pytest.approx(2, rel=0.06)
    angle = 1.5 * np.pi * (1 + 2 * random.uniform(size=4000))
    roll = np.stack([angle * np.cos(angle), 21 * random.uniform(size=4000), angle * np.sin(angle)], axis=1)
    assert two_nn(roll).value == pytest.approx(2, rel=0.08)


def test_two_nn_keeps_small_distances_far_from_the_origin():
    """Residual streams: entries in the thousands, differences far below one."""
    flat = np.concatenate([RANDOM.uniform(size=(1000, 2)) * 1e-3, np.zeros((1000, 62))], axis=1)
    assert two_nn(flat + 3000).value == pytest.approx(two_nn(flat).value, rel=1e-3)


def test_duplicates_are_left_out_and_counted():
    points = RANDOM.normal(size=(300, 4))
    once, twice = two_nn(points), two_nn(np.concatenate([points, points[:50]]))
    assert twice.value == once.value
    assert (twice.points, twice.duplicates) == (300, 50)
    with pytest.raises(KeelBenchError, match="9 different hidden states"):
        two_nn(np.repeat(RANDOM.normal(size=(9, 2)), 5, axis=0))
    with pytest.raises(KeelBenchError, match="equally far"):
        two_nn(np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2))
    with pytest.raises(KeelBenchError, match="discarded=1"):
        two_nn(points, discarded=1)
