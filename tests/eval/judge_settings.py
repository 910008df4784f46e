"""Judges as their YAMLs make them, with what a test changes."""

from functools import cache
from typing import Any

from eval.judges import Judge
from suite.plan import judge_of
from tests.helpers import compose


@cache
def _settings(name: str) -> dict[str, Any]:
    return compose([f"judge={name}"])["judge"]


def judge(name: str, **changes: Any) -> Judge:
    return judge_of({**_settings(name), **changes})
