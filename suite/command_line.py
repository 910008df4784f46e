"""What the smaller entry points (``python -m suite.status`` and its like) share."""

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from eval.errors import KeelBenchError


def parser_of(module: str, about: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m module``, which says what the module's docstring does: its first paragraph, and the rest
    below the options as it is written."""
    description, _, examples = (about or "").partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def runs_folder() -> Path:
    """Where runs lie: SUITE_RUNS, or ``runs`` here."""
    return Path(os.environ.get("SUITE_RUNS", "runs"))


def one_line_errors(main: Callable[[], int]) -> Callable[[], int]:
    """``main`` with exit status 1, and the message on standard error, where it raises a KeelBenchError."""

    @functools.wraps(main)
    def told() -> int:
        try:
            return main()
        except KeelBenchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return told
