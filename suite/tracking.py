"""One W&B run per job, finished inside the job with its true exit state.

What is logged also lies on disk; tracking can fail without failing the run.
"""

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from eval.errors import UnknownNameError
from suite.plan import TrackingSpec

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")


class Terminated(BaseException):
    """SIGTERM as an exception, so that a run told to stop (Slurm, Ray) is marked failed and its data are kept."""


class Tracker:
    """A context: ``with Tracker(...) as tracker``. An exception inside marks the W&B run failed."""

    def __init__(
        self,
        spec: TrackingSpec,
        *,
        folder: Path,
        name: str,
        group: str,
        job_type: str,
        config: Mapping[str, Any],
    ):
        if spec.mode not in MODES:
            raise UnknownNameError("tracking mode", spec.mode, MODES)
        self.spec, self.folder, self.name = spec, folder, name
        self.group, self.job_type, self.config = group, job_type, config
        self.run: Any = None
        self._old_handler: Any = None

    def __enter__(self) -> "Tracker":
        self._trap_sigterm()
        mode = _resolve(self.spec.mode)
        if mode != "disabled":
            self._guard(self._start, mode)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.run is not None:
            run, self.run = self.run, None
            self._guard(run.finish, exit_code=0 if kind is None else 1)
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)

    def curve(self, points: Sequence[Mapping[str, float]]) -> None:
        """The training curve: ``train/loss``, ``train/learning_rate``, ``train/grad_norm`` by ``train/step``."""
        if self.run is None:
            return
        for point in points:
            self._guard(self.run.log, {f"train/{k}": v for k, v in point.items()})

    def summary(self, row: Mapping[str, Any]) -> None:
        """A run's flat row, as summary values and as the one-row table ``results``."""
        if self.run is None:
            return
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        self._guard(self.run.summary.update, numbers)
        self.table("results", [row])

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of equal keys as a W&B table."""
        if self.run is None or not rows:
            return
        import wandb

        columns = list(rows[0])
        table = wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows], allow_mixed_types=True)
        self._guard(self.run.log, {name: table})

    def _start(self, mode: str) -> None:
        import wandb

        (self.folder / "wandb-data").mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb-data")  # offline artifacts are staged there
        self.run = wandb.init(
            project=self.spec.project,
            entity=self.spec.entity,
            name=self.name,
            group=self.group,
            job_type=self.job_type,
            tags=list(self.spec.tags),
            notes=self.spec.notes,
            config=dict(self.config),
            dir=self.folder,
            mode=mode,  # type: ignore[arg-type]
            reinit="finish_previous",
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,  # no host name, user name or command line of somebody's machine
                finish_timeout=30,
            ),
        )
        self.run.define_metric("train/step", hidden=True)
        self.run.define_metric("train/*", step_metric="train/step")

    def _guard(self, call: Any, *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:  # whatever a tracking server does, the run goes on; the data are on disk
            log.warning("W&B: %s failed (%s: %s); the run goes on", call.__name__, type(error).__name__, error)

    def _trap_sigterm(self) -> None:
        def stop(number: int, frame: Any) -> None:
            raise Terminated("told to stop (SIGTERM)")

        try:
            self._old_handler = signal.signal(signal.SIGTERM, stop)
        except ValueError:  # not the main thread: the launcher's own handler stands
            self._old_handler = None


def _resolve(mode: str) -> Any:
    """``auto`` is online where the user is already logged in, else offline; nobody is ever asked to log in."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE") in MODES[1:]:
        return os.environ["WANDB_MODE"]
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    import netrc
    from urllib.parse import urlparse

    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return "online" if netrc.netrc().authenticators(host) else "offline"
    except (OSError, netrc.NetrcParseError):
        return "offline"
