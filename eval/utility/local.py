"""Published files of the utility tasks as the rows that lm-eval's stock tasks expect from the hub."""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from eval.errors import DataError
from eval.tables import read_rows, text_field

Rows = dict[str, list[dict[str, Any]]]  # split → rows

MATH_FOLDERS = {
    "algebra": "algebra",
    "counting_and_prob": "counting_and_probability",
    "geometry": "geometry",
    "intermediate_algebra": "intermediate_algebra",
    "num_theory": "number_theory",
    "prealgebra": "prealgebra",
    "precalc": "precalculus",
}


def mmlu(folder: Path, subject: str) -> Rows:
    """``<split>/<subject>_<split>.csv`` of hendrycks/test: question, four choices, answer; a letter without a header,
    or an index under the header question, choice0, ..., answer."""
    return {split: _mmlu_rows(folder / split / f"{subject}_{split}.csv", subject) for split in ("dev", "test")}


def _mmlu_rows(path: Path, subject: str) -> list[dict[str, Any]]:
    import csv

    if not path.is_file():
        raise DataError(path, "no such file")
    with path.open(encoding="utf-8-sig", newline="") as handle:
        lines = list(csv.reader(handle))
    if lines and lines[0] == ["question", "choice0", "choice1", "choice2", "choice3", "answer"]:
        lines = lines[1:]
    rows = []
    for number, line in enumerate(lines, start=1):
        if len(line) != 6 or line[5] not in tuple("ABCD0123"):
            raise DataError(path, "expected a question, four choices and an answer (A-D or 0-3)", number)
        answer = "ABCD".find(line[5]) if line[5] in "ABCD" else int(line[5])
        rows.append({"question": line[0], "subject": subject, "choices": line[1:5], "answer": answer})
    return rows


def gsm8k(folder: Path, part: str) -> Rows:
    """``train.jsonl`` and ``test.jsonl`` of openai/grade-school-math."""
    return {split: _jsonl(folder / f"{split}.jsonl", ("question", "answer")) for split in ("train", "test")}


def humaneval(folder: Path, part: str) -> Rows:
    """``HumanEval.jsonl.gz`` of openai/human-eval."""
    fields = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    return {"test": _jsonl(folder / "HumanEval.jsonl.gz", fields)}


def pubmedqa(folder: Path, part: str) -> Rows:
    """``ori_pqal.json`` and ``test_ground_truth.json`` of pubmedqa/pubmedqa: the 500 test questions, and the rest.

    In the first file's order: the second lists all whose answer is yes before all with no, so that a limit below 277
    would ask for nothing but yes.
    """
    questions, test = pubmedqa_labelled(folder / "ori_pqal.json")
    rows: Rows = {"test": [], "train": []}
    for key, row in questions.items():
        for field in ("QUESTION", "CONTEXTS", "final_decision"):
            if field not in row:
                raise DataError(folder / "ori_pqal.json", f"question {key} has no {field}")
        kept = {field: row[field] for field in ("QUESTION", "CONTEXTS", "final_decision")}
        rows["test" if key in test else "train"].append(kept)
    return rows


def pubmedqa_labelled(path: Path) -> tuple[dict[str, dict[str, Any]], Collection[str]]:
    """The questions of ``ori_pqal.json`` by PubMed id, and which of them ``test_ground_truth.json`` beside it names as
    the test.

    Raises:
        DataError: a file is missing or malformed, or a test question is not among the others.
    """
    truth = path.with_name("test_ground_truth.json")
    if not truth.is_file():
        raise DataError(truth, f"no such file; it says which questions of {path.name} are the test")
    questions, test = _json(path), _json(truth)
    for number, row in enumerate(questions.values(), start=1):
        if not isinstance(row, dict):
            raise DataError(path, f"expected a JSON object for each question, found {type(row).__name__}", number)
    absent = [key for key in test if key not in questions]
    if absent:
        raise DataError(path, f"has no question {absent[0]} of {truth.name}")
    return questions, test


def bbh(folder: Path, part: str) -> Rows:
    """``<task>.json`` of suzgunmirac/BIG-Bench-Hard."""
    path = folder / f"{part}.json"
    examples = _json(path).get("examples", [])
    return {
        "test": [
            {k: text_field(path, n, row, k) for k in ("input", "target")} for n, row in enumerate(examples, start=1)
        ]
    }


def math(folder: Path, part: str) -> Rows:
    """``test/<subject>/<number>.json`` of hendrycks/math."""
    place = folder / "test" / MATH_FOLDERS[part]
    files = sorted(place.glob("*.json"), key=lambda f: (len(f.stem), f.stem))
    if not files:
        raise DataError(place, "no problems here")
    return {"test": [{k: text_field(f, 1, _json(f), k) for k in ("problem", "solution")} for f in files]}


READERS: dict[str, Callable[[Path, str], Rows]] = {
    "mmlu": mmlu,
    "gsm8k": gsm8k,
    "humaneval": humaneval,
    "pubmedqa": pubmedqa,
    "bbh": bbh,
    "math": math,
}


def _jsonl(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{k: text_field(path, line, row, k) for k in fields} for line, row in read_rows(path)]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(path, "no such file")
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DataError(path, f"expected a JSON object, found {type(parsed).__name__}")
    return parsed
