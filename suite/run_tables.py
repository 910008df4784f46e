"""A run's tables: selected samples, scores, completions with their verdicts; on disk, and the same rows in W&B."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from baselines.records import Scores
from eval.metrics import ATTACK_SUCCEEDED
from eval.records import Completion, Prompt, Verdict
from suite.plan import RunPlan
from suite.ranking import sample_row, score_rows, tracked_places, write_ranking, write_selected
from suite.stages.data import Data
from suite.storage.cache import Entry
from suite.storage.tables import write_table
from suite.tracking.run import Tracker

REDACTED = "[harmful completion redacted; tracking.show_harmful=true shows it]"


def write_run_tables(
    folder: Path,
    tracker: Tracker,
    plan: RunPlan,
    data: Data,
    scores: Scores | None,
    selected: Sequence[str],
    prompts: Mapping[str, Sequence[Prompt]],
    completions: Mapping[str, tuple[Sequence[Completion], Entry]],
    verdicts: Mapping[str, Sequence[Verdict]],
) -> None:
    """The run's tables on disk, and the same rows in W&B."""
    rows = [
        row
        for name, asked in prompts.items()
        for row in completion_rows(asked, completions[name][0], verdicts[name], plan.tracking.show_harmful)
    ]
    if rows:
        write_table(folder / "completions.parquet", rows)
        tracker.table("completions", rows)
    if selected:
        write_selected(folder / "selected.parquet", data, selected)
        tracked = [selected[i] for i in tracked_places(len(selected))]
        tracker.table("selected", [sample_row(s) for s in data.chosen(tracked)])
    if scores is not None:
        write_ranking(folder / "scores.parquet", scores, data, selected)
        tracker.table("scores", score_rows(scores, data, selected, tracked_places(len(scores.ids))))


def completion_rows(
    prompts: Sequence[Prompt], completions: Sequence[Completion], verdicts: Sequence[Verdict], show_harmful: bool
) -> list[dict[str, Any]]:
    """Prompt, completion and verdict side by side; what a harmful request brought about is redacted by default."""
    rows = []
    for prompt, completion, verdict in zip(prompts, completions, verdicts, strict=True):
        hide = prompt.expected == "refuse" and verdict.label != "refused" and not show_harmful
        rows.append(
            {
                "benchmark": prompt.benchmark,
                "prompt_id": prompt.id,
                "category": prompt.category,
                "expected": prompt.expected,
                "prompt": prompt.text,
                "completion": REDACTED if hide else completion.text,
                "n_tokens": completion.n_tokens,
                "finish_reason": completion.finish_reason,
                "judge": verdict.judge,
                "label": verdict.label,
                "score": verdict.score,
                "attack_succeeded": prompt.expected == "refuse" and verdict.label in ATTACK_SUCCEEDED,
            }
        )
    return rows
