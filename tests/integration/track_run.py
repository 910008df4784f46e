"""What the pipeline logs of a finished run, from its folder: ``python -m tests.integration.track_run FOLDER [STOP]``.

With STOP, a file's place, it says ``half`` there after the training curve and waits until the file is gone.
"""

import json
import sys
import time
from pathlib import Path

from suite.plan import TrackingSpec
from suite.storage.tables import read_table
from suite.tracking.run import Tracker

SPEC = TrackingSpec(
    mode="auto", project="keelbench-test", entity=None, show_harmful=False, tags=("tag",), notes="a note", group=None
)


def main(folder: Path, stop: Path | None) -> None:
    row = json.loads((folder / "record.json").read_text())
    config = {"method": row["method"], "seed": row["seed"]}
    with Tracker(
        SPEC, folder=folder, name=row["label"], sweep=row["sweep"], job_type="run", config=config
    ) as tracker:  # fmt: skip
        if (folder / "training.parquet").exists():
            tracker.curve(read_table(folder / "training.parquet"))
        if stop is not None:
            stop.write_text("half")
            while stop.exists():
                time.sleep(0.1)
        for name in ("completions", "scores"):
            if (folder / f"{name}.parquet").exists():
                tracker.table(name, read_table(folder / f"{name}.parquet"))
        tracker.summary(row)
        tracker.artifact("completions", row["run_id"], [folder / "completions.parquet"], {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
