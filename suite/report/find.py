"""Which sweep a name means: a folder, a sweep under runs, or the latest sweep of an experiment."""

import json
import re
from pathlib import Path

from eval.errors import KeelBenchError, UnknownNameError
from suite.results import latest_sweep


def find_sweep(name: str | None, runs: Path) -> Path:
    """The sweep's folder; without a name the latest one.

    Raises:
        UnknownNameError: nothing of this name.
        KeelBenchError: no name, and no sweep.
    """
    if name is None:
        return latest_sweep(runs)
    for folder in (Path(name), runs / name):
        if folder.is_dir():
            return folder
    by_experiment: dict[str, Path] = {}
    for status in sorted(runs.glob("*/*/status.json")):
        for experiment in experiments_of(status):
            by_experiment[experiment] = status.parent.parent  # the last one stands
    if name in by_experiment:
        return by_experiment[name]
    known = [*by_experiment, *(f.name for f in runs.glob("*") if f.is_dir())]
    if not known:
        raise KeelBenchError(f"no sweep under {runs}; start one with `python -m suite`")
    raise UnknownNameError("sweep or experiment", name, known)


def experiments_of(status: Path) -> list[str]:
    """The experiments that a job's overrides name."""
    try:
        task = str(json.loads(status.read_text()).get("task", ""))
    except (OSError, ValueError, AttributeError):
        return []
    return re.findall(r"(?:^|,)\+?experiment=([^,]+)", task)
