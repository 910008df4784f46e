"""A run's artifacts in W&B: scores → adapter → completions, each naming what it was made from.

A stage's artifact is named by the stage's key and holds what the stage left, so that all runs that rest on it share one
artifact; the run's inputs are those that its completions rest on.
"""

from pathlib import Path

from suite.records import RunRecord
from suite.storage.cache import MANIFEST
from suite.tracking.run import Tracker


def log_artifacts(tracker: Tracker, folder: Path, record: RunRecord, adapter: Path | None) -> None:
    """Log those that ``tracking.artifacts`` asks for.

    Args:
        folder: the run's, whose completions are uploaded (redacted as they stand there).
        adapter: the adapter's folder; None where nothing was trained.
    """
    entries = {entry.stage: entry for entry in record.entries}
    scores = {"scores": entries["scores"].key} if "scores" in entries else {}
    if scores:
        # Not the run's own table, which says what this run selected.
        tracker.artifact("scores", scores["scores"], [entries["scores"].path / "scores.parquet"], {}, used=True)
    tuned = {"adapter": entries["adapter"].key} if adapter is not None else {}
    if adapter is not None:
        files = [f for f in sorted(adapter.iterdir()) if f.is_file() and f.name != MANIFEST]
        tracker.artifact("adapter", tuned["adapter"], files, scores, used=True)
    tracker.artifact("completions", record.run_id, [folder / "completions.parquet"], tuned)
