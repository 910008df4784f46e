"""A run's artifacts in W&B: scores → adapter → completions, each naming what it was made from."""

from pathlib import Path

from suite.cache import MANIFEST
from suite.records import RunRecord
from suite.tracking import Tracker


def log_artifacts(tracker: Tracker, folder: Path, record: RunRecord, adapter: Path | None) -> None:
    """Log those that ``tracking.artifacts`` asks for.

    Args:
        folder: the run's, whose tables are uploaded (completions redacted as they stand there).
        adapter: the adapter's folder; None where nothing was trained.
    """
    keys = {entry.stage: entry.key for entry in record.entries}
    scores = {"scores": keys["scores"]} if "scores" in keys else {}
    if scores:
        tracker.artifact("scores", keys["scores"], [folder / "scores.parquet"], {})
    if adapter is not None:
        files = [f for f in sorted(adapter.iterdir()) if f.is_file() and f.name != MANIFEST]
        tracker.artifact("adapter", keys["adapter"], files, scores)
    tuned = {"adapter": keys["adapter"]} if adapter is not None else {}
    tracker.artifact("completions", record.run_id, [folder / "completions.parquet"], tuned)
