"""Names on the command line, checked before Hydra composes anything: all at once, with near matches."""

from collections.abc import Sequence
from pathlib import Path

from eval.errors import KeelBenchError, UnknownNameError


def check_names(arguments: Sequence[str], conf: Path) -> None:
    """Every override of a configuration group must name files that exist.

    Raises:
        KeelBenchError: one line for every unknown name.
    """
    problems = []
    for argument in arguments:
        if argument.startswith("-") or "=" not in argument:
            continue
        key, value = argument.split("=", 1)
        group = key.lstrip("+~").split("@")[0]
        if not (conf / group).is_dir() or "." in group or group.startswith("hydra"):
            continue
        choices = {f.stem for f in (conf / group).glob("*.yaml")}
        for name in _names(value):
            if name not in choices:
                problems.append(str(UnknownNameError(group, name, choices)))
    if problems:
        raise KeelBenchError("\n".join(problems))


def no_value(key: str | None) -> str:
    """What is said of a setting that has to be given (``???`` in ``conf``)."""
    return f"{key} has no value; name one: {key}=..."


def _names(value: str) -> list[str]:
    """The plain names in a value; sweeps such as ``glob(*)`` and interpolations are Hydra's to resolve."""
    if "(" in value or "$" in value:
        return []
    names = [name.strip(" []'\"") for name in value.split(",")]
    return [name for name in names if name and name != "null"]
