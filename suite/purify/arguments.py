"""What a user types, as Hydra takes it.

Hydra reads ``method=larf,gradsafe`` as two runs to be swept; here it is two voters in one run. So each method becomes a
section of its own (``+method@methods.larf=larf``), and ``scorer=`` a second model's section.
"""

import re
from collections.abc import Sequence

from baselines.registry import get_method
from eval.errors import KeelBenchError

DEFAULT = "larf"
_FILE = re.compile(r"[^=-][^=]*\.(jsonl|json|csv|tsv|parquet)(\.gz)?")


def translated(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``method``, ``method.<option>`` and ``scorer`` in Hydra's terms; all others as they are.

    Raises:
        UnknownNameError: no such method.
        KeelBenchError: a file without ``dataset.path=``, a method that does not score, or an option of one method where
            several vote.
    """
    methods: list[str] = []
    options: list[str] = []
    rest: list[str] = []
    scorer: str | None = None
    sections = False  # in Hydra's own terms already
    for argument in arguments:
        key, _, value = argument.partition("=")
        if _FILE.fullmatch(argument):
            raise KeelBenchError(
                f"{argument}: the file to purify is named dataset.path={argument}, the new one out=..."
            )
        if argument.startswith("-") or "=" not in argument:
            rest.append(argument)
        elif key == "method":
            methods += [name.strip(" '\"") for name in value.strip("[]").split(",")]
        elif key.startswith("method."):
            options.append(argument.removeprefix("method."))
        elif key == "scorer":
            scorer = value
        else:
            sections = sections or key.lstrip("+").startswith("method@methods.")
            rest.append(argument)
    asked_for_help = any(a in ("-h", "--help", "--hydra-help", "--version") for a in arguments)
    if not methods and not sections:
        methods = [DEFAULT]
    methods = list(dict.fromkeys(methods))
    if options and len(methods) != 1:
        named = options[0].split("=")[0]
        raise KeelBenchError(f"method.{named}: several methods vote; name whose option it is: methods.<name>.{named}=…")
    if not asked_for_help:
        for name in methods:
            if not get_method(name).scores:  # type: ignore[attr-defined]
                raise KeelBenchError(f"method={name} does not score samples, so it cannot purify")
    groups = [f"+method@methods.{name}={name}" for name in methods]
    if scorer is not None and scorer not in ("null", "none"):
        groups.append(f"+model@scorer={scorer}")
        if "larf" in methods:  # its layer belongs to the model that scores
            groups.append("methods.larf.layer=${scorer.larf_layer}")
    groups += [f"methods.{methods[0]}.{option}" for option in options]
    # Hydra's parser wants all overrides in one row, so flags stay on the side where the user put them.
    first = next((i for i, a in enumerate(rest) if "=" in a and not a.startswith("-")), len(rest))
    return [*rest[:first], *groups, *rest[first:]]
