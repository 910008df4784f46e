"""The sweep's own W&B run: job type ``sweep``, with the tables that hold the whole grid."""

import logging
from collections.abc import Sequence
from pathlib import Path

from suite.plan import TrackingSpec, build
from suite.report.load import Run
from suite.report.published import flat_rows, sections
from suite.report.text import grid
from suite.statistics.compare import Comparison, difference_rows
from suite.tracking.run import Tracker

log = logging.getLogger(__name__)


def track_sweep(sweep: Path, runs: Sequence[Run], found: Comparison) -> None:
    """Log ``comparison`` (one row a point and rate), ``differences`` (one row a test), ``paper`` (published, ours
    and the difference, one row a cell, where the runs' experiment has published figures) and ``runs`` (one row a run),
    with the tracking settings of the sweep's own runs. A single run needs none."""
    spec = _spec(runs)
    if spec is None or len(runs) < 2:
        return
    config = {"runs": len(runs), "points": len({run.name for run in runs})}
    name = f"{sweep.name} summary"
    with Tracker(spec, folder=sweep, name=name, sweep=sweep.name, job_type="sweep", config=config) as tracker:
        tracker.table("comparison", grid(runs, found))
        tracker.table("differences", difference_rows(found))
        tracker.table("paper", flat_rows(sections(runs, sweep)))
        tracker.table("runs", [{"point": run.name, **run.row} for run in runs])


def _spec(runs: Sequence[Run]) -> TrackingSpec | None:
    """The first run's tracking settings, as Hydra kept them; None where they cannot be read."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from eval.errors import KeelBenchError

    for run in runs:
        try:
            config = OmegaConf.load(run.folder / ".hydra" / "config.yaml")
            values = OmegaConf.to_container(config.tracking, resolve=True)
            assert isinstance(values, dict)
            spec: TrackingSpec = build(TrackingSpec, {str(k): v for k, v in values.items()}, "tracking")
        except (OSError, KeelBenchError, OmegaConfBaseException) as error:
            log.debug("no tracking settings in %s: %s", run.folder, error)
            continue
        return spec
    return None
