"""Every shipped YAML composes, each of its keys is read by something, and what nothing reads is refused."""

from dataclasses import asdict
from pathlib import Path

import pytest

from eval.errors import KeelBenchError, UnknownNameError
from suite.configuration.experiments import entry_point
from suite.configuration.overrides import check_names
from suite.paths import conf_dir
from suite.plan import plan_from_config
from tests.helpers import compose, plan

CONF = Path(conf_dir())
MANDATORY = {"dataset=jsonl": ["dataset.path=x.jsonl"], "dataset=hub": ["dataset.hub.repo=a/b"]}
SINGLE = ["model", "model/align", "dataset", "method", "regularizer", "selection", "train", "eval", "utility", "judge",
          "backend", "tracking", "scale"]  # fmt: skip
CHOICES = [f"{group}={f.stem}" for group in SINGLE for f in sorted((CONF / group).glob("*.yaml"))]
ADDED = [
    f"+{group}={f.stem}"
    for group in ("arm", "experiment")
    for f in sorted((CONF / group).glob("*.yaml"))
    if group == "arm" or entry_point(f.stem) == "suite"
]
BENCHMARKS = [f"benchmark=[{f.stem}]" for f in sorted((CONF / "benchmark").glob("*.yaml"))]


@pytest.mark.parametrize("choice", CHOICES + ADDED + BENCHMARKS)
def test_every_choice_makes_a_plan(choice):
    overrides = [choice, *MANDATORY.get(choice, [])]
    if choice.startswith("+arm"):
        overrides = [choice.replace("+arm", "arm")]
    plan_from_config(compose(overrides))


def test_every_yaml_belongs_to_a_group_that_is_tested():
    groups = {str(f.parent.relative_to(CONF)) for f in CONF.rglob("*.yaml")} - {"."}
    elsewhere = {"hydra/launcher"}  # tests/suite/test_launchers.py
    assert groups <= {*SINGLE, "arm", "experiment", "benchmark", "protocol", *elsewhere}


def test_every_yaml_opens_with_the_command_or_the_sense_of_it():
    for file in CONF.rglob("*.yaml"):
        assert file.read_text().startswith("#"), file


def test_every_group_is_packaged():
    import tomllib

    settings = tomllib.loads((CONF.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    groups = {str(f.parent.relative_to(CONF.parent)) for f in CONF.rglob("*.yaml")}
    packaged = {folder for package, folder in settings["package-dir"].items() if package.startswith("suite.conf")}
    assert packaged == groups
    assert {p for p in settings["packages"] if p.startswith("suite.conf")} == {
        "suite." + g.replace("/", ".") for g in groups
    }


@pytest.mark.parametrize(
    "section",
    ["method", "selection", "train", "eval", "utility", "backend", "tracking", "compute", "dataset", "model", "paths"],
)
def test_a_key_that_nothing_reads_is_refused_with_the_nearest_name(section):
    config = compose()
    known = "format" if section == "dataset" else next(iter(k for k in config[section] if k != "name"))
    config[section][known + "x"] = 1
    with pytest.raises(UnknownNameError, match=f"Did you mean .*'{known}'"):
        plan_from_config(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_size=big", "train.batch_size='big': expected int"),
        ("train.learning_rate=true", "train.learning_rate=True: expected float"),
        ("selection.fraction=0.5", "either k .* or fraction"),
        ("selection.k=0", "at least 1"),
        ("seed=x", "seed='x'"),
        ("method.direction=sideways", "bidirectional, unidirectional"),
        ("method.layer=-1", "block number from 0, or auto"),
        ("method.alphas=[2]", "between 0 and 1"),
        ("eval.every=0", "at least 1"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(override, message):
    with pytest.raises(KeelBenchError, match=message):
        plan(None, override)


def test_the_published_layers_are_their_models_defaults():
    layers = {m: plan(None, f"model={m}").method.layer for m in ("llama3", "llama3_1", "qwen2_5")}
    assert layers == {"llama3": 13, "llama3_1": 13, "qwen2_5": 18}


def test_the_papers_recipe_is_the_default_for_real_models():
    recipe = asdict(plan(None, "model=llama3").train)
    published = {
        "rank": 8, "learning_rate": 1e-4, "epochs": 3.0, "batch_size": 8, "accumulation": 2, "warmup_ratio": 0.1,
        "max_length": 2048,
    }  # fmt: skip
    assert {k: recipe[k] for k in published} == published
    assert len(recipe["target_modules"]) == 7


def test_unknown_group_members_are_all_told_at_once_with_near_matches():
    with pytest.raises(KeelBenchError) as caught:
        check_names(["-m", "method=larf,sael", "model=lama3", "seed=1", "benchmark=[harmbench,xtest]"], CONF)
    text = str(caught.value)
    assert "unknown model 'lama3'. Did you mean 'llama3'" in text
    assert "unknown benchmark 'xtest'. Did you mean 'xstest'" in text
    assert "'sael'" in text
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments",
    [["method=random,larf", "-m"], ["+experiment=demo"], ["method=glob(*)"], ["model/align=none"], ["paths.data=/x"],
     ["benchmark=[mini_harmful]"], ["hydra/launcher=joblib"], ["method.layer=3"]],
)  # fmt: skip
def test_known_names_and_other_overrides_pass(arguments):
    check_names(arguments, CONF)
