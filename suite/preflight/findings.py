"""What a check found."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from eval.errors import KeelBenchError

State = Literal["ok", "note", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One check's outcome. ``failed`` stops a sweep before its first job; ``note`` is an estimate."""

    check: str  # what was looked at: weights llama3, benchmark harmbench
    state: State
    said: str  # what was found
    remedy: str = ""  # what to do about it, where ``said`` does not say it


@dataclass
class Findings:
    """All findings, each told once however many points of a sweep it concerns."""

    found: list[Finding] = field(default_factory=list)
    _done: set[Hashable] = field(default_factory=set)

    @property
    def failed(self) -> list[Finding]:
        return [f for f in self.found if f.state == "failed"]

    def once(self, key: Hashable, check: str, work: Callable[[], Finding | Iterable[Finding] | str]) -> None:
        """Do ``work`` unless it was done for ``key``. Its string is what is fine; a ``KeelBenchError`` is a failure, a
        line of its message each."""
        if (check, key) in self._done:
            return
        self._done.add((check, key))
        try:
            outcome = work()
            found = outcome if isinstance(outcome, str | Finding) else list(outcome)
        except KeelBenchError as error:
            self.fail(check, str(error))
            return
        if isinstance(found, str):
            self.add(Finding(check, "ok", found))
        else:
            for finding in [found] if isinstance(found, Finding) else found:
                self.add(finding)

    def fail(self, check: str, message: str) -> None:
        """A failure for every line of ``message`` that no other check has told."""
        told = {f.said for f in self.failed}
        for line in message.splitlines():
            if line.strip() and line.strip() not in told:
                self.add(Finding(check, "failed", line.strip()))

    def add(self, finding: Finding) -> None:
        if finding not in self.found:
            self.found.append(finding)
