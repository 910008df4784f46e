"""Verdicts on stored completions: no model of the run is needed, so another judge can be asked at any time."""

from collections.abc import Sequence
from pathlib import Path

from eval.judges import get_judge
from eval.records import Completion, Prompt, Verdict, as_rows
from suite.cache import Entry, StageCache
from suite.tables import read_table, write_table


def judge_completions(
    name: str, prompts: Sequence[Prompt], completions: Sequence[Completion], completions_key: str, cache: StageCache
) -> tuple[list[Verdict], Entry]:
    """The judge's verdicts, in the prompts' order."""
    judge = get_judge(name)

    def compute_stage(out: Path) -> int:
        write_table(out / "verdicts.parquet", as_rows(judge(prompts, completions)))
        return 0

    inputs = {"completions": completions_key, "judge": name, "judge_version": judge.version}
    entry = cache.entry("verdicts", "1", inputs, compute_stage, f"{name} ({len(prompts)} completions)")
    return [Verdict(**row) for row in read_table(entry.path / "verdicts.parquet")], entry
