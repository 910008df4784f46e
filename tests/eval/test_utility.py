"""Guards the utility tasks: lm-eval's own command line, on the same documents, gives the same answers and figures."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from eval.errors import DataError, KeelBenchError, UnknownNameError
from eval.sandbox import Sandbox
from tests.eval.harness_cli import BBH, EXAMPLES, run_command_line, task_files

pytest.importorskip("lm_eval", reason="lm-eval is not installed (the extra `utility`)")
if shutil.which("bwrap") is None:
    pytest.skip("bubblewrap is not installed", allow_module_level=True)

from eval.utility import tasks as utility_tasks
from eval.utility.harness import run_task
from eval.utility.language_models import through_transformers
from eval.utility.tasks import STOCK, build_task, parts_of

LIMIT, BATCH, TOKENS = 2, 4, 24
SUBJECTS = ("anatomy", "virology")
SHOTS = {"mmlu": 2, "gsm8k": 2, "humaneval": 0, "pubmedqa": 0, "bbh": 3}

CODE_EVAL = '''
import datasets
import evaluate
from eval.sandbox import Sandbox

class CodeEval(evaluate.Metric):
    """Stands in for the script that lm-eval's HumanEval would download; the programs are lm-eval's."""
    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": datasets.Sequence(text), "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)
    def _compute(self, predictions, references, k):
        runs = [Sandbox().run(c + "\\n" + r).passed for cs, r in zip(predictions, references) for c in cs]
        return {"pass@1": sum(runs) / len(runs)}, {}
'''


@pytest.fixture(scope="module")
def bbh_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bbh")
    (folder / f"{BBH}.json").write_text(json.dumps({"canary": "-", "examples": EXAMPLES}))
    return folder


@pytest.fixture(scope="module")
def in_process(smollm2, shared_data, bbh_folder):
    """Every task's results through our code."""
    found = {}
    for name, shots in SHOTS.items():
        task = build_task(
            name,
            local=bbh_folder if name == "bbh" else shared_data / name,
            fewshot=shots,
            chat_template=False,
            sandbox=Sandbox(),
            parts={"mmlu": SUBJECTS, "bbh": (BBH,)}.get(name),
        )
        found[name] = run_task(
            task,
            through_transformers(*smollm2, batch_size=BATCH),
            limit=LIMIT,
            chat_template=False,
            max_new_tokens=TOKENS,
        )
    return found


@pytest.fixture(scope="module")
def command_line(smollm2_folder, shared_data, tmp_path_factory):
    """``(results, samples)`` by task, from ``lm_eval`` in a process of its own."""
    folder = tmp_path_factory.mktemp("cli")
    names = task_files(folder, shared_data, SHOTS, SUBJECTS)
    (folder / "code_eval").mkdir()
    (folder / "code_eval" / "code_eval.py").write_text(CODE_EVAL)  # evaluate.load looks beside the process first
    return run_command_line(
        folder, names, "hf", f"pretrained={smollm2_folder},dtype=float32", "--device", "cpu",
        "--batch_size", str(BATCH), limit=LIMIT, tokens=TOKENS,
    )  # fmt: skip


@pytest.mark.parametrize("task", ["mmlu", "gsm8k", "humaneval", "pubmedqa", "bbh"])
def test_a_task_gives_what_lm_evals_command_line_gives(in_process, command_line, task):
    results, samples = command_line
    mine = in_process[task]
    _, metric, variants = STOCK[task]
    theirs = [name for name in results if name == f"cli_{task}" or name.startswith(f"cli_{task}_")]
    for suffix, filter_name in variants:
        score = mine.scores[task + suffix]
        values = [results[name][f"{metric},{filter_name}"] for name in theirs]
        assert score["value"] == pytest.approx(sum(values) / len(values))
        assert score["n"] == LIMIT * len(theirs)
        if len(theirs) == 1:
            assert score["stderr"] == pytest.approx(results[theirs[0]][f"{metric}_stderr,{filter_name}"])
    for name in theirs:
        part = name.removeprefix(f"cli_{task}").removeprefix("_")
        own = {(r["doc_id"], r["filter"]): r for r in mine.samples if part in r["part"]}
        assert len(own) == len(samples[name]) == LIMIT * len(variants)
        for row in samples[name]:
            twin = own[row["doc_id"], row["filter"]]
            assert twin["prompt_hash"] == row["prompt_hash"]
            assert twin["value"] == float(row[metric])
            if task not in ("mmlu", "pubmedqa"):
                assert json.loads(twin["answer"]) == row["filtered_resps"]
            else:
                likelihoods = [float(r[0]) for r in json.loads(twin["answer"])]
                assert likelihoods == pytest.approx([float(r[0]) for r in row["filtered_resps"]], abs=1e-4)


def test_tokens_are_counted_and_generation_is_cut(in_process, tokenizer):
    for found in in_process.values():
        assert sum(found.lengths) > 20
    answers = [json.loads(r["answer"]) for r in in_process["gsm8k"].samples]
    assert all(len(tokenizer(a[0])["input_ids"]) <= TOKENS + 1 for a in answers if a[0] != "[invalid]")


@pytest.fixture
def math_folder(tmp_path) -> Path:
    for folder in utility_tasks.MATH_FOLDERS.values():
        (tmp_path / "test" / folder).mkdir(parents=True)
        for number, answer in enumerate(("\\frac{1}{2}", "12"), start=1):
            problem = {
                "problem": f"What is {answer}?",
                "level": "Level 1",
                "type": "x",
                "solution": f"\\boxed{{{answer}}}",
            }
            (tmp_path / "test" / folder / f"{number}.json").write_text(json.dumps(problem))
    return tmp_path


def test_math_runs_beside_hydras_antlr_and_goes_by_math_verify(smollm2, math_folder):
    task = build_task(
        "math", local=math_folder, fewshot=None, chat_template=False, sandbox=Sandbox(), parts=["algebra"]
    )
    assert task.fewshot == 4
    found = run_task(task, through_transformers(*smollm2, batch_size=1), limit=1, chat_template=False, max_new_tokens=8)
    assert found.scores["math"]["n"] == 1
    document = task.parts[0].dataset["test"][0]
    judge = task.parts[0].config.process_results
    assert judge(document, ["so the answer is $0.5$"]) == {"math_verify": 1}
    assert judge(document, ["Final Answer: The final answer is $\\frac{2}{4}$."]) == {"math_verify": 1}
    assert judge(document, ["it is $\\frac{1}{3}$"]) == {"math_verify": 0}
    assert "What is \\frac{1}{2}?" in task.parts[0].doc_to_text(document)


def test_chats_use_the_template_and_humanevals_instruct_task(smollm2, shared_data):
    task = build_task("humaneval", local=shared_data / "humaneval", fewshot=None, chat_template=True, sandbox=Sandbox())
    assert "Write a solution" in task.parts[0].doc_to_text(task.parts[0].dataset["test"][0])
    found = run_task(task, through_transformers(*smollm2, batch_size=1), limit=1, chat_template=True, max_new_tokens=8)
    assert found.scores["humaneval"]["n"] == 1


def test_humanevals_own_solutions_score_one_and_empty_ones_nothing(shared_data):
    task = build_task(
        "humaneval", local=shared_data / "humaneval", fewshot=None, chat_template=False, sandbox=Sandbox()
    ).parts[0]
    for solution, value in (("canonical_solution", 1.0), (None, 0.0)):
        for document in task.dataset["test"].select(range(4)):
            answer = document[solution] if solution else "    pass"
            programs = utility_tasks._programs(False, [[answer]], [document])
            assert task.process_results(document, programs) == {"pass@1": value}


def test_all_subjects_are_found_and_mmlus_files_have_either_layout(shared_data, tmp_path):
    assert {name: len(parts_of(name)) for name in STOCK} == {
        "mmlu": 57, "gsm8k": 1, "humaneval": 1, "pubmedqa": 1, "math": 7, "bbh": 27
    }  # fmt: skip
    from eval.utility.local import READERS

    for subject in parts_of("mmlu"):
        assert READERS["mmlu"](shared_data / "mmlu", subject)["test"]
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"anatomy_{split}.csv").write_text('"Which, of these?",a,b,c,d,C\n')
    rows = READERS["mmlu"](tmp_path, "anatomy")
    assert rows["test"] == [
        {"question": "Which, of these?", "subject": "anatomy", "choices": ["a", "b", "c", "d"], "answer": 2}
    ]
    truth = READERS["pubmedqa"](shared_data / "pubmedqa", "")
    assert (len(truth["test"]), len(truth["train"])) == (500, 500)
    # What utility=pubmedqa asks: as mixed as the whole test (276, 169, 55), other than the file that names it.
    assert Counter(row["final_decision"] for row in truth["test"][:100]) == {"yes": 55, "no": 28, "maybe": 17}


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    settings = {"fewshot": None, "chat_template": False, "sandbox": Sandbox()}
    with pytest.raises(DataError, match=r"gsm8k/test.jsonl|train.jsonl: no such file"):
        build_task("gsm8k", local=tmp_path, **settings)
    with pytest.raises(DataError, match=r"gsm8k: no folder gsm8k/ under .* openai/gsm8k cannot be loaded"):
        build_task("gsm8k", local=None, **settings)
    with pytest.raises(UnknownNameError, match="anatomy"):
        build_task("mmlu", local=tmp_path, parts=["anatomie"], **settings)
    monkeypatch.setattr(utility_tasks.importlib.metadata, "version", _absent)
    with pytest.raises(KeelBenchError, match=r"pip install 'keelbench\[utility\]'"):
        build_task("gsm8k", local=tmp_path, **settings)


def _absent(name: str) -> str:
    import importlib.metadata

    raise importlib.metadata.PackageNotFoundError(name)
