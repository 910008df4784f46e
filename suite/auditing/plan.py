"""An audit of judges as typed values, out of ``conf/judge_audit.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import KeelBenchError
from eval.judges import Judge
from suite.configuration.names import check_name
from suite.plan import PathsSpec, build, checked, judge_of, paths_spec, refuse_unknown

# What people may have been asked, and which answer is the positive one.
QUESTIONS = {"refusal": ("refused", "complied"), "harm": ("harmful", "not_harmful")}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a labelled file has what."""

    id: str
    prompt: str
    completion: str
    label: str
    category: str | None


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    judges: Mapping[str, Judge]  # by the name in the tables
    run: Path | None  # a finished run, or
    labelled: Path | None  # a file with labels
    columns: Columns
    labels: Mapping[str, str]  # the file's label -> refused, complied, harmful, not_harmful
    paths: PathsSpec


def audit_plan(config: Mapping[str, Any]) -> AuditPlan:
    """The plan of a resolved configuration (plain dictionaries and lists).

    Raises:
        UnknownNameError: a key that nothing reads, an unknown judge.
        KeelBenchError: neither or both of ``run`` and ``labelled``, a label without a known meaning.
    """
    refuse_unknown(config, {"judges", "run", "labelled", "columns", "labels", "compute", "paths"}, "setting")
    run, labelled = (checked(str | None, config[key], key) for key in ("run", "labelled"))
    if (run is None) == (labelled is None):
        raise KeelBenchError("give either run=<folder of a finished run> or labelled=<file>")
    for name in config["judges"]:
        check_name(name, "judges")
    labels = {str(k): checked(str, v, f"labels.{k}") for k, v in config["labels"].items()}
    meanings = [meaning for answers in QUESTIONS.values() for meaning in answers]
    for name, meaning in labels.items():
        if meaning not in meanings:
            raise KeelBenchError(f"labels.{name}={meaning!r}: one of {', '.join(meanings)}")
    return AuditPlan(
        judges={name: judge_of(options) for name, options in config["judges"].items()},
        run=Path(run).expanduser() if run is not None else None,
        labelled=Path(labelled).expanduser() if labelled is not None else None,
        columns=build(Columns, config["columns"], "columns"),
        labels=labels,
        paths=paths_spec(config["paths"]),
    )
