"""Runs a utility task through lm-eval, in this process, on the model that is loaded or the engine that runs."""

import json
import logging
from dataclasses import dataclass
from typing import Any

from eval.utility.tasks import UtilityTask


@dataclass(frozen=True)
class Utility:
    """A task's results: ``scores`` by variant name, with lm-eval's own standard error, and one row a document."""

    scores: dict[str, dict[str, float | None]]  # "gsm8k" → value, stderr, n
    samples: list[dict[str, Any]]
    lengths: list[int]  # tokens of every document's prompt with its generated answers, once each


def run_task(
    task: UtilityTask,
    lm: Any,
    *,
    limit: int | None,
    chat_template: bool,
    max_new_tokens: int | None = None,
    system: str | None = None,
) -> Utility:
    """One task on one model.

    Args:
        lm: lm-eval's ``LM``, from ``eval.utility.language_models``.
        limit: documents a subject (MMLU has 57, BBH 27, MATH 7); None = all. The first ones, as lm-eval counts them.
        chat_template: prompts as chats, few-shot examples as earlier turns.
        max_new_tokens: generated tokens at most, instead of the stock task's own number; None leaves that.
        system: a system turn over every prompt; without ``chat_template`` the words in front of it. None = none.
    """
    from lm_eval import simple_evaluate
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig
    from lm_eval.tasks import TaskManager

    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    filters = [filter_name for _, filter_name in task.variants]
    group = Group(task.name + _GROUP, aggregate_metric_list=[AggMetricConfig(task.metric, filter_list=filters)])
    for part in task.parts:
        group.add(part)
    results = simple_evaluate(
        model=lm,
        tasks=[group],
        limit=limit,
        gen_kwargs=None if max_new_tokens is None else {"max_gen_toks": max_new_tokens},
        system_instruction=system if chat_template else system_text(system) or None,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
        task_manager=TaskManager(include_defaults=False),
        confirm_run_unsafe_code=True,  # in the sandbox that the task was built with
    )
    assert results is not None
    samples = [
        {
            "task": task.name,
            "part": part,
            "doc_id": row["doc_id"],
            "filter": row["filter"],
            "value": float(row[task.metric]),
            "answer": json.dumps(row["filtered_resps"]),
            "prompt_hash": row["prompt_hash"],
        }
        for part, rows in results["samples"].items()
        for row in rows
    ]
    scores = {}
    for suffix, filter_name in task.variants:
        found = results["groups"][task.name + _GROUP]
        n = sum(sample["filter"] == filter_name for sample in samples)
        stderr = found.get(f"{task.metric}_stderr,{filter_name}")
        scores[task.name + suffix] = {
            "value": float(found[f"{task.metric},{filter_name}"]),
            "stderr": float(stderr)
            if isinstance(stderr, float) and stderr == stderr
            else None,  # "N/A" of one document
            "n": n,
        }
    return Utility(scores, samples, _lengths(results["samples"], lm.tokenizer))


def system_text(system: str | None) -> str:
    """A system turn as the words in front of a plain prompt; lm-eval itself puts nothing between the two."""
    return "" if system is None else system.rstrip() + "\n\n"


_GROUP = " (all subjects)"


def _lengths(samples: dict[str, list[dict[str, Any]]], tokenizer: Any) -> list[int]:
    """Tokens of every document's prompt with its generated answers, once each."""
    seen: dict[tuple[str, int], list[str]] = {}
    for part, rows in samples.items():
        for row in rows:
            answers = [a for given in row["resps"] for a in given if isinstance(a, str)]
            seen[part, row["doc_id"]] = [str(row["arguments"][0][0]), *answers]
    return [sum(len(tokenizer(text)["input_ids"]) for text in texts) for texts in seen.values()]
