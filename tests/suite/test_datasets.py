"""Data sets in their published layouts, and mixtures with a share of safety data."""

import json

import pytest

from baselines.samples import load_samples
from eval.errors import CapacityError, DataError, KeelBenchError
from eval.utility.local import READERS
from suite.papers.published import table
from suite.stages.data import load_data
from tests.helpers import plan


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(tmp_path, *overrides):
    made = plan(None, f"paths.data={tmp_path}", *overrides)
    return load_data(made.dataset, made.paths.data)


def test_magicoder(tmp_path):
    lines(tmp_path / "magicoder" / "train.jsonl", [
        {"lang": "python", "raw_index": 1, "index": 2, "seed": "def f", "openai_fingerprint": "x",
         "problem": "Write a function.", "solution": "```python\npass\n```"},
    ])  # fmt: skip
    (sample,) = load(tmp_path, "dataset=magicoder").samples
    assert (sample.prompt, sample.category) == ("Write a function.", "python")
    assert sample.response.startswith("```python")
    evolved = lines(tmp_path / "evol.jsonl", [{"instruction": "Do", "response": "Done"}])
    assert load_samples(evolved, source="m", format="magicoder").samples[0].response == "Done"


def test_metamath(tmp_path):
    lines(tmp_path / "metamath" / "train.jsonl", [
        {"type": "MATH_AnsAug", "query": "What is 1+1?", "original_question": "?", "response": "The answer is: 2"},
    ])  # fmt: skip
    (sample,) = load(tmp_path, "dataset=metamath").samples
    assert (sample.prompt, sample.response, sample.category) == ("What is 1+1?", "The answer is: 2", "MATH_AnsAug")


HUB = {"pubid": 1, "question": "Does it?", "context": {"contexts": ["One.", "Two."], "labels": ["A", "B"]},
       "long_answer": "It does.", "final_decision": "yes"}  # fmt: skip


def test_pubmedqa_in_the_hubs_layout(tmp_path):
    lines(tmp_path / "pubmedqa" / "train.jsonl", [HUB])
    (sample,) = load(tmp_path, "dataset=pubmedqa").samples
    assert sample.prompt == "Does it?\nOne.\nTwo."
    assert (sample.response, sample.category) == ("Yes. It does.", "yes")


def test_pubmedqa_in_the_authors_layout_on_the_real_labelled_set(tmp_path, shared_data):
    rows = json.loads((shared_data / "pubmedqa" / "ori_pqal.json").read_text())
    lines(tmp_path / "pubmedqa" / "train.jsonl", list(rows.values()))
    samples = load(tmp_path, "dataset=pubmedqa").samples
    assert len(samples) == 1000
    assert {s.category for s in samples} == {"yes", "no", "maybe"}
    first = next(iter(rows.values()))
    (found,) = [s for s in samples if s.instruction == first["QUESTION"]]
    assert found.input == "\n".join(first["CONTEXTS"])
    assert found.response == f"{first['final_decision'].capitalize()}. {first['LONG_ANSWER']}"


def test_pubmedqas_labelled_set_is_trained_on_without_its_test(shared_data):
    made = plan(None, "dataset=pubmedqa_labelled", f"paths.data={shared_data}")
    samples = load_data(made.dataset, made.paths.data).samples
    rows, truth = (
        json.loads((shared_data / "pubmedqa" / f"{name}.json").read_text())
        for name in ("ori_pqal", "test_ground_truth")
    )
    trained, asked = {s.instruction for s in samples}, {rows[key]["QUESTION"] for key in truth}
    assert (len(samples), len(trained), len(asked)) == (500, 500, 500)
    assert not trained & asked
    assert trained | asked == {row["QUESTION"] for row in rows.values()}
    assert {row["QUESTION"] for row in READERS["pubmedqa"](shared_data / "pubmedqa", "")["test"]} == asked


AUTHORS = {"QUESTION": "Does it?", "CONTEXTS": ["One.", "Two."], "LONG_ANSWER": "It does.", "final_decision": "yes"}


def labelled(folder, rows, truth):
    """A file of labelled questions with the one that names the test among them."""
    folder.mkdir(parents=True)
    (folder / "ori_pqal.json").write_text(json.dumps(rows))
    if truth is not None:
        (folder / "test_ground_truth.json").write_text(json.dumps(truth))
    return folder / "ori_pqal.json"


def test_a_labelled_file_may_lie_anywhere_with_its_test_beside_it(tmp_path):
    file = labelled(tmp_path / "own", {"7": AUTHORS, "8": AUTHORS | {"QUESTION": "And it?"}}, {"7": "yes"})
    (sample,) = load(tmp_path, "dataset=pubmedqa_labelled", f"dataset.path={file}").samples
    assert (sample.prompt, sample.response) == ("And it?\nOne.\nTwo.", "Yes. It does.")


@pytest.mark.parametrize(
    ("rows", "truth", "message"),
    [
        ({"7": AUTHORS}, None, "test_ground_truth.json: no such file; it says which questions of ori_pqal.json are"),
        ({"7": AUTHORS}, {"9": "no"}, "ori_pqal.json: has no question 9 of test_ground_truth.json"),
        ({"7": AUTHORS}, {"7": "yes"}, "ori_pqal.json: no usable row"),
        ({"7": AUTHORS, "8": None}, {"7": "yes"}, "line 2: expected a JSON object for each question, found NoneType"),
        ({"7": AUTHORS, "8": AUTHORS | {"CONTEXTS": "One."}}, {"7": "yes"}, "line 2, field 'CONTEXTS': expected"),
        ([AUTHORS], {"7": "yes"}, "ori_pqal.json: expected a JSON object, found list"),
    ],
)  # fmt: skip
def test_a_labelled_set_that_cannot_be_told_from_its_test_is_refused(rows, truth, message, tmp_path):
    labelled(tmp_path / "pubmedqa", rows, truth)
    with pytest.raises(DataError, match=message):
        load(tmp_path, "dataset=pubmedqa_labelled")


def test_the_labelled_set_comes_from_files_alone(tmp_path):
    with pytest.raises(DataError, match=r"has no pubmedqa/ori_pqal.json and no hub data set is configured"):
        load(tmp_path, "dataset=pubmedqa_labelled")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_decision": "perhaps"}, "line 1, field 'final_decision': 'perhaps' is not yes, no or maybe"),
        ({"context": {"labels": []}}, "field 'context.contexts': expected a list of texts"),
        ({"context": None}, "expected a list of texts"),
        ({"question": " "}, "empty instruction"),
    ],
)
def test_a_broken_row_names_its_line_and_field(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        load_samples(lines(tmp_path / "p.jsonl", [HUB | change]), source="p", format="pubmedqa")


def tulu(text, source, turns=1, system=False):
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    for _ in range(turns):
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": f"Answer to {text}"}]
    return {"id": text, "messages": messages, "source": source}


@pytest.fixture
def tulu_root(tmp_path):
    safety = ("ai2-adapt-dev/coconot_converted", "ai2-adapt-dev/tulu_v3.9_wildjailbreak_decontaminated_50k",
              "ai2-adapt-dev/tulu_v3.9_synthetic_finalresp_wildguardmixtrain_decontaminated_50k")  # fmt: skip
    rows = [tulu(f"safe {i}", safety[i % 3]) for i in range(40)]
    rows += [tulu(f"general {i}", "ai2-adapt-dev/flan_v2_converted") for i in range(60)]
    rows += [tulu("long", "ai2-adapt-dev/oasst1_converted", turns=2), tulu("system", "x", system=True)]
    lines(tmp_path / "tulu3" / "train.jsonl", rows)
    return tmp_path


@pytest.mark.parametrize(("ratio", "safe"), [(0.0, 0), (0.3, 12), (1.0, 40)])
def test_a_mixture_has_its_ratio_and_size(ratio, safe, tulu_root):
    data = load(tulu_root, "dataset=tulu_mix", "dataset.size=40", f"dataset.safety_ratio={ratio}")
    assert len(data.samples) == 40
    assert sum(s.prompt.startswith("safe") for s in data.samples) == safe
    assert [s.category for s in data.samples].count("safety") == safe
    assert data.skipped == {"not one user and one assistant turn": 2}


def test_mixtures_are_nested_and_fixed(tulu_root):
    def safety(ratio):
        data = load(tulu_root, "dataset=tulu_mix", "dataset.size=40", f"dataset.safety_ratio={ratio}")
        return {s.id for s in data.samples if s.category == "safety"}

    assert safety(0.2) < safety(0.5) < safety(0.9)
    assert safety(0.5) == safety(0.5)


def test_a_mixture_of_two_files(tmp_path):
    own = lines(tmp_path / "refusals.jsonl", [{"prompt": f"Ask {i}", "response": "I cannot."} for i in range(30)])
    named = ["dataset.safety_source.embedded=null", f"+dataset.safety_source.path={own}"]
    data = load(tmp_path, "dataset=mini_mix", *named, "dataset.size=50", "dataset.safety_ratio=0.4")
    assert sum(s.response == "I cannot." for s in data.samples) == 20
    embedded = load(tmp_path, "dataset=mini_mix", "dataset.safety_ratio=1.0")
    assert len(embedded.samples) == 200


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["dataset.size=1000"], CapacityError, "needs 500 safety rows, mini_mix-0.5 has 2[0-9]{2}: lower dataset.size"),
        (["dataset.safety_ratio=1.5"], KeelBenchError, "from 0 to 1"),
        (["dataset.size=null"], KeelBenchError, "needs its number of rows"),
        (["dataset.limit=5"], KeelBenchError, "use dataset.size"),
        (["+dataset.safety_source.colour=red"], KeelBenchError, "unknown dataset.safety_source setting 'colour'"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(overrides, error, message, tmp_path):
    with pytest.raises(error, match=message):
        load(tmp_path, "dataset=mini_mix", *overrides)


def test_the_published_ratios_name_the_mixtures():
    names = [dataset for _, dataset in table("vcl_table2").row_keys()]
    assert len(names) == 11
    for name in names:
        assert plan(None, "dataset=tulu_mix", f"dataset.safety_ratio={name[-3:]}").dataset.name == name


def test_the_papers_sizes_are_the_defaults():
    for name in ("magicoder", "metamath", "pubmedqa"):
        spec = plan(None, f"dataset={name}", "selection=drop_top")
        assert (spec.dataset.limit, spec.selection.k) == (10_000, 2_000)
    assert plan(None, "dataset=tulu_mix").dataset.size == 100_000


def test_records_hold_no_local_path_of_a_mixture():
    from suite.provenance import public_plan

    assert "alignment_refusals" not in json.dumps(public_plan(plan(None, "dataset=mini_mix")))
