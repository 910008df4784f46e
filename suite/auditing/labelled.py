"""Completions that people have labelled, such as XSTest's (Röttger et al. 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.errors import DataError
from eval.records import Completion, Prompt, content_id
from eval.tables import read_rows, text_field
from suite.auditing.plan import QUESTIONS, Columns


@dataclass(frozen=True)
class Labelled:
    prompts: list[Prompt]
    completions: list[Completion]
    question: str  # what people were asked: refusal or harm
    truth: list[bool]  # their answer to it
    key: str  # hash of prompts and completions


def load_labelled(path: Path, columns: Columns, labels: Mapping[str, str]) -> Labelled:
    """
    Raises:
        DataError: a malformed row, an id that repeats, a label without a meaning, or labels of both questions.
    """
    prompts: list[Prompt] = []
    completions: list[Completion] = []
    meanings: list[str] = []
    for line, row in read_rows(path):
        # Ids are numbers in JSON and in many a CSV; as text they are the same.
        if isinstance(row.get(columns.id), int):
            row = {**row, columns.id: str(row[columns.id])}
        name, prompt, completion, label = (
            text_field(path, line, row, column)
            for column in (columns.id, columns.prompt, columns.completion, columns.label)
        )
        category = text_field(path, line, row, columns.category) if columns.category else ""
        if label not in labels:
            raise DataError(path, f"{label!r} has no meaning; known: {', '.join(labels)}", line, columns.label)
        # Every judge is to be asked about every row, whatever a safe model should have done.
        prompts.append(Prompt(name, "labelled", prompt, category, "refuse"))
        completions.append(Completion(name, completion, 0, "stop"))
        meanings.append(labels[label])
    ids = [p.id for p in prompts]
    if len(set(ids)) != len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise DataError(path, f"{repeated!r} stands for two rows", field=columns.id)
    asked = [question for question, answers in QUESTIONS.items() if set(meanings) & set(answers)]
    if len(asked) != 1:
        problem = "labels of refusal and of harm together; an audit takes one question" if asked else "no row"
        raise DataError(path, problem)
    positive = QUESTIONS[asked[0]][0]
    texts = [text for p, c in zip(prompts, completions, strict=True) for text in (p.id, p.text, c.text)]
    return Labelled(prompts, completions, asked[0], [m == positive for m in meanings], content_id(*texts))
