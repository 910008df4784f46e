"""lm-eval's stock tasks, with the data source replaced where a local copy exists and with code run in our sandbox.

Prompts, few-shot examples, stop strings, filters and metrics are those of the installed lm-eval. Two stock tasks
cannot be loaded as they are, and what is replaced says so:

* HumanEval's metric downloads a script and runs code without a sandbox: the same programs (prompt, completion, tests)
  run in ``eval.sandbox``;
* the MATH tasks demand another version of the ANTLR runtime (4.11) than Hydra has (4.9), for a metric (``exact_match``
  by sympy's LaTeX parser) that is not asked for here: ``math_verify``, which needs no such version, is the metric.
  sympy's other parser (lark) is no substitute: it refuses what the ANTLR one reads, such as ``2\\pi`` and ``1,234``.
"""

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eval.errors import DataError, KeelBenchError, UnknownNameError
from eval.sandbox import Sandbox
from eval.utility.language_models import distribution_version
from eval.utility.local import MATH_FOLDERS, READERS

# Task → where in lm-eval's folder its YAMLs are ({part} is a subject), its metric, and its variants: (suffix, filter).
STOCK: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "mmlu": ("mmlu/default/mmlu_{part}.yaml", "acc", (("", "none"),)),
    "gsm8k": ("gsm8k/gsm8k.yaml", "exact_match", (("", "strict-match"), ("_flexible", "flexible-extract"))),
    "humaneval": ("humaneval/humaneval.yaml", "pass@1", (("", "create_test"),)),
    "pubmedqa": ("pubmedqa/pubmedqa.yaml", "acc", (("", "none"),)),
    "math": ("minerva_math/minerva_math_{part}.yaml", "math_verify", (("", "none"),)),
    "bbh": ("bbh/cot_fewshot/{part}.yaml", "exact_match", (("", "get-answer"),)),
}
RUNS_CODE = ("humaneval",)


@dataclass(frozen=True)
class UtilityTask:
    """One task, its data read, ready to run."""

    name: str
    parts: tuple[Any, ...]  # lm-eval's task objects, one a subject
    metric: str
    variants: tuple[tuple[str, str], ...]
    source: str  # "local" or the hub repository
    key: str  # hash of the documents, or of what the hub's copy is known by
    version: str  # of the stock task
    fewshot: int  # examples before each question


def harness_version() -> str:
    """
    Raises:
        KeelBenchError: lm-eval is not installed.
    """
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError as error:
        raise KeelBenchError("utility tasks need lm-eval: `pip install 'keelbench[utility]'`") from error


def build_task(
    name: str,
    *,
    local: Path | None,
    fewshot: int | None,
    chat_template: bool,
    sandbox: Sandbox,
    parts: Sequence[str] | None = None,
) -> UtilityTask:
    """The task with its documents, from ``local`` (a folder in the published layout) or else from the hub.

    Args:
        fewshot: examples before each question; None = as many as the stock task says.
        chat_template: whether prompts will be chats; HumanEval then is lm-eval's ``humaneval_instruct``.
        sandbox: where generated programs run; nothing runs yet.
        parts: subjects (of MMLU, BBH, MATH) to keep; None = all.

    Raises:
        KeelBenchError: lm-eval is absent, a file is missing or malformed, or the hub is out of reach.
    """
    harness_version()
    from lm_eval.api.task import ConfigurableTask

    place, metric, variants = STOCK[name]
    if name == "humaneval" and chat_template:
        place = place.replace("humaneval.yaml", "humaneval_instruct.yaml")
    documents = hashlib.sha256()
    known = parts_of(name)
    for part in parts or ():
        if part not in known:
            raise UnknownNameError(f"subject of {name}", part, known)
    built = []
    for part in known if parts is None else parts:
        config = _stock_config(name, place.format(part=part), sandbox)
        if fewshot is not None:
            config["num_fewshot"] = fewshot
        if local is not None:
            rows = READERS[name](local, part)
            documents.update(json.dumps(rows, sort_keys=True).encode())
            config |= {"custom_dataset": partial(_datasets, rows), "validation_split": None}
        try:
            with _quiet():
                built.append(ConfigurableTask(config=config))
        except (OSError, ValueError, RuntimeError) as error:
            if local is not None:
                raise
            raise DataError(
                name,
                f"no folder {name}/ under the local data root (paths.data or SUITE_DATA), and the hub's "
                f"{config['dataset_path']} cannot be loaded ({str(error).splitlines()[0]})",
            ) from error
        if local is None:
            documents.update(str(built[-1].dataset["test"]._fingerprint).encode())
    version = str((built[0].config.metadata or {}).get("version"))
    shots = int(built[0].config.num_fewshot or 0)
    source = "local" if local is not None else str(config["dataset_path"])
    return UtilityTask(name, tuple(built), metric, variants, source, documents.hexdigest()[:20], version, shots)


def parts_of(name: str) -> list[str]:
    """A task's subjects, as lm-eval names their YAMLs; one empty name where it has none."""
    pattern = STOCK[name][0]
    if "{part}" not in pattern:
        return [""]
    if name == "math":
        return list(MATH_FOLDERS)
    before, after = Path(pattern).name.split("{part}")
    names = [f.name for f in sorted((_stock() / pattern).parent.glob(f"{before}[a-z]*{after}"))]
    return [n.removeprefix(before).removesuffix(after) for n in names]


def _stock() -> Path:
    import lm_eval

    return Path(str(lm_eval.__file__)).parent / "tasks"


def _stock_config(name: str, place: str, sandbox: Sandbox) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    runs_code = name in RUNS_CODE
    with _any_antlr() if name == "math" else contextlib.nullcontext():
        config: dict[str, Any] = load_yaml(_stock() / place, resolve_func=not runs_code)
    for key in ("tag", "task_alias"):
        config.pop(key, None)
    if runs_code:
        fence = "instruct" in place
        config["metric_list"] = [_metric(partial(_pass_at_1, sandbox), "pass@1")]
        config["filter_list"] = [
            {"name": "create_test", "filter": [{"function": "custom", "filter_fn": partial(_programs, fence)}]}
        ]
    if name == "math":
        config["metric_list"] = [{"metric": "math_verify", "aggregation": "mean", "higher_is_better": True}]
        config["process_results"] = _math_verify
    return config


def _datasets(rows: dict[str, list[dict[str, Any]]], **_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(listed) for split, listed in rows.items()})


def _metric(function: Callable[..., Any], name: str) -> dict[str, Any]:
    def metric(**arguments: Any) -> Any:
        return function(**arguments)

    metric.__name__ = name
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _programs(fence: bool, responses: list[list[str]], documents: list[dict[str, Any]]) -> list[list[str]]:
    """Prompt and completion as one program; a chat's completion ends where its code block does."""
    return [
        [document["prompt"] + (answer.split("```", 1)[0] if fence else answer) for answer in answers]
        for answers, document in zip(responses, documents, strict=True)
    ]


def _pass_at_1(sandbox: Sandbox, references: list[str], predictions: list[list[str]], **_: Any) -> float:
    """Chen et al. 2021's pass@1 with one completion a problem: does prompt, completion and tests run to the end?"""
    outcomes = sandbox.run_all(
        [f"{answers[0]}\n{tests}" for tests, answers in zip(references, predictions, strict=True)]
    )
    return sum(o.passed for o in outcomes) / len(outcomes)


def _math_verify(document: dict[str, Any], results: list[str]) -> dict[str, int]:
    from math_verify import parse, verify

    return {"math_verify": int(bool(verify(gold=parse(document["solution"]), target=parse(results[0]))))}


@contextlib.contextmanager
def _any_antlr() -> Iterator[None]:
    """Inside, the MATH tasks' module may be imported beside Hydra's ANTLR runtime: it asserts the version of one that
    only ``exact_match`` needs."""
    import math_verify  # noqa: F401  it asks for the version too, and is to be told the truth

    with distribution_version("antlr4-python3-runtime", "4.11"):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import logging

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
