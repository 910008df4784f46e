"""FlowLens: against numpy on all states at once, from the cache, and as a command with its tables and pages."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from baselines.method import Engine
from eval.errors import CapacityError, KeelBenchError, UnknownNameError
from eval.geometry.dimension import two_nn
from eval.geometry.principal import principal_directions
from suite.flowlens.plan import flowlens_plan
from suite.flowlens.run import alignment_rows, check, run
from suite.flowlens.stage import load_geometry
from suite.flowlens.states import measure, stability, trajectory_stability, without_punctuation
from suite.papers.compare import compare, sweep_rows
from suite.papers.published import table
from tests.helpers import compose, tiny_model
from tests.integration.test_cli import suite
from tests.suite.test_report import Page

VERBS, PLACES = ("Describe", "Kill", "Paint", "Explain the"), ("", "in Rome", "today")
THINGS = ("a process", "time", "my neighbour's old house and its garden")
TEXTS = [f"{verb} {thing} {place}" for verb in VERBS for thing in THINGS for place in PLACES]
OPTIONS = {"components": 4, "dimension_rows": 10_000, "seed": 0}


def all_states(model, tokenizer, texts):
    """[prompts, layers, width], one prompt at a time, the last layer before the final norm."""
    found = []
    kept = {}
    handle = model.model.layers[-1].register_forward_hook(
        lambda m, i, o: kept.update(last=o[0] if isinstance(o, tuple) else o)
    )
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            states = model(ids, output_hidden_states=True).hidden_states[1:-1]
            found.append(torch.stack([*(s[0, -1] for s in states), kept["last"][0, -1]]))
    handle.remove()
    return torch.stack(found).double().numpy()


@pytest.fixture
def tiny(tiny_llama):
    return tiny_llama


def test_streamed_geometry_is_that_of_all_states_at_once(tiny):
    model, tokenizer = tiny
    found = measure(model, tokenizer, TEXTS, **OPTIONS, with_mark=True, engine=Engine(tokens_per_batch=40))
    states = all_states(model, tokenizer, TEXTS)
    cloud = states.reshape(-1, states.shape[-1])
    plain = principal_directions(cloud.mean(axis=0), np.cov(cloud, rowvar=False), 4)
    np.testing.assert_allclose(found.principal.mean, plain.mean, atol=1e-6)
    np.testing.assert_allclose(found.principal.variances, plain.variances, rtol=1e-5)
    np.testing.assert_allclose(np.abs((found.principal.directions * plain.directions).sum(axis=1)), 1, rtol=1e-6)
    np.testing.assert_allclose(found.trajectories.coordinates, plain.project(states), atol=1e-5)
    assert found.dimension.value == pytest.approx(two_nn(cloud).value, rel=1e-3)
    assert found.dimension.points == len(cloud)
    unit = states / np.linalg.norm(states, axis=-1, keepdims=True)
    for layer in range(states.shape[1]):
        cosines = unit[:, layer] @ unit[:, layer].T
        plain_mean = (cosines.sum(axis=1) - 1) / (len(TEXTS) - 1)
        np.testing.assert_allclose(found.trajectories.mean_cosine[:, layer], plain_mean, atol=1e-6)
    marked = plain.project(all_states(model, tokenizer, [f"{t}?" for t in TEXTS]))
    np.testing.assert_allclose(found.with_mark.coordinates, marked, atol=1e-5)
    rows = stability(found)
    expected = np.corrcoef(plain.project(states)[:, 1, 0], marked[:, 1, 0])[0, 1]
    assert rows[1]["projection"] == pytest.approx(expected, abs=1e-4)
    trajectory = np.corrcoef(plain.project(states)[:, :, 0].mean(0), marked[:, :, 0].mean(0))[0, 1]
    assert trajectory_stability(found) == pytest.approx(trajectory, abs=1e-4)


def test_batches_do_not_change_what_is_measured(tiny):
    one, other = (
        measure(*tiny, TEXTS, **OPTIONS | {"dimension_rows": 60}, engine=Engine(tokens_per_batch=n)) for n in (16, 4096)
    )
    assert one.dimension.value == pytest.approx(other.dimension.value, rel=1e-3)
    np.testing.assert_allclose(one.trajectories.coordinates, other.trajectories.coordinates, atol=1e-5)


def test_long_prompts_lose_their_beginning_and_are_counted(tiny):
    model, tokenizer = tiny
    found = measure(model, tokenizer, TEXTS, **OPTIONS, engine=Engine(max_length=4))
    cut = [tokenizer.decode(tokenizer(t)["input_ids"][-4:]) for t in TEXTS]
    assert found.truncated == sum(len(tokenizer(t)["input_ids"]) > 4 for t in TEXTS) > 0
    assert [tokenizer(c)["input_ids"] for c in cut] == [tokenizer(t)["input_ids"][-4:] for t in TEXTS]
    again = measure(model, tokenizer, cut, **OPTIONS)
    np.testing.assert_allclose(found.trajectories.coordinates, again.trajectories.coordinates, atol=1e-5)


def test_what_cannot_be_measured_is_refused(tiny):
    with pytest.raises(KeelBenchError, match="at least 2"):
        measure(*tiny, ["one"], **OPTIONS)
    with pytest.raises(KeelBenchError, match="prompt 2 is empty"):
        measure(*tiny, ["one", " "], **OPTIONS)
    with pytest.raises(CapacityError, match="33 principal directions of states with 32"):
        measure(*tiny, TEXTS, **OPTIONS | {"components": 33})


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("How do I kill time?", "How do I kill time"), ("So… what?! ", "So… what"), ("3.5", "3.5"), ("¿?", ""),
        ("«quoted.»", "«quoted"), ("C++", "C++"), ("a) b)", "a) b"),
    ],
)  # fmt: skip
def test_punctuation_at_the_end_is_stripped(given, left):
    assert without_punctuation(given) == left


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Folders of random models: two of one width, one of another depth and seed."""
    root = tmp_path_factory.mktemp("models")
    for name, options in {"a": {"seed": 0}, "b": {"seed": 1}}.items():
        tiny_model("llama", **options).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return root


def plan(folder, *overrides):
    return flowlens_plan(
        compose(
            ["model/align=none", f"model.source={folder}", "model.dtype=float32", "limit=12", "tracking=disabled",
             "paths.cache=" + str(folder.parent / "cache"), *overrides],
            name="flowlens",
        )
    )  # fmt: skip


def test_a_run_leaves_tables_arrays_and_a_page_and_is_found_again(models, tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    (tmp_path / "0" / "status.json").write_text('{"task": "+experiment=flowlens_stability,seed=1"}')
    benchmarks = "benchmark=[mini_overrefusal,mini_harmful]"
    run(plan(models / "a", benchmarks, "stability=true"), tmp_path / "0", "s")
    run(plan(models / "b", benchmarks, f"reference={tmp_path / '0'}"), tmp_path / "1", "s")
    (row,) = pd.read_parquet(tmp_path / "0" / "flowlens.parquet").to_dict("records")
    assert (row["prompts"], row["layers"], row["width"]) == (24, 3, 32)
    assert row["data"] == "mini_overrefusal+mini_harmful"
    assert row["component"] == min(8, int(np.ceil(row["dimension"])))
    layers = pd.read_parquet(tmp_path / "0" / "layers.parquet")
    assert set(layers.group) == {"all", "comply", "refuse"}
    assert len(layers) == 3 * 3 * 8
    mean = layers[(layers.component == 1)].groupby("group")["mean"].mean()
    assert mean["all"] == pytest.approx(0, abs=1e-4)  # the cloud is centred
    assert mean["comply"] == pytest.approx(-mean["refuse"], abs=1e-4)  # as many of each
    spectrum = pd.read_parquet(tmp_path / "0" / "spectrum.parquet")
    assert spectrum.explained.is_monotonic_decreasing
    assert 0 < spectrum.cumulative.iloc[-1] <= 1
    assert list(pd.read_parquet(tmp_path / "0" / "stability.parquet").columns) == ["layer", "projection", "mean_cosine"]
    page = Page(tmp_path / "0" / "flowlens.html")
    assert page.tags.count("figure") == 3 + 1 + 1
    assert not {"script", "img", "link"} & set(page.tags)
    assert f">{row['stability/projection']:.3f}<" in page.source.split('id="published"')[1]
    # The second run aligns itself with the first.
    (other,) = pd.read_parquet(tmp_path / "1" / "flowlens.parquet").to_dict("records")
    folders = [tmp_path / "0", tmp_path / "1"]
    (pair,) = alignment_rows(folders, [row, other])
    assert other["alignment"] == pair["alignment"]
    assert 0 <= pair["alignment"] < 1
    one, two = (load_geometry(f).principal.directions[pair["component"] - 1] for f in folders)
    assert pair["alignment"] == pytest.approx(abs(one @ two))
    assert alignment_rows([folders[0]] * 2, [row, row])[0]["alignment"] == pytest.approx(1)
    # Beside the published figures.
    joined = compare(table("flowlens_dimension"), sweep_rows(table("flowlens_dimension"), tmp_path))
    assert joined[0]["n_runs"] == 2
    # Once more: nothing is computed.
    cache = models / "cache" / "geometry"
    before = sorted(cache.iterdir())
    (tmp_path / "2").mkdir()
    run(plan(models / "a", benchmarks, "stability=true"), tmp_path / "2", "s")
    assert sorted(cache.iterdir()) == before
    again = pd.read_parquet(tmp_path / "2" / "flowlens.parquet").to_dict("records")[0]
    assert again["dimension"] == row["dimension"]


def test_an_adapter_changes_the_geometry_and_its_key(models, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    rows = []
    for number, extra in enumerate(([], [f"adapter={tmp_path / 'adapter'}"])):
        (tmp_path / str(number)).mkdir()
        run(plan(models / "a", *extra), tmp_path / str(number), "s")
        rows += pd.read_parquet(tmp_path / str(number) / "flowlens.parquet").to_dict("records")
    (pair,) = alignment_rows([tmp_path / "0", tmp_path / "1"], rows)
    assert pair["pc1"] < 0.99
    assert rows[1]["adapter"] == "adapter"


def test_instructions_of_a_data_set_are_prompts_too(models, tmp_path):
    run(plan(models / "a", "data=dataset", "dataset.limit=15", "limit=null", "punctuation=keep"), tmp_path, "s")
    (row,) = pd.read_parquet(tmp_path / "flowlens.parquet").to_dict("records")
    assert (row["data"], row["prompts"], row["punctuation"]) == ("mini", 15, "kept")


def test_mistakes_are_told_all_at_once(models, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "?!", "output": "x"}) + "\n")
    rows = f"dataset.path={tmp_path / 'rows.jsonl'}"
    places = [f"adapter={tmp_path}", f"reference={tmp_path}"]
    wrong = plan(models / "none", "data=dataset", "limit=null", "dataset=jsonl", rows, *places)
    with pytest.raises(KeelBenchError) as caught:
        check(wrong)
    told = str(caught.value).splitlines()
    assert len(told) == 4
    for part in ("nothing but punctuation", "does not exist", "no adapter_model.safetensors", "has no geometry.npz"):
        assert any(part in line for line in told), part


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("+component=3", UnknownNameError, "Did you mean 'components'"),
        ("data=benchmarks", UnknownNameError, "Did you mean 'benchmark'"),
        ("components=0", KeelBenchError, "components=0: at least 1"),
        ("data=dataset", KeelBenchError, "use dataset.limit"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(override, error, message, tmp_path):
    with pytest.raises(error, match=message):
        plan(tmp_path, override)


def test_models_of_another_width_are_told_apart(models, tmp_path):
    from suite.flowlens.stage import save_geometry

    rows = []
    for number, width in enumerate((32, 8)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if width == 32:
            run(plan(models / "a"), folder, "s")
        else:
            geometry = load_geometry(tmp_path / "0")
            small = principal_directions(np.zeros(8), np.eye(8), 4)
            save_geometry(folder, type(geometry)(small, *list(vars(geometry).values())[1:]))
        rows += pd.read_parquet(tmp_path / "0" / "flowlens.parquet").to_dict("records")
    (pair,) = alignment_rows([tmp_path / "0", tmp_path / "1"], rows)
    assert pair["alignment"] is None
    assert "compare models of one width" in pair["error"]


def test_a_sweep_ends_with_every_pairs_alignment_and_w_and_b_has_the_tables(models, tmp_path):
    done = suite(
        "-m", "model/align=none", f"model.source={models / 'a'},{models / 'b'}", "model.dtype=float32", "limit=12",
        "tracking=offline", module="suite.flowlens", SUITE_RUNS=str(tmp_path), SUITE_CACHE=str(models / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (sweep,) = tmp_path.iterdir()
    (pair,) = pd.read_parquet(sweep / "alignment.parquet").to_dict("records")
    assert f"{pair['alignment']:.3f}" in done.stdout
    assert Page(sweep / "alignment.html").tags.count("figure") == 1
    logged = {f.name.rsplit("_", 2)[0] for f in (sweep / "0" / "wandb").rglob("*.table.json")}
    assert logged == {"layers", "spectrum", "results"}
    wrong = suite("benchmark=[xtest]", module="suite.flowlens", SUITE_RUNS=str(tmp_path / "no"))
    assert wrong.returncode == 2
    assert "Did you mean 'xstest'" in wrong.stderr
