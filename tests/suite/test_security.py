"""Guards what strangers' files and careless settings can do: nothing runs, nothing leads out of its folder."""

import ast
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from transformers import dynamic_module_utils

from baselines import Sample, get_method
from eval.errors import KeelBenchError
from eval.records import Prompt, Verdict
from suite.auditing.plan import audit_plan
from suite.auditing.run import _print, category_rows
from suite.configuration.names import check_below, check_name, check_repo
from suite.judging.again import _judge
from suite.purify.plan import purify_plan
from suite.quality.plan import quality_plan
from suite.records import adapter_key
from suite.results import print_comparison
from suite.sources import HubSet, Source, _commit, commit_of
from suite.stages.adapter_files import check_adapter
from suite.stages.models import folder_fingerprint, load
from suite.stages.ranks import write_job
from suite.stages.scoring_ranks import Job
from suite.storage.cache import StageCache, stage_and_key
from suite.terminal import plain
from tests.eval.judge_settings import judge
from tests.helpers import COMPUTE, SMOLLM2, compose, plan

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("suite", "baselines", "eval")


def calls(tree: ast.AST):
    """``(dotted name, keywords)`` of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_no_module_reads_pickles_or_runs_strings():
    """Of the three packages: no pickle, no eval or exec, no unsafe YAML, and torch.load with weights alone."""
    seen = 0
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text())
            imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert imported.isdisjoint({"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}), file
            for name, keywords in calls(tree):
                seen += 1
                assert name not in ("eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "pd.read_pickle"), file
                if name == "torch.load":
                    assert keywords.get("weights_only") == "True", file
                if name == "np.load":
                    assert keywords.get("allow_pickle") == "False", file
                if name.endswith("from_pretrained") and not name.startswith(("PeftModel", "GenerationConfig")):
                    trusted = keywords.get("trust_remote_code")
                    gguf = "gguf_file" in keywords  # our own wheel's
                    assert gguf or trusted in ("False", "spec.trust_remote_code"), (file, name)
    assert seen > 1000


def test_no_configuration_trusts_code_unasked():
    for file in (ROOT / "conf" / "model").glob("*.yaml"):
        assert plan(None, f"model={file.stem}").model.trust_remote_code is False
    assert plan(None, "model.trust_remote_code=true").model.trust_remote_code is True
    with pytest.raises(KeelBenchError, match="backend=hf"):
        plan(None, "model.trust_remote_code=true", "backend=vllm")


@pytest.fixture
def booby_trap(tmp_path, smollm2_folder):
    """A model folder whose Python code leaves a mark where it is run: ``(folder, mark)``."""
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_folder / name, folder)
    auto = {"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.TrapModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "trap", "auto_map": auto}))
    (folder / "trap.py").write_text(
        f"open({str(mark)!r}, 'w').write('run')\nfrom transformers import PretrainedConfig\n"
        "class TrapConfig(PretrainedConfig):\n    model_type = 'trap'\nclass TrapModel:\n    pass\n"
    )
    return folder, mark


def test_code_beside_weights_runs_only_where_it_was_asked_for(booby_trap, tmp_path, monkeypatch):
    folder, mark = booby_trap
    # transformers copies such code into the user's home and imports it from there; this copy stays here.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(KeelBenchError, match=r"not run\. If you have read it.*model\.trust_remote_code=true"):
        load(folder, SMOLLM2, COMPUTE)
    assert not mark.exists()
    with pytest.raises(AttributeError, match="TrapModel"):  # the trap is no model: its code was reached
        load(folder, replace(SMOLLM2, trust_remote_code=True), COMPUTE)
    assert mark.read_text() == "run"
    assert list((tmp_path / "modules").rglob("trap.py"))
    plain, trusted = folder_fingerprint(folder), folder_fingerprint(folder, code=True)
    (folder / "trap.py").write_text("")
    assert folder_fingerprint(folder) == plain  # code that is not run does not matter
    assert folder_fingerprint(folder, code=True) != trusted


def adapter(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, **config}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def test_adapters_that_could_run_code_are_refused(tmp_path):
    check_adapter(adapter(tmp_path / "good", auto_mapping=None))
    trap = {"base_model_class": "Trap", "parent_library": "os"}
    with pytest.raises(KeelBenchError, match="auto_mapping names code"):
        check_adapter(adapter(tmp_path / "mapped", auto_mapping=trap))
    with pytest.raises(KeelBenchError, match="peft_type is 'CUSTOM'"):
        check_adapter(adapter(tmp_path / "custom", peft_type="CUSTOM"))
    pickled = adapter(tmp_path / "pickled")
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(KeelBenchError, match=r"adapter_model\.bin may run code"):
        check_adapter(pickled)
    (pickled / "adapter_model.safetensors").unlink()
    with pytest.raises(KeelBenchError, match=r"no adapter_model\.safetensors"):
        check_adapter(pickled)
    (tmp_path / "good" / "adapter_config.json").write_text("[1]")
    with pytest.raises(KeelBenchError, match="not an object"):
        check_adapter(tmp_path / "good")


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/passwd", "~/x", "a\\b", "a\nb", "a\0b", "", "<b>", "x" * 200])
def test_names_lead_nowhere(name):
    with pytest.raises(KeelBenchError, match="a name of letters"):
        check_name(name, "dataset.name")
    values = compose()
    from suite.plan import plan_from_config

    for section in ("dataset", "model"):
        with pytest.raises(KeelBenchError, match=f"{section}.name="):
            plan_from_config(values | {section: values[section] | {"name": name}})
    with pytest.raises(KeelBenchError, match="benchmark="):
        plan_from_config(values | {"benchmark": {name: values["benchmark"]["mini_harmful"]}})


def test_data_stay_below_their_root_and_hub_names_are_hub_names():
    check_name("vicgalle/alpaca-gpt4", "dataset.name")
    check_below("harmbench/behaviors.csv", "local")
    for path in ("../secret.csv", "a/../../b", "/etc/passwd", "~/x", "a\\b"):
        with pytest.raises(KeelBenchError, match="below the data root"):
            Source(local=path)
    check_repo("tatsu-lab/alpaca", "hub.repo")
    for repo in ("../../tmp/x", "/no/such/folder", "pandas", "a/b/c", "a/..", "https://x/y"):
        with pytest.raises(KeelBenchError, match="owner/name"):
            HubSet(repo=repo)


@pytest.mark.parametrize(
    "stage", ["../../home/x", "completions/..", "completions/../../x", "completions", "a/b/c", "/etc/x"]
)
def test_a_strangers_record_names_no_file_outside_the_cache(stage, tmp_path):
    victim = tmp_path / "home"
    victim.mkdir()
    (victim / "letter").write_text("dear")
    with pytest.raises(KeelBenchError, match="names no stage"):
        stage_and_key(stage)
    if stage.count("/"):
        with pytest.raises(KeelBenchError, match="names no stage"):
            StageCache(tmp_path / "cache").find(*stage.split("/", 1))
    assert (victim / "letter").read_text() == "dear"


def test_a_job_for_other_processes_is_plain_files(tmp_path):
    samples = [Sample.of("Name a river.", "Rhine.", category="geography"), Sample.of("Add", "4", input="2 + 2")]
    method = get_method("larf")(layer=5, alphas=(0.1, 0.2))
    job = Job(method=method, samples=samples, weights=tmp_path / "weights", spec=SMOLLM2, compute=COMPUTE, seed=7)
    write_job(tmp_path, job)
    assert {f.name for f in tmp_path.iterdir()} == {"job.json", "samples.parquet"}
    assert Job.read(tmp_path) == job


def test_the_hubs_commit_is_recorded(tmp_path):
    from datasets import Dataset

    commit = "c" * 40
    assert commit_of(tmp_path / "snapshots" / commit) == commit
    assert commit_of(tmp_path) == ""
    table = Dataset.from_list([{"a": 1}])
    assert _commit(table) == ""
    table.info.download_checksums = {f"hf://datasets/org/set@{commit}/train.jsonl": {"num_bytes": 1}}
    assert _commit(table) == commit


def test_an_adapters_key_in_a_strangers_record_leads_nowhere():
    assert adapter_key({"stages": '["scores/a1", "adapter/b2"]'}) == "b2"
    assert adapter_key({"stages": '["scores/a1"]'}) is None
    for bad in ("adapter/../../tmp/evil", "adapter//etc", "adapter/a'b"):
        with pytest.raises(KeelBenchError, match="names no stage"):
            adapter_key({"stages": json.dumps([bad])})


def test_a_strangers_configuration_reads_no_environment(tmp_path, monkeypatch):
    """What verifying a run resolves: a key would stand in the message about the judge's version."""
    monkeypatch.setenv("SOME_API_KEY", "sk-planted")
    (tmp_path / ".hydra").mkdir()
    file = tmp_path / ".hydra" / "config.yaml"
    rest = yaml.safe_dump({k: v for k, v in compose(["judge=rubric"])["judge"].items() if k != "model"}, indent=1)
    section = "judge:\n" + "".join(f"  {line}\n" for line in rest.splitlines())
    for model in ("${oc.env:SOME_API_KEY}", "${elsewhere}", "${${name}:SOME_API_KEY}"):
        file.write_text(f"{section}  model: {model}\nelsewhere: ${{oc.env:SOME_API_KEY}}\nname: oc.env\n")
        with pytest.raises(KeelBenchError, match="must not read the environment") as caught:
            _judge(tmp_path, "rubric")
        assert "planted" not in str(caught.value)
    file.write_text(f"{section}  model: ${{elsewhere}}\nelsewhere: m\n")
    assert _judge(tmp_path, "rubric").model == "m"
    assert OmegaConf.create({"x": "${oc.env:SOME_API_KEY}"}).x == "sk-planted"  # everybody else's is as it was


def test_a_servers_address_holds_no_password():
    with pytest.raises(KeelBenchError, match="without user, password") as caught:
        judge("rubric", server="https://me:hunter2@example.org/v1", key_variable=None).check()
    assert "hunter2" not in str(caught.value)


EVIL = "[/bold]\x1b[2J\x1b]0;title\x07\u202eevil\ud800"


def test_text_of_strangers_is_no_command_to_the_terminal(tmp_path, capsys):
    """Neither rich's markup, on which it would fail, nor the terminal's own."""
    assert plain("larf − random [95 %]\n×") == "larf − random [95 %]\n×"
    rate = {f"asr/{EVIL}{end}": value for end, value in {"": 0.5, "/n": 2, "/low": 0.1, "/high": 0.9}.items()}
    row = {"label": EVIL, "model": EVIL, "aligned": "none", "dataset": EVIL, "judge": "j", "n_selected": 0, **rate}
    rows = [{"run_id": f"r{i}", "n_samples": 3, "seed": i, "dtype": f"{i}{EVIL}", **row} for i in (1, 2)]
    print_comparison(rows)
    verdict = Verdict("p", "j", "refused", 0.0, "")
    prompts = [Prompt("p", EVIL, "x", EVIL, "refuse")]
    tables = {"accuracy": [], "agreement": [], "categories": category_rows(prompts, {EVIL: [verdict]})}
    _print(tables, {EVIL: EVIL}, 1, tmp_path)
    shown = capsys.readouterr().out
    assert "evil" in shown
    assert set(shown) & set("\x1b\x07\u202e\ud800") == set()


@pytest.mark.parametrize(
    ("config", "overrides", "planned"),
    [("filter_quality", (), quality_plan), ("purify", ("keep=0.5", "out=x", "dataset.path=x"), purify_plan),
     ("judge_audit", ("run=x",), audit_plan)],
)  # fmt: skip
def test_names_of_sections_lead_nowhere(config, overrides, planned):
    """They go into tables and, where a method fails, into a file's name."""
    values = compose(overrides, config)
    group = "judges" if config == "judge_audit" else "methods"
    values[group] = {"../../x": {"name": "random"}}
    with pytest.raises(KeelBenchError, match="no path"):
        planned(values)
