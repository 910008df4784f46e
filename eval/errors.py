"""Errors a user can act on. The entry points print them as one message, without a traceback."""

import difflib
from collections.abc import Iterable


class KeelBenchError(Exception):
    """Something the user asked for cannot be done; the message says what, and what would do instead."""


class UnknownNameError(KeelBenchError):
    """A name that is not among the known ones. The message lists near matches and all valid choices."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]):
        known = sorted(choices)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


class DataError(KeelBenchError):
    """A data file that cannot be used. Names the file and, where one row is at fault, its line and field."""

    def __init__(self, path: object, message: str, line: int | None = None, field: str | None = None):
        where = str(path)
        if line is not None:
            where += f", line {line}"
        if field is not None:
            where += f", field {field!r}"
        super().__init__(f"{where}: {message}")


class MissingWeightsError(KeelBenchError):
    """Model weights that are absent, incomplete or gated."""


class CapacityError(KeelBenchError):
    """A request larger than what is there to serve it, such as k above the size of the data set."""
