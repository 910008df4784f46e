"""Progress on a terminal: one bar a stage; elsewhere the log alone says when a stage starts and ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Advance:
    """Moves a bar: call it with the items just finished, or ``to(done, total)``."""

    def __init__(self, bar: object, task: object):
        self._bar, self._task = bar, task

    def __call__(self, done: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, done)  # type: ignore[attr-defined]

    def to(self, done: int, total: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)  # type: ignore[attr-defined]


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Advance]:
    """A bar for ``total`` items (None: told later by ``to``)."""
    if not sys.stderr.isatty():
        yield Advance(None, None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Advance(bar, bar.add_task(description, total=total))
