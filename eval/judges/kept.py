"""Replies of a judge's server, kept as they come in: a stage that fails half-way is not paid for twice."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

from eval.judges.asking import Question, Reply
from eval.records import content_id


class KeptReplies:
    """A file of JSON lines, one a reply, for one judge with one identity. Lines are only ever added, each by one write,
    so several processes may share it; a line that a crash cut short is passed over."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._replies: dict[str, Reply] = {}
        for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
            try:
                row = json.loads(line)
                question = row.pop("question")
                self._replies[question] = Reply(**row)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def get(self, question: Question) -> Reply | None:
        return self._replies.get(_key(question))

    def keep(self, question: Question, reply: Reply) -> None:
        """Called from any thread. What the server could not answer is not kept: it may answer another time."""
        if reply.error:
            return
        line = json.dumps({"question": _key(question), **asdict(reply)}) + "\n"
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # A line that was cut short would swallow this one.
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(line if _ends_well(self._path) else "\n" + line)


def _ends_well(path: Path) -> bool:
    with path.open("rb") as handle:
        if handle.seek(0, 2) == 0:
            return True
        handle.seek(-1, 2)
        return handle.read(1) == b"\n"


def _key(question: Question) -> str:
    return content_id(question.text, *(part for turn in question.turns for part in turn))
