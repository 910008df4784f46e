"""The plots of what is given for what."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from suite.report.load import load_sweep
from suite.report.tradeoffs import front, keep_fractions, on_the_front, pareto
from tests.suite.fake_sweep import DEMO, fake_sweep

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points, st.booleans())
def test_the_front_is_what_nothing_beats(found, more_is_better):
    best = front(found, more_is_better=more_is_better)
    sign = -1 if more_is_better else 1

    def beats(a, b) -> bool:
        return sign * a[0] <= sign * b[0] and a[1] <= b[1] and a != b

    for i, point in enumerate(found):
        assert (i in best) == (not any(beats(other, point) for other in found))
    assert best  # something always is on it


def test_pareto_needs_two_points_and_both_rates(tmp_path):
    runs = load_sweep(fake_sweep(tmp_path, DEMO))[0]
    (plot,) = pareto(runs)  # no utility was measured
    shown = plot.svg.split('aria-label="', 1)[1].split('"')[0]
    for run in runs:
        rates = (100 * run.row["false_refusal/mini_overrefusal"], 100 * run.row["asr/mini_harmful"])
        assert f"{run.name}: {rates[0]:.1f}, {rates[1]:.1f}" in shown
    assert on_the_front(runs)
    assert pareto(runs[:1]) == []
    for run in runs:
        run.row |= {"utility/mini": 0.5, "utility/mini/low": 0.4, "utility/mini/high": 0.6, "utility/mini/n": 10}
    assert [p.title for p in pareto(runs)][1] == "Attack success against utility, means over benchmarks"
    # A mean over other benchmarks is not comparable: the point is left out.
    runs[1].row["asr/mini_harmful"] = None
    assert runs[1].name not in pareto(runs)[0].svg


def test_curves_over_the_share_kept(tmp_path):
    many = [replace(p, label=p.label, seed=s) for p in DEMO[1:3] for s in (1, 2)]
    runs = load_sweep(fake_sweep(tmp_path, [*many, DEMO[0]]))[0]
    assert keep_fractions(runs) == []  # all at one size
    for run in runs[:4]:
        run.row["n_selected"] = 40 if run.row["seed"] == 1 else 100
        run.name = f"{run.row['label']} · {run.row['n_selected']} samples"
    plots = keep_fractions(runs)
    assert [p.title for p in plots] == ["asr, mini_harmful, % by share kept",
                                        "false_refusal, mini_overrefusal, % by share kept"]  # fmt: skip
    assert "for random, larf-top" in plots[0].svg
