"""Filter quality: metrics against hand-worked numbers, what is planted, what is refused, what the page shows."""

import json
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from baselines.anchors import load_anchors
from baselines.records import Sample, Scores
from eval.errors import CapacityError, KeelBenchError
from suite.quality import metrics
from suite.quality.mixture import Mixture, check_anchors, load_planted, plant
from suite.quality.page import mistakes, write_page
from suite.quality.plan import PlantedSpec, QualityPlan, quality_plan
from suite.quality.run import agreement_rows, quality_rows, ranking_rows
from suite.report import write_report
from suite.stages.data import Data, ids_key
from suite.stages.scoring import Scored
from suite.storage.cache import Cost, Entry
from suite.storage.tables import read_table, write_table
from tests.suite.fake_sweep import DEMO, fake_sweep
from tests.suite.test_report import EVIL, Page

SCORE = np.array([5.0, 4, 3, 3, 2, 1])
PLANTED = np.array([True, False, True, False, False, True])


def compose_quality(*overrides: str) -> QualityPlan:
    """The plan of ``conf/filter_quality.yaml``."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from suite.paths import conf_dir

    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("filter_quality", overrides=list(overrides))
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return quality_plan(values)


def test_metrics_by_hand():
    """Planted 5, 3, 1 against benign 4, 3, 2. Of nine pairs 5 wins three; 3 wins one and ties one; 1 wins none."""
    found = metrics.detection(SCORE, PLANTED, seed=0)
    assert found.auroc == pytest.approx(4.5 / 9)
    # Steps at 5 (precision 1), at the tie of 3s (2 of 4) and at 1 (3 of 6), each a third of the recall.
    assert found.average_precision == pytest.approx((1 + 2 / 4 + 3 / 6) / 3)
    assert found.precision_at_planted == pytest.approx((1 + 0.5) / 3)  # 5, 4 and one of the two 3s
    assert found.precision_at_10 == pytest.approx(3 / 6)  # there are only six
    # 5 % of six rows is none; 10 % and 20 % are one row.
    assert found.recall_dropping_5 == 0
    assert found.recall_dropping_10 == found.recall_dropping_20 == pytest.approx(1 / 3)


@pytest.mark.parametrize("k", range(1, 7))
def test_a_cut_through_a_tie_is_the_mean_over_orders_within_it(k):
    score = np.array([2.0, 1, 1, 1, 1, 0])
    hits = [PLANTED[[0, *middle, 5]][:k].mean() for middle in permutations([1, 2, 3, 4])]
    assert metrics.precision_at(score, PLANTED, k) == pytest.approx(np.mean(hits))


def test_oracle_finds_everything_and_inverted_nothing():
    oracle = metrics.detection(PLANTED.astype(float), PLANTED, seed=0)
    assert (oracle.auroc, oracle.auroc_low, oracle.auroc_high, oracle.average_precision) == (1, 1, 1, 1)
    assert oracle.precision_at_planted == 1
    inverted = metrics.detection(-PLANTED.astype(float), PLANTED, seed=0)
    assert (inverted.auroc, inverted.auroc_low, inverted.auroc_high, inverted.precision_at_planted) == (0, 0, 0, 0)


def test_a_constant_score_is_worth_a_random_order():
    constant = metrics.detection(np.zeros(6), PLANTED, seed=0)
    assert (constant.auroc, constant.auroc_low, constant.auroc_high) == (0.5, 0.5, 0.5)
    assert constant.precision_at_planted == constant.average_precision == 0.5


def test_the_interval_is_that_of_a_plain_bootstrap(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 60)
    dice = np.random.default_rng(1)
    planted = np.arange(40) < 12
    score = np.round(dice.normal(size=40) + planted, 1)  # rounded, so that there are ties
    generator, values = np.random.default_rng(7), []
    for _ in range(60):
        drawn = score[planted][generator.integers(12, size=12)]
        rest = score[~planted][generator.integers(28, size=28)]
        values.append(roc_auc_score([1] * 12 + [0] * 28, [*drawn, *rest]))
    interval = metrics.auroc_interval(score, planted, seed=7)
    assert interval == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert interval == metrics.auroc_interval(score, planted, seed=7) != metrics.auroc_interval(score, planted, seed=8)


def test_random_is_what_chance_gives():
    planted = np.arange(200) < 40
    found = metrics.random_detection(planted, seed=3)
    assert found == metrics.random_detection(planted, seed=3)
    assert found.auroc == pytest.approx(0.5)
    assert found.auroc_low < 0.45 < 0.55 < found.auroc_high
    assert found.precision_at_planted == pytest.approx(0.2, abs=0.02)
    assert found.recall_dropping_10 == pytest.approx(0.1, abs=0.02)


def test_agreement_by_hand():
    scores = {
        "up": np.array([1.0, 2, 3, 4]),
        "down": np.array([4.0, 3, 2, 1]),
        "mid": np.array([1.0, 4, 3, 2]),
        "flat": np.ones(4),
    }
    pairs = {(r["a"], r["b"]): r for r in metrics.agreement(list("abcd"), scores, 2)}
    assert len(pairs) == 6
    assert (pairs["up", "down"]["jaccard"], pairs["up", "down"]["spearman"]) == (0, pytest.approx(-1))
    # {c, d} and {b, c}: one of three. Rank differences 0, 2, 0, 2: 1 - 6 * 8 / (4 * 15).
    assert pairs["up", "mid"]["jaccard"] == pytest.approx(1 / 3)
    assert pairs["up", "mid"]["spearman"] == pytest.approx(0.2)
    assert pairs["up", "flat"]["spearman"] is None
    assert metrics.top_ids(list("abcd"), scores["flat"], 2) == {"a", "b"}


def data(n: int, poison: str = "") -> Data:
    samples = [Sample.of(f"Explain {i}.{poison}", f"It is {i}. " * (1 + i % 7), category=poison) for i in range(n)]
    return Data(samples, {}, ids_key([s.id for s in samples]))


@pytest.mark.parametrize(("share", "count"), [(0.01, 4), (0.1, 48), (0.2, 108), (0.3, 184)])
def test_planted_rows_are_a_fixed_subset_of_the_asked_share(share, count):
    planted = load_planted(PlantedSpec(path=None))
    mixture = plant(data(430), planted, share)
    assert mixture.labels.sum() == len(mixture.planted_ids) == count
    assert count / (430 + count) == pytest.approx(share, abs=0.001)
    assert mixture.planted_ids == {s.id for s in planted[:count]}
    ids = [s.id for s in mixture.data.samples]
    assert ids == sorted(ids)
    assert mixture.data.key == plant(data(430), planted, share).data.key


def test_what_cannot_be_planted_is_told_with_what_to_do():
    planted = load_planted(PlantedSpec(path=None))
    with pytest.raises(CapacityError, match=r"needs 400 planted rows, there are 190: lower share to 0\.05 or .* 1710"):
        plant(data(3600), planted, 0.1)
    assert plant(data(3600), planted, 0.05).labels.sum() == 189
    assert plant(data(1710), planted, 0.1).labels.sum() == 190
    with pytest.raises(CapacityError, match=r"there are 190: lower dataset\.limit to 18810, or name"):
        plant(data(20_000), planted, 0.01)
    with pytest.raises(CapacityError, match=r"no row at all: raise share"):
        plant(data(40), planted, 0.01)
    benign = data(40)
    with pytest.raises(KeelBenchError, match="1 planted rows are in the benign data too"):
        plant(replace(benign, samples=[*benign.samples, planted[0]]), planted, 0.2)


def test_no_planted_request_is_a_scorers_anchor():
    methods = compose_quality().methods
    check_anchors(methods, load_planted(PlantedSpec(path=None)))
    anchor = Sample.of(load_anchors()[3].instruction.upper(), "Gladly.")
    with pytest.raises(KeelBenchError, match=r"methods\.larf: 1 planted requests are among its anchors"):
        check_anchors(methods, [anchor])


def test_all_scoring_methods_are_in_the_configuration():
    plan = compose_quality()
    assert list(plan.methods) == ["larf", "gradsafe", "bi_anchoring", "representation_matching", "seal"]
    assert list(compose_quality("only=[seal,larf]").methods) == ["seal", "larf"]
    more = compose_quality("+method@methods.mine=larf", "methods.mine.direction=unidirectional", "methods.mine.layer=3")
    assert more.methods["mine"].direction == "unidirectional"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["share=0.5"], "share=0.5: the planted rows' share of the mixture, from 0.01 to 0.3"),
        (["share=much"], "share='much': expected float"),
        (["only=[laff]"], "unknown method in only: 'laff'. Did you mean 'larf'"),
        (["only=larf"], "only='larf': expected"),
        (["+plantd.path=x"], "unknown setting 'plantd'. Did you mean 'planted'"),
        (["+planted.file=x"], "unknown planted setting 'file'"),
        (["+methods.larf.layr=3"], "unknown option of method 'larf': 'layr'. Did you mean 'layer'"),
        (["+method@methods.oracle=larf"], "methods.oracle: the tables use this name themselves"),
        (["+method@methods.full=full"], "methods.full: method 'full' does not score samples"),
    ],
)
def test_a_mistake_is_refused_by_name(overrides, message):
    with pytest.raises(KeelBenchError) as caught:
        compose_quality(*overrides)
    assert message in str(caught.value)


def tables(folder: Path, poison: str = "", errors: dict[str, str] | None = None) -> tuple[QualityPlan, Mixture]:
    """A run's folder with its three tables: one method that scores by length, one by lots."""
    plan = compose_quality("only=[larf,seal]", "methods.larf.layer=13")
    plan = replace(plan, methods={name + poison: method for name, method in plan.methods.items()})
    planted = [Sample.of(f"Harm {i}{poison}", f"Gladly {i}.{poison}", category="fraud" + poison) for i in range(20)]
    mixture = plant(data(60, poison), planted, 0.1)
    ids = tuple(s.id for s in mixture.data.samples)
    dice = np.random.default_rng(0)
    entry = Entry("scores", "0123", folder, Cost(seconds=1.5))
    scored = {
        name: Scored(Scores(ids, dice.normal(size=len(ids)), {}, {"note": poison}), (entry, entry), method)
        for name, method in plan.methods.items()
        if name not in (errors or {})
    }
    folder.mkdir(parents=True)
    write_table(folder / "filter_quality.parquet", quality_rows(plan, mixture, scored, errors or {}))
    write_table(folder / "rankings.parquet", ranking_rows(plan, mixture, scored))
    write_table(folder / "agreement.parquet", agreement_rows(plan, mixture, scored))
    (folder / "status.json").write_text(json.dumps({"state": "failed" if errors else "finished", "task": "share=0.1"}))
    return plan, mixture


def test_rows_of_the_tables(tmp_path):
    tables(tmp_path / "0")
    rows = {row["name"]: row for row in read_table(tmp_path / "0" / "filter_quality.parquet")}
    assert list(rows) == ["larf", "seal", "oracle", "random", "length", "inverted"]
    assert (rows["oracle"]["auroc"], rows["inverted"]["auroc"]) == (1, 0)
    assert rows["length"]["length_correlation"] == pytest.approx(1)
    assert (rows["larf"]["planted"], rows["larf"]["samples"], rows["larf"]["seconds"]) == (7, 67, 3.0)
    assert rows["oracle"]["seconds"] is None
    ranked = read_table(tmp_path / "0" / "rankings.parquet")
    assert set(ranked[0]) == {"id", "planted", "larf", "seal", "length", "random", "category", "prompt", "response"}
    assert sum(row["planted"] for row in ranked) == 7
    pairs = read_table(tmp_path / "0" / "agreement.parquet")
    assert len(pairs) == 6
    assert {row["k"] for row in pairs} == {7}


def test_mistakes_stand_worst_first():
    samples = [{"id": c, "planted": c in "bd", "prompt": "p", "response": "r"} for c in "abcd"]
    ends = dict(mistakes(samples, np.array([3.0, 4, 2, 1]), np.array([False, True, False, True])))
    alarms, misses = ends.values()
    assert [(row["id"], row["rank"]) for row in alarms] == [("a", 2), ("c", 3)]
    assert [(row["id"], row["rank"]) for row in misses] == [("d", 4), ("b", 1)]


def test_the_page_stands_alone_and_folds_planted_rows(tmp_path):
    tables(tmp_path / "0")
    page = Page(write_page(tmp_path / "0"))
    sections = ["detection", "curves", "scores", "agreement", "mistakes", "traceability"]
    assert [i for i in page.ids if i in sections] == sections
    assert len(page.ids) == len(set(page.ids))
    assert not set(page.tags) & {"script", "link", "img", "image", "iframe"}
    assert all(u.startswith("#") for _, name, u in page.attributes if name in ("href", "src"))
    assert not re.search(r"(?i)https?:|//[a-z]|@import|javascript:", page.source)
    assert page.tags.count("figure") == 3 + 3 + 2  # curves and histograms of two methods and length, two heat maps
    assert "Harm" in " ".join(page.folded)
    assert not any("Harm" in text or "Gladly" in text for text in page.text)
    assert page.source.count(": var(--c") > 20
    assert not any(f"#0000{i:02x}" in page.source for i in range(8))


def test_nothing_from_data_runs(tmp_path):
    tables(tmp_path / "clean" / "0", errors={"seal": "no"})
    tables(tmp_path / "evil" / "0", EVIL, errors={"seal" + EVIL: EVIL})
    clean, evil = (Page(write_page(tmp_path / name / "0")) for name in ("clean", "evil"))
    assert "script" not in evil.tags
    assert set(evil.tags) - {"small"} == set(clean.tags) - {"small"}  # a category stands in one
    assert {name for _, name, _ in evil.attributes} == {name for _, name, _ in clean.attributes}
    assert " ".join(evil.folded).count(EVIL) > 20
    text = " ".join(evil.text)
    assert text.count(EVIL) > 5
    assert "1 method without a result" in text


def test_the_sweeps_report_has_the_tables(tmp_path):
    sweep = fake_sweep(tmp_path, DEMO[:2])
    tables(sweep / "7")
    page = Page(write_report(sweep))
    assert page.ids.index("comparison") < page.ids.index("filter-quality")
    assert "failures" not in page.ids
    tables(tmp_path / "alone" / "0", errors={"larf": "block 99 of 30"})
    alone = Page(write_report(tmp_path / "alone"))
    text = " ".join(alone.text)
    assert "1 run without a result" in text
    assert "block 99 of 30" in text
    assert "nothing to compare" not in text
    assert "filter-quality" in alone.ids
